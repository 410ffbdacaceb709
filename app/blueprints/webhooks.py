"""What Stripe tells."""

from typing import Any

from flask import request

from app.request_context import call_context, services
from app.schemas.webhooks import AppPathSchema, EventSchema, ReceivedSchema, SignatureSchema
from app.services.events.webhooks import receive_webhook
from app.web import Blueprint

blp = Blueprint("webhooks", __name__, description="What Stripe tells.")

ERRORS = (
    *(400, 413, 502, 503, 504),
    *("missing_signature", "invalid_signature", "not_a_stripe_event"),
    *("database_unavailable", "upstream_unavailable", "overloaded"),
)
# Described and not parsed: what is verified is the bytes.
SIGNED_EVENT = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": EventSchema}}},
    "security": [],
}
SIGNATURE = {"in": "header", "schema": SignatureSchema}
APP = {"in": "path", "schema": AppPathSchema}


@blp.route("/webhooks/stripe", methods=["POST"])
@blp.response(200, ReceivedSchema)
@blp.errors(*ERRORS)
@blp.doc(**SIGNED_EVENT, parameters=[SIGNATURE])
def receive_stripe_event() -> dict[str, Any]:
    """Receive an event, signed with one of the service's own secrets."""
    return _receive(None)


@blp.route("/webhooks/stripe/<app_id>", methods=["POST"])
@blp.response(200, ReceivedSchema)
@blp.errors(*ERRORS)
@blp.doc(**SIGNED_EVENT, parameters=[SIGNATURE, APP])
def receive_stripe_event_of_app(app_id: str) -> dict[str, Any]:
    """Receive an event for one app, signed with that app's secret."""
    return _receive(app_id)


def _receive(app_id: str | None) -> dict[str, Any]:
    receive_webhook(
        request.get_data(),
        request.headers.get("Stripe-Signature"),
        app_id=app_id,
        services=services(),
        context=call_context(),
    )
    return {"received": True}
