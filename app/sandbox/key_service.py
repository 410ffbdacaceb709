"""The stand-in of key-service, which keeps the keys of apps and hands them out."""

from flask import Blueprint, Response, jsonify, request

from app.sandbox.ledger import note
from app.sandbox.world import current_world

CALLER_HEADERS = ("X-Caller-Service", "X-Caller-Method", "X-Caller-Path")

blueprint = Blueprint("key-service", __name__, url_prefix="/key-service")


@blueprint.get("/internal/app-keys/<provider>/decrypt")
def decrypt(provider: str) -> Response:
    """Answer with the app's key of that provider."""
    app_id = request.args.get("appId", "")
    if refusal := _refusal_to(app_id):
        return refusal
    key = current_world().keys.key(provider, app_id)
    return (
        refuse(404, f"No {provider} key configured for {app_id}")
        if key is None
        else jsonify(provider=provider, key=key)
    )


@blueprint.post("/internal/app-keys")
def store() -> Response:
    """Store the app's key of a provider, or replace it."""
    given = request.get_json(silent=True)
    wanted = ("appId", "provider", "apiKey")
    if not isinstance(given, dict) or not all(isinstance(given.get(name), str) and given[name] for name in wanted):
        return refuse(400, f"Give {', '.join(wanted)}")
    app_id, provider, key = (given[name] for name in wanted)
    if refusal := _refusal_to(app_id):
        return refusal
    note(effect="key.store", object_id=provider)
    current_world().keys.set(provider, app_id, key)
    return jsonify(provider=provider, maskedKey=_masked(key), message=f"{provider} key saved successfully")


@blueprint.delete("/internal/app-keys/<provider>")
def delete(provider: str) -> Response:
    """Forget the app's key of a provider."""
    app_id = request.args.get("appId", "")
    if refusal := _refusal_to(app_id):
        return refusal
    note(effect="key.delete", object_id=provider)
    current_world().keys.set(provider, app_id, None)
    return jsonify(provider=provider, message=f"{provider} key deleted successfully")


@blueprint.get("/internal/app-keys")
def list_all() -> Response:
    """List the keys that the app was given, masked."""
    app_id = request.args.get("appId", "")
    if refusal := _refusal_to(app_id):
        return refusal
    stored = current_world().keys.stored(app_id)
    return jsonify(keys=[{"provider": provider, "maskedKey": _masked(key)} for provider, key in stored.items()])


def _refusal_to(app_id: str) -> Response | None:
    """What the caller hears whose key, headers or app is wrong."""
    note(app_id=app_id)
    if request.headers.get("X-API-Key") != current_world().settings.key_service_api_key:
        return refuse(401, "Invalid API key")
    absent = [name for name in CALLER_HEADERS if not request.headers.get(name)]
    if absent:
        return refuse(400, f"Missing {', '.join(absent)}")
    return None if app_id else refuse(400, "Missing appId")


def _masked(key: str) -> str:
    return f"{key[:3]}...{key[-4:]}"


@blueprint.route("/<path:rest>", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def unknown(rest: str) -> Response:
    return refuse(404, "Not found")


def refuse(status: int, sentence: str) -> Response:
    response = jsonify(error=sentence)
    response.status_code = status
    return response
