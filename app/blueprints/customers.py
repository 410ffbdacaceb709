"""Customers of organisations, and what they pay with."""

from collections.abc import Callable
from typing import Any, TypeVar

from app.request_context import call_context, services
from app.schemas.customers import (
    BillingPortalOpenedSchema,
    BillingPortalSchema,
    CustomerAnswerSchema,
    CustomerDeletedSchema,
    CustomerEnsuredSchema,
    CustomerEnsureSchema,
    CustomerTransferredSchema,
    CustomerTransferSchema,
    OrganisationQuerySchema,
    PaymentMethodChangedSchema,
    PaymentMethodListSchema,
    PaymentMethodNamedSchema,
    PaymentMethodQuerySchema,
    SetupPageOpenedSchema,
    SetupPageSchema,
)
from app.schemas.payments import IdempotencyKeySchema
from app.services.customers.customers import delete_customer, ensure_customer, show_customer, transfer_customer
from app.services.customers.pages import open_billing_portal, open_setup_page
from app.services.customers.payment_methods import detach_method, list_methods, set_default_method
from app.web import STRIPE_CODES, Blueprint

T = TypeVar("T")

blp = Blueprint("customers", __name__, description="Customers of organisations, and what they pay with.")

SHOW_ERRORS = (400, 401, 403, 429, 502, 503, 504, *STRIPE_CODES, "identity_conflict")
CHANGE_ERRORS = (*SHOW_ERRORS, 413, 415)
OPEN_ERRORS = (*CHANGE_ERRORS, 409, 422)


@blp.route("/customers/ensure", methods=["POST"])
@blp.arguments(CustomerEnsureSchema)
@blp.response(200, CustomerEnsuredSchema)
@blp.errors(*CHANGE_ERRORS)
def ensure_customer_of_org(body: dict[str, Any]) -> dict[str, Any]:
    """Have an organisation's customer made where there is none, or brought up to date with what is given."""
    app_id, org_id = body.pop("app_id"), body.pop("org_id")
    customer_id, created = _ask(app_id, ensure_customer, app_id, org_id, body)
    return {"success": True, "customer_id": customer_id, "created": created}


@blp.route("/customers/by-org/<text:org_id>")
@blp.arguments(OrganisationQuerySchema, location="query")
@blp.response(200, CustomerAnswerSchema)
@blp.errors(*SHOW_ERRORS, 404)
def get_customer_by_org(query: dict[str, str], org_id: str) -> dict[str, Any]:
    """Show an organisation's customer."""
    return {"customer": _ask(query["app_id"], show_customer, org_id, **query)}


@blp.route("/customers/by-org/<text:org_id>", methods=["DELETE"])
@blp.arguments(OrganisationQuerySchema, location="query")
@blp.response(200, CustomerDeletedSchema)
@blp.errors(*SHOW_ERRORS)
def delete_customer_by_org(query: dict[str, str], org_id: str) -> dict[str, Any]:
    """Delete an organisation's customer at Stripe, with its cards; its payments stay."""
    return {"success": True, "deleted": _ask(query["app_id"], delete_customer, org_id, **query)}


@blp.route("/customers/transfer", methods=["POST"])
@blp.arguments(CustomerTransferSchema)
@blp.response(200, CustomerTransferredSchema)
@blp.errors(*CHANGE_ERRORS, "customer_exists")
def transfer_customer_of_org(body: dict[str, str]) -> dict[str, Any]:
    """Let an organisation's customer be another organisation's; its past payments stay where they are."""
    return {"success": True, "moved": _ask(body["app_id"], transfer_customer, **body)}


@blp.route("/payment-methods/by-org/<text:org_id>")
@blp.arguments(PaymentMethodQuerySchema, location="query")
@blp.response(200, PaymentMethodListSchema)
@blp.errors(*SHOW_ERRORS)
def list_payment_methods_by_org(query: dict[str, str], org_id: str) -> dict[str, Any]:
    """List what an organisation has saved, first what would be charged without the customer."""
    return {"payment_methods": _ask(query["app_id"], list_methods, org_id, **query)}


@blp.route("/payment-methods/setup", methods=["POST"])
@blp.arguments(SetupPageSchema)
@blp.arguments(IdempotencyKeySchema, location="headers")
@blp.response(200, SetupPageOpenedSchema)
@blp.errors(*OPEN_ERRORS)
def open_setup_page_for_org(body: dict[str, str], headers: dict[str, str]) -> dict[str, Any]:
    """Open a page on which the organisation saves a card, and pays nothing.

    Stripe remembers an Idempotency-Key for a day.
    """
    return _ask(body["app_id"], open_setup_page, body, idempotency_key=headers.get("idempotency_key"))


@blp.route("/payment-methods/default", methods=["POST"])
@blp.arguments(PaymentMethodNamedSchema)
@blp.response(200, PaymentMethodChangedSchema)
@blp.errors(*CHANGE_ERRORS, 404)
def set_default_payment_method(body: dict[str, str]) -> dict[str, Any]:
    """Make a saved method the one that is charged where nothing else is named."""
    _ask(body["app_id"], set_default_method, **body)
    return {"success": True, "payment_method_id": body["payment_method_id"]}


@blp.route("/payment-methods/detach", methods=["POST"])
@blp.arguments(PaymentMethodNamedSchema)
@blp.response(200, PaymentMethodChangedSchema)
@blp.errors(*CHANGE_ERRORS, 404)
def detach_payment_method(body: dict[str, str]) -> dict[str, Any]:
    """Remove a saved method from the organisation's customer."""
    _ask(body["app_id"], detach_method, **body)
    return {"success": True, "payment_method_id": body["payment_method_id"]}


@blp.route("/billing-portal/create", methods=["POST"])
@blp.arguments(BillingPortalSchema)
@blp.arguments(IdempotencyKeySchema, location="headers")
@blp.response(200, BillingPortalOpenedSchema)
@blp.errors(*OPEN_ERRORS, 404)
def create_billing_portal(body: dict[str, str], headers: dict[str, str]) -> dict[str, Any]:
    """Open a page on which the organisation looks after its cards and invoices.

    Stripe remembers an Idempotency-Key for a day.
    """
    key = headers.get("idempotency_key")
    return {"success": True, "url": _ask(body["app_id"], open_billing_portal, body, idempotency_key=key)}


def _ask(place_for: str, use_case: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Every route here waits for Stripe, so it takes one of its app's places for that."""
    with services().upstream_limit.hold(place_for):
        return use_case(*arguments, **options, services=services(), context=call_context())
