"""The stand-in of an app that wants to be told: it takes what it is sent, and keeps whether the signature is right."""

from collections.abc import Iterable

from flask import Blueprint, Response, request
from standardwebhooks import Webhook, WebhookVerificationError

from app.sandbox.world import current_world

PATH = "/app/events"

blueprint = Blueprint("told-app", __name__)


@blueprint.post(PATH)
def take() -> Response:
    """Take an event that one of the app's endpoints' secrets has signed; refuse any other."""
    world = current_world()
    is_verified = _is_verified(world.keys.event_secrets())
    event = request.get_json(silent=True)
    if is_verified and isinstance(event, dict):
        world.told.add(event, at=world.clock.iso())
    return Response(status=204 if is_verified else 400)


def _is_verified(secrets: Iterable[str]) -> bool:
    for secret in secrets:
        try:
            Webhook(secret).verify(request.get_data(), dict(request.headers), json_parse=False)
        except WebhookVerificationError:
            continue
        return True
    return False
