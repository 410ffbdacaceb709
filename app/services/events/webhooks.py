"""Webhooks: whose signature it is, and what to do with the event."""

import re
import time
from collections.abc import Callable, Iterable

from stripe import SignatureVerificationError, WebhookSignature

from app.errors import NoStripeKey, ServiceError
from app.logs import about
from app.services import Services
from app.services.events.receive import Receipt, receive_event
from app.services.events.stripe_event import parse_event
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.keys import Provider

# https://docs.stripe.com/webhooks#replay-attacks
TOLERANCE_SECONDS = 300

# Stripe sends one of a hundred characters for each secret, and all of them are compared with ours.
MAX_SIGNATURE_LENGTH = 4_096

# Anything else can't be an app.
_APP_ID = re.compile(r"[A-Za-z0-9._:-]{1,200}")


class MissingSignature(ServiceError):
    """There is no Stripe-Signature header."""

    status = 400
    code = "missing_signature"

    def __init__(self) -> None:
        super().__init__("Missing stripe-signature header")


class InvalidSignature(ServiceError):
    """The signature is of another secret or body, or too old, or too new."""

    status = 400
    code = "invalid_signature"

    def __init__(self) -> None:
        super().__init__("Invalid signature")


def receive_webhook(
    payload: bytes, signature: str | None, *, app_id: str | None, services: Services, context: CallContext
) -> Receipt:
    """Verify a webhook and store its event; when this returns, it is committed.

    :param app_id: the app whose path it came by; None for the path that all share
    :raises MissingSignature, InvalidSignature, NotAnEvent: when it isn't a genuine event of Stripe's
    :raises UpstreamError: when key-service can't tell the app's secret
    """
    if not signature:
        raise MissingSignature
    if app_id is None:
        verify(payload, signature, services.settings.webhook_secrets)
    else:
        _verify_for_app(payload, signature, app_id, services, context)
    receipt = receive_event(parse_event(payload), app_id=app_id, services=services)
    about(payment=receipt.payment_id)
    return receipt


def _verify_for_app(payload: bytes, signature: str, app_id: str, services: Services, context: CallContext) -> None:
    """Verify with the app's secrets; when none fits, with those that key-service has now: one may be being rotated."""
    if not _APP_ID.fullmatch(app_id):
        raise InvalidSignature
    try:
        verify(payload, signature, _secrets_of(services.keys.get, app_id, context))
    except InvalidSignature:
        verify(payload, signature, _secrets_of(services.keys.get_afresh, app_id, context))


def _secrets_of(
    ask: Callable[[Provider, str, CallContext], str | None], app_id: str, context: CallContext
) -> tuple[str, ...]:
    """The app's secrets: several, by commas, while one is rotated; none when key-service has none."""
    try:
        kept = ask(Provider.STRIPE_WEBHOOK, app_id, context) or ""
    except NoStripeKey:
        kept = ""
    return tuple(secret.strip() for secret in kept.split(",") if secret.strip())


def verify(payload: bytes, signature: str, secrets: Iterable[str]) -> None:
    """Check that one of the secrets signed this body, at most 300 seconds ago or ahead.

    https://docs.stripe.com/webhooks#verify-manually

    :raises InvalidSignature: when none did, or the header is too long to be Stripe's
    """
    if len(signature) > MAX_SIGNATURE_LENGTH or not any(
        _is_signed_by(secret, payload, signature) for secret in secrets
    ):
        raise InvalidSignature


def _is_signed_by(secret: str, payload: bytes, signature: str) -> bool:
    try:
        WebhookSignature.verify_header(payload, signature, secret, TOLERANCE_SECONDS)
        signed_at = int(next(part[2:] for part in signature.split(",") if part.startswith("t=")))
    except (SignatureVerificationError, StopIteration, TypeError, ValueError):
        # Any bytes may come: a body that is no UTF-8, a signature that is no ASCII.
        return False
    return signed_at <= time.time() + TOLERANCE_SECONDS
