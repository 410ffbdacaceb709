"""Webhooks: whose signature it is, and what to do with the event."""

import hmac
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from app.errors import ServiceError
from app.logs import about
from app.metrics import count_webhook_version
from app.services import Services
from app.services.events.receive import Receipt, receive_event
from app.services.events.stripe_event import parse_event
from app.services.upstreams.call_context import CallContext

# https://docs.stripe.com/webhooks#replay-attacks
TOLERANCE_SECONDS = 300

# Stripe sends one of a hundred characters for each secret, and all of them are compared with ours.
MAX_SIGNATURE_LENGTH = 4_096

# Anything else can't be an app.
_APP_ID = re.compile(r"[A-Za-z0-9._:-]{1,200}")
_TIME = re.compile(r"[0-9]{1,12}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    :raises Overloaded, UpstreamError: when key-service can't be asked for the app's secret, or can't tell it
    """
    if not signature:
        raise MissingSignature
    if not _is_genuine(read_signature(signature, payload), app_id, services, context):
        raise InvalidSignature
    event = parse_event(payload)
    receipt = receive_event(event, app_id=app_id, services=services)
    count_webhook_version(event.api_version)
    about(payment=receipt.payment_id)
    return receipt


def _is_genuine(signed: "SignedBody", app_id: str | None, services: Services, context: CallContext) -> bool:
    if app_id is None:
        return signed.fits(services.settings.webhook_secrets)
    return bool(_APP_ID.fullmatch(app_id)) and services.signing_secrets.has_signed(app_id, signed.fits, context)


@dataclass(frozen=True)
class SignedBody:
    """A body and what its `Stripe-Signature` says: when it was signed, and the signatures of which one must fit.

    https://docs.stripe.com/webhooks#verify-manually
    """

    payload: bytes
    signed_at: str
    signatures: tuple[str, ...]

    def fits(self, secrets: Iterable[str]) -> bool:
        """Whether one of the secrets made one of the signatures."""
        return any(map(self._is_signed_by, secrets))

    def _is_signed_by(self, secret: str) -> bool:
        expected = hmac.new(secret.encode(), f"{self.signed_at}.".encode() + self.payload, "sha256").hexdigest()
        return any(hmac.compare_digest(expected, signature) for signature in self.signatures)


def read_signature(header: str, payload: bytes) -> SignedBody:
    """Read the header, and check all of it that needs no secret.

    :raises InvalidSignature: when it can't be one of Stripe's, or is of more than 300 seconds ago or ahead
    """
    if len(header) > MAX_SIGNATURE_LENGTH:
        raise InvalidSignature
    parts = [part.partition("=")[::2] for part in header.split(",")]
    times = [value for name, value in parts if name == "t" and _TIME.fullmatch(value)]
    signatures = tuple(value for name, value in parts if name == "v1" and _SHA256.fullmatch(value))
    # Told once, and here: a genuine one doesn't grow too old while key-service is asked.
    if len(times) != 1 or not signatures or abs(time.time() - int(times[0])) > TOLERANCE_SECONDS:
        raise InvalidSignature
    return SignedBody(payload, times[0], signatures)
