"""Creating payments, and doing something with them."""

from typing import Any

from app.auth import require_scope
from app.models import KeyScope
from app.request_context import call_context, services
from app.schemas.actions import (
    CanceledSchema,
    CancelSchema,
    CapturedSchema,
    CaptureSchema,
    RefundCreatedSchema,
    RefundCreateSchema,
)
from app.schemas.checkout import CheckoutCreatedSchema, CheckoutCreateSchema
from app.schemas.payments import IdempotencyKeySchema, PaymentIntentCreatedSchema, PaymentIntentCreateSchema
from app.services.operations.accept import OperationRequest, perform
from app.services.operations.kind import Kind
from app.services.payments.actions import CANCEL, CAPTURE, REFUND, act_on_payment
from app.services.payments.kinds import CREATE_CHECKOUT_SESSION, CREATE_PAYMENT_INTENT
from app.web import STRIPE_CODES, Blueprint

blp = Blueprint("payments", __name__, description="Creating payments, and doing something with them.")

CREATE_ERRORS = (
    *(400, 401, 402, 403, 409, 413, 415, 422, 429, 502, 503, 504),
    *STRIPE_CODES,
    *("identity_conflict", "stripe_idempotency_mismatch", "runs_service_refused", "payment_handed_over"),
)
CHARGE_CODES = ("idempotency_key_required", "no_payment_method")
ACTION_ERRORS = (
    *(400, 401, 403, 404, 413, 415, 422, 429, 502, 503, 504),
    *STRIPE_CODES,
    *("idempotency_key_in_use", "payment_not_ready", "stripe_idempotency_mismatch", "payment_handed_over"),
)
REFUND_CODES = ("idempotency_key_required", "nothing_to_refund", "several_payment_intents")


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
@blp.errors(*CREATE_ERRORS, *CHARGE_CODES)
def create_payment_intent(body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    """Create a payment intent, for a page of the caller's own; with offSession, charge a saved card at once."""
    if body.get("off_session"):
        require_scope(KeyScope.MONEY)
    return _create(CREATE_PAYMENT_INTENT, body, headers)


@blp.route("/payments/<payment_id>/refund", methods=["POST"])
@blp.arguments(RefundCreateSchema)
@blp.arguments(IdempotencyKeySchema, location="headers")
@blp.response(200, RefundCreatedSchema)
@blp.errors(*ACTION_ERRORS, *REFUND_CODES)
def refund_payment(body: dict[str, Any], headers: dict[str, str], payment_id: str) -> dict[str, Any]:
    """Give back what was received for a payment, or a part of it; the Idempotency-Key is required."""
    return _act(REFUND, payment_id, body, headers)


@blp.route("/payments/<payment_id>/capture", methods=["POST"])
@blp.arguments(CaptureSchema)
@blp.arguments(IdempotencyKeySchema, location="headers")
@blp.response(200, CapturedSchema)
@blp.errors(*ACTION_ERRORS)
def capture_payment(body: dict[str, Any], headers: dict[str, str], payment_id: str) -> dict[str, Any]:
    """Take the money that a payment with captureMethod `manual` holds, or a part of it."""
    return _act(CAPTURE, payment_id, body, headers)


@blp.route("/payments/<payment_id>/cancel", methods=["POST"])
@blp.arguments(CancelSchema)
@blp.arguments(IdempotencyKeySchema, location="headers")
@blp.response(200, CanceledSchema)
@blp.errors(*ACTION_ERRORS)
def cancel_payment(body: dict[str, Any], headers: dict[str, str], payment_id: str) -> dict[str, Any]:
    """Call off a payment that is not paid: its intent is canceled, or its open checkout session expires."""
    return _act(CANCEL, payment_id, body, headers)


def _act(kind: Kind[Any], payment_id: str, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    key = headers.get("idempotency_key")
    return act_on_payment(kind, payment_id, body, idempotency_key=key, services=services(), context=call_context())


def _create(kind: Kind[Any], body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    request = OperationRequest(kind=kind, body=body, idempotency_key=headers.get("idempotency_key"))
    with services().upstream_limit.hold(request.app_id):
        return perform(request, services=services(), context=call_context())
