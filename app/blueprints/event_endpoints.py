"""Where an app is told what becomes of its payments."""

from typing import Any

from app.request_context import call_context, services
from app.schemas.base import AppQuerySchema
from app.schemas.events import (
    DoneSchema,
    EndpointActionSchema,
    EndpointCreatedSchema,
    EndpointCreateSchema,
    EndpointListSchema,
    RedeliverDeadSchema,
    SecretRotatedSchema,
)
from app.services.notifications import endpoints
from app.web import Blueprint

blp = Blueprint("event_endpoints", __name__, description="Where an app is told what becomes of its payments.")

KEY_SERVICE_ERRORS = ("upstream_error", "database_unavailable", "upstream_unavailable", 504)
ACTION_ERRORS = (400, 401, 403, 404, 413, 415)
DONE = {"success": True}


@blp.route("/event-endpoints/create", methods=["POST"])
@blp.arguments(EndpointCreateSchema)
@blp.response(200, EndpointCreatedSchema)
@blp.errors(400, 401, 403, 413, 415, *KEY_SERVICE_ERRORS)
def create_event_endpoint(body: dict[str, Any]) -> dict[str, Any]:
    """Tell an app at a URL from now on. The secret is shown here and never again."""
    return endpoints.create_endpoint(**body, services=services(), context=call_context())


@blp.route("/event-endpoints")
@blp.arguments(AppQuerySchema, location="query")
@blp.response(200, EndpointListSchema)
@blp.errors(400, 401, 403, 503)
def list_event_endpoints(of: dict[str, Any]) -> dict[str, Any]:
    """List the endpoints of an app."""
    return {"endpoints": endpoints.list_endpoints(**of, services=services())}


@blp.route("/event-endpoints/<endpoint_id>", methods=["DELETE"])
@blp.arguments(AppQuerySchema, location="query")
@blp.response(200, DoneSchema)
@blp.errors(400, 401, 403, 404, *KEY_SERVICE_ERRORS)
def delete_event_endpoint(of: dict[str, Any], endpoint_id: str) -> dict[str, Any]:
    """Tell an app nothing more at an endpoint."""
    endpoints.delete_endpoint(endpoint_id, **of, services=services(), context=call_context())
    return DONE


@blp.route("/event-endpoints/<endpoint_id>/enable", methods=["POST"])
@blp.arguments(EndpointActionSchema)
@blp.response(200, DoneSchema)
@blp.errors(*ACTION_ERRORS, 503)
def enable_event_endpoint(body: dict[str, Any], endpoint_id: str) -> dict[str, Any]:
    """Tell an app again at an endpoint that was disabled."""
    endpoints.enable_endpoint(endpoint_id, **body, services=services())
    return DONE


@blp.route("/event-endpoints/<endpoint_id>/test", methods=["POST"])
@blp.arguments(EndpointActionSchema)
@blp.response(200, DoneSchema)
@blp.errors(*ACTION_ERRORS, 503)
def test_event_endpoint(body: dict[str, Any], endpoint_id: str) -> dict[str, Any]:
    """Send an endpoint a `ping`."""
    endpoints.ping_endpoint(endpoint_id, **body, services=services())
    return DONE


@blp.route("/event-endpoints/<endpoint_id>/redeliver-dead", methods=["POST"])
@blp.arguments(RedeliverDeadSchema)
@blp.response(200, DoneSchema)
@blp.errors(*ACTION_ERRORS, 503)
def redeliver_dead_events(body: dict[str, Any], endpoint_id: str) -> dict[str, Any]:
    """Send an endpoint again what was given up."""
    endpoints.redeliver_dead(endpoint_id, **body, services=services())
    return DONE


@blp.route("/event-endpoints/<endpoint_id>/rotate-secret", methods=["POST"])
@blp.arguments(EndpointActionSchema)
@blp.response(200, SecretRotatedSchema)
@blp.errors(*ACTION_ERRORS, *KEY_SERVICE_ERRORS)
def rotate_event_endpoint_secret(body: dict[str, Any], endpoint_id: str) -> dict[str, Any]:
    """Sign with another secret, and for a day with the one before as well."""
    return endpoints.rotate_secret(endpoint_id, **body, services=services(), context=call_context())
