"""The stand-in of key-service, which hands out the keys of apps."""

from flask import Blueprint, Response, jsonify, request

from app.sandbox.key_ring import PROVIDERS
from app.sandbox.ledger import note
from app.sandbox.world import current_world

CALLER_HEADERS = ("X-Caller-Service", "X-Caller-Method", "X-Caller-Path")

blueprint = Blueprint("key-service", __name__, url_prefix="/key-service")


@blueprint.get("/internal/app-keys/<provider>/decrypt")
def decrypt(provider: str) -> Response:
    """Answer with the app's key of that provider."""
    app_id = request.args.get("appId", "")
    note(app_id=app_id)
    world = current_world()
    if request.headers.get("X-API-Key") != world.settings.key_service_api_key:
        return refuse(401, "Invalid API key")
    absent = [name for name in CALLER_HEADERS if not request.headers.get(name)]
    if absent:
        return refuse(400, f"Missing {', '.join(absent)}")
    if not app_id:
        return refuse(400, "Missing appId")
    key = world.keys.key(provider, app_id) if provider in PROVIDERS else None
    if key is None:
        return refuse(404, f"No {provider} key configured for {app_id}")
    return jsonify(provider=provider, key=key)


@blueprint.route("/<path:rest>", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def unknown(rest: str) -> Response:
    return refuse(404, "Not found")


def refuse(status: int, sentence: str) -> Response:
    response = jsonify(error=sentence)
    response.status_code = status
    return response
