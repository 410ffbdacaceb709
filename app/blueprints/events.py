"""What an app was told."""

from typing import Any

from app.request_context import services
from app.schemas.events import AppEventPageSchema, DoneSchema, EndpointActionSchema, EventQuerySchema
from app.services.notifications.app_events import list_events, redeliver_event
from app.web import Blueprint

blp = Blueprint("events", __name__, description="What an app was told.")


@blp.route("/events")
@blp.arguments(EventQuerySchema, location="query")
@blp.response(200, AppEventPageSchema)
@blp.errors(400, 401, 403, 503)
def list_app_events(page: dict[str, Any]) -> dict[str, Any]:
    """List what an app was told, and how far each event is on its way."""
    return list_events(**page, services=services())


@blp.route("/events/<event_id>/redeliver", methods=["POST"])
@blp.arguments(EndpointActionSchema)
@blp.response(200, DoneSchema)
@blp.errors(400, 401, 403, 404, 413, 415, 503)
def redeliver_app_event(body: dict[str, Any], event_id: str) -> dict[str, Any]:
    """Send an event again to the endpoints that it was made for."""
    redeliver_event(event_id, **body, services=services())
    return {"success": True}
