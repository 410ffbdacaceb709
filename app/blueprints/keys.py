"""Keys of apps, for whoever has the service's own key."""

from datetime import timedelta
from typing import Any

from app.models import KeyScope
from app.request_context import services
from app.schemas.base import OptionalAppQuerySchema
from app.schemas.keys import (
    KeyCreatedSchema,
    KeyCreateSchema,
    KeyListSchema,
    KeyRevokedSchema,
    KeyRevokeSchema,
    KeyRotateSchema,
)
from app.services.access import keys
from app.web import Blueprint

blp = Blueprint("keys", __name__, description="Keys of apps, for whoever has the service's own key.")

WRITE_ERRORS = (400, 401, "invalid_api_key", "service_key_required", 413, 415, 503)
LIST_ERRORS = (400, 401, "invalid_api_key", "service_key_required", 503)


@blp.route("/keys/create", methods=["POST"])
@blp.arguments(KeyCreateSchema)
@blp.response(200, KeyCreatedSchema)
@blp.errors(*WRITE_ERRORS)
def create_key(body: dict[str, Any]) -> dict[str, Any]:
    """Make a key for an app. It is shown here and never again."""
    scope = KeyScope(body["scope"])
    return keys.create_key(body["app_id"], name=body.get("name"), scope=scope, services=services())


@blp.route("/keys")
@blp.arguments(OptionalAppQuerySchema, location="query")
@blp.response(200, KeyListSchema)
@blp.errors(*LIST_ERRORS)
def list_keys(query: dict[str, Any]) -> dict[str, Any]:
    """List keys, the newest first; none is shown itself."""
    return {"keys": keys.list_keys(query.get("app_id"), services=services())}


@blp.route("/keys/rotate", methods=["POST"])
@blp.arguments(KeyRotateSchema)
@blp.response(200, KeyCreatedSchema)
@blp.errors(*WRITE_ERRORS, 404)
def rotate_key(body: dict[str, Any]) -> dict[str, Any]:
    """Make another key for the app of a key, which ends a while later."""
    overlap = timedelta(hours=body["overlap_hours"])
    return keys.rotate_key(body["key_id"], overlap=overlap, services=services())


@blp.route("/keys/revoke", methods=["POST"])
@blp.arguments(KeyRevokeSchema)
@blp.response(200, KeyRevokedSchema)
@blp.errors(*WRITE_ERRORS, 404)
def revoke_key(body: dict[str, Any]) -> dict[str, Any]:
    """Refuse a key from now on."""
    keys.revoke_key(body["key_id"], services=services())
    return {"success": True}
