"""Creating payments."""

from typing import Any

from app.request_context import call_context, services
from app.schemas.payments import (
    CheckoutCreatedSchema,
    CheckoutCreateSchema,
    IdempotencyKeySchema,
    PaymentIntentCreatedSchema,
    PaymentIntentCreateSchema,
)
from app.services.operations.accept import OperationRequest, perform
from app.services.operations.kind import Kind
from app.services.payments.kinds import CREATE_CHECKOUT_SESSION, CREATE_PAYMENT_INTENT
from app.web import Blueprint

blp = Blueprint("payments", __name__, description="Creating payments.")

CREATE_ERRORS = (400, 401, 402, 403, 409, 413, 415, 422, 429, 502, 503, 504)


@blp.route("/checkout/create", methods=["POST"])
@blp.arguments(CheckoutCreateSchema)
@blp.arguments(IdempotencyKeySchema, location="headers")
@blp.response(200, CheckoutCreatedSchema)
@blp.errors(*CREATE_ERRORS)
def create_checkout(body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    """Create a checkout session, a page of Stripe's on which the customer pays."""
    return _create(CREATE_CHECKOUT_SESSION, body, headers)


@blp.route("/payment-intent/create", methods=["POST"])
@blp.arguments(PaymentIntentCreateSchema)
@blp.arguments(IdempotencyKeySchema, location="headers")
@blp.response(200, PaymentIntentCreatedSchema)
@blp.errors(*CREATE_ERRORS)
def create_payment_intent(body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    """Create a payment intent, for a page of the caller's own."""
    return _create(CREATE_PAYMENT_INTENT, body, headers)


def _create(kind: Kind[Any], body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    request = OperationRequest(kind=kind, body=body, idempotency_key=headers.get("idempotency_key"))
    with services().upstream_limit.hold(request.app_id):
        return perform(request, services=services(), context=call_context())
