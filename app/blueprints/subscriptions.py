"""Following subscriptions."""

from typing import Any

from app.request_context import services
from app.schemas.base import AppQuerySchema
from app.schemas.status import PageQuerySchema
from app.schemas.subscriptions import FoundSubscriptionSchema, SubscriptionPageSchema
from app.services.reports.subscriptions import find_subscription, list_subscriptions_of_org
from app.web import Blueprint

blp = Blueprint("subscriptions", __name__, description="Following subscriptions from their checkout to their end.")


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
