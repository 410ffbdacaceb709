"""Who may call: one hook on the application, an explicit list of what is public, and what each key is good for."""

import hmac

from flask import Flask, g, request

from app.errors import InvalidApiKey, MissingApiKey, ScopeMissing, ServiceKeyRequired
from app.logs import about
from app.models import KeyScope
from app.request_context import services
from app.services.access.callers import SERVICE, Caller

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

# What is about all apps: for the service's own key alone.
SERVICE_ENDPOINTS = frozenset(
    {"metrics.get_metrics", "keys.create_key", "keys.list_keys", "keys.rotate_key", "keys.revoke_key"}
)
# What a route needs besides these is told by its method: to read, or else to write. A charge of a saved card needs
# more, which its body says.
MONEY_ENDPOINTS = frozenset(
    {
        *("payments.refund_payment", "payments.capture_payment", "payments.cancel_payment"),
        *(f"subscriptions.{action}_subscription" for action in ("cancel", "resume", "change")),
    }
)
READING_POSTS = frozenset({"status.query_stats"})
READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def register_auth(app: Flask) -> None:
    """Ask for an API key on every route that isn't public, and on paths that are no route."""
    app.before_request(require_api_key)


def require_api_key() -> None:
    """Let the request pass when it is public or carries a key that is good for it; note whose key it is.

    :raises MissingApiKey: when it carries none.
    :raises InvalidApiKey: when it carries another.
    :raises ScopeMissing, ServiceKeyRequired: when the key is good for less.
    """
    if request.endpoint in PUBLIC_ENDPOINTS or request.path.startswith(WEBHOOKS):
        return
    sent = request.headers.get("X-API-Key") or _bearer_token()
    if not sent:
        raise MissingApiKey
    # WSGI hands headers over as Latin-1, which keeps any bytes as they came.
    g.caller = _find_caller(sent.encode("latin-1"))
    _require_scope(g.caller)


def _find_caller(key: bytes) -> Caller:
    # All are compared, so that the time taken doesn't tell which one was close.
    matches = [hmac.compare_digest(key, each.encode()) for each in services().settings.api_keys]
    if True in matches:
        return SERVICE
    caller = services().callers.find(key, address=request.remote_addr or "")
    if caller is None:
        raise InvalidApiKey("Invalid API key")
    about(app=caller.app_id, keyId=caller.key_id)
    return caller


def _require_scope(caller: Caller) -> None:
    if caller.app_id is not None and request.endpoint in SERVICE_ENDPOINTS:
        raise ServiceKeyRequired
    require_scope(_scope_needed())


def require_scope(scope: KeyScope) -> None:
    """Let the request go on when its key is good for more than its route says: its body asks for that.

    :raises ScopeMissing: when it isn't.
    """
    if not g.caller.may(scope):
        raise ScopeMissing(scope)


def _scope_needed() -> KeyScope:
    if request.endpoint in MONEY_ENDPOINTS:
        return KeyScope.MONEY
    is_reading = request.method in READING_METHODS or request.endpoint in READING_POSTS
    return KeyScope.READ if is_reading else KeyScope.WRITE


def _bearer_token() -> str | None:
    """The token of `Authorization: Bearer`, on the one route that takes it. https://www.rfc-editor.org/rfc/rfc6750"""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if request.endpoint == BEARER_ENDPOINT and scheme.lower() == "bearer" else None
