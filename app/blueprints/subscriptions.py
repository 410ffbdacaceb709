"""Following subscriptions, and doing something with them."""

from typing import Any

from app.request_context import call_context, services
from app.schemas.base import AppQuerySchema
from app.schemas.payments import IdempotencyKeySchema
from app.schemas.status import PageQuerySchema
from app.schemas.subscriptions import (
    FoundSubscriptionSchema,
    SubscriptionCancelSchema,
    SubscriptionChangedSchema,
    SubscriptionChangeSchema,
    SubscriptionPageSchema,
    SubscriptionResumeSchema,
)
from app.services.operations.kind import Kind
from app.services.reports.subscriptions import find_subscription, list_subscriptions_of_org
from app.services.subscriptions.actions import (
    CANCEL_SUBSCRIPTION,
    CHANGE_SUBSCRIPTION,
    RESUME_SUBSCRIPTION,
    act_on_subscription,
)
from app.web import STRIPE_CODES, Blueprint

blp = Blueprint("subscriptions", __name__, description="Following subscriptions from their checkout to their end.")

ACTION_ERRORS = (
    *(400, 401, 403, 404, 413, 415, 422, 429, 502, 503, 504),
    *STRIPE_CODES,
    *("idempotency_key_in_use", "stripe_idempotency_mismatch", "payment_handed_over"),
)


@blp.route("/subscriptions/<subscription_id>")
@blp.arguments(AppQuerySchema, location="query")
@blp.response(200, FoundSubscriptionSchema)
@blp.errors(400, 401, 403, 404, 503)
def get_subscription(of: dict[str, Any], subscription_id: str) -> dict[str, Any]:
    """Show a subscription as it is by now."""
    return find_subscription(subscription_id, **of, services=services())


@blp.route("/subscriptions/by-org/<text:org_id>")
@blp.arguments(PageQuerySchema, location="query")
@blp.response(200, SubscriptionPageSchema)
@blp.errors("invalid_request", "identity_conflict", 401, 403, 503)
def list_subscriptions_by_org(page: dict[str, Any], org_id: str) -> dict[str, Any]:
    """List the subscriptions of an organisation."""
    return list_subscriptions_of_org(org_id, page, services=services())


@blp.route("/subscriptions/<subscription_id>/cancel", methods=["POST"])
@blp.arguments(SubscriptionCancelSchema)
@blp.arguments(IdempotencyKeySchema, location="headers")
@blp.response(200, SubscriptionChangedSchema)
@blp.errors(*ACTION_ERRORS)
def cancel_subscription(body: dict[str, Any], headers: dict[str, str], subscription_id: str) -> dict[str, Any]:
    """End a subscription with its period, or now."""
    return _act(CANCEL_SUBSCRIPTION, subscription_id, body, headers)


@blp.route("/subscriptions/<subscription_id>/resume", methods=["POST"])
@blp.arguments(SubscriptionResumeSchema)
@blp.arguments(IdempotencyKeySchema, location="headers")
@blp.response(200, SubscriptionChangedSchema)
@blp.errors(*ACTION_ERRORS)
def resume_subscription(body: dict[str, Any], headers: dict[str, str], subscription_id: str) -> dict[str, Any]:
    """Go on with a subscription that is to end, or is paused."""
    return _act(RESUME_SUBSCRIPTION, subscription_id, body, headers)


@blp.route("/subscriptions/<subscription_id>/change", methods=["POST"])
@blp.arguments(SubscriptionChangeSchema)
@blp.arguments(IdempotencyKeySchema, location="headers")
@blp.response(200, SubscriptionChangedSchema)
@blp.errors(402, *ACTION_ERRORS)
def change_subscription(body: dict[str, Any], headers: dict[str, str], subscription_id: str) -> dict[str, Any]:
    """Change the price or the quantity of a subscription."""
    return _act(CHANGE_SUBSCRIPTION, subscription_id, body, headers)


def _act(kind: Kind[Any], subscription_id: str, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    key = headers.get("idempotency_key")
    return act_on_subscription(
        kind, subscription_id, body, idempotency_key=key, services=services(), context=call_context()
    )
