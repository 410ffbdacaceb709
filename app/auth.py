"""Who may call: one hook on the application, and an explicit list of what is public."""

import hmac

from flask import Flask, request

from app.errors import InvalidApiKey, MissingApiKey
from app.request_context import services

PUBLIC_ENDPOINTS = frozenset(
    {
        "health.get_welcome",
        "health.get_health",
        "health.get_readiness",
        "docs.show_document",
        "docs.open_page",
        "swagger_ui.show",
        "webhooks.receive_stripe_event",
        "webhooks.receive_stripe_event_of_app",
    }
)


# Stripe signs what it sends here.
WEBHOOKS = "/webhooks/"

# Prometheus sends a bearer token more easily than a header of another name.
BEARER_ENDPOINT = "metrics.get_metrics"


def register_auth(app: Flask) -> None:
    """Ask for an API key on every route that isn't public, and on paths that are no route."""
    app.before_request(require_api_key)


def require_api_key() -> None:
    """Let the request pass when it is public or carries one of the service's API keys.

    :raises MissingApiKey: when it carries none.
    :raises InvalidApiKey: when it carries another.
    """
    if request.endpoint in PUBLIC_ENDPOINTS or request.path.startswith(WEBHOOKS):
        return
    sent = request.headers.get("X-API-Key") or _bearer_token()
    if not sent:
        raise MissingApiKey
    # WSGI hands headers over as Latin-1, which keeps any bytes as they came. All keys are compared, so that the time
    # taken doesn't tell which one was close.
    sent_bytes = sent.encode("latin-1")
    matches = [hmac.compare_digest(sent_bytes, key.encode()) for key in services().settings.api_keys]
    if True not in matches:
        raise InvalidApiKey("Invalid API key")


def _bearer_token() -> str | None:
    """The token of `Authorization: Bearer`, on the one route that takes it. https://www.rfc-editor.org/rfc/rfc6750"""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if request.endpoint == BEARER_ENDPOINT and scheme.lower() == "bearer" else None
