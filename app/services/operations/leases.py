"""Leases: a payment is moved only by whoever holds its lease, in one process at a time."""

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, func, update

from app.database import Message, send
from app.errors import DATABASE_ERRORS, ServiceError, UpstreamError
from app.models import Payment, PaymentKind, PaymentStatus, Step
from app.services import Services

log = logging.getLogger(__name__)


class LeaseLost(ServiceError):
    """The payment took longer than its lease, and another process has it now."""

    status = 503
    code = "payment_handed_over"
    retry_after_seconds = 1

    def __init__(self) -> None:
        super().__init__("This payment took too long and was handed over to another process; retry in a moment")


@dataclass(frozen=True, kw_only=True)
class HeldPayment:
    """A payment whose lease we hold, as far as walking it needs.

    `first_hand` says that nobody held it before us, so that no call of a former holder can be under way.
    """

    id: uuid.UUID
    kind: PaymentKind
    request: Mapping[str, Any]
    step: Step
    attempt: int
    lease_token: uuid.UUID
    org_id: str | None
    run_id: str | None
    stripe_params: Mapping[str, Any] | None = None
    asked_at: datetime | None = None
    asked_anew: bool = False
    status: str = PaymentStatus.CREATING
    stripe_payment_intent_id: str | None = None
    stripe_checkout_session_id: str | None = None
    first_hand: bool = False

    @property
    def app_id(self) -> str:
        return str(self.request["app_id"])

    @property
    def stripe_ids(self) -> list[str]:
        """The ids of what Stripe made."""
        return [made for made in (self.stripe_payment_intent_id, self.stripe_checkout_session_id) if made]

    @property
    def upstream_key(self) -> str:
        """The idempotency key of this attempt, at Stripe and at runs-service."""
        return f"{self.id}:{self.attempt}"


HELD_COLUMNS = (
    Payment.id,
    Payment.kind,
    Payment.request,
    Payment.step,
    Payment.attempt,
    Payment.lease_token,
    Payment.org_id,
    Payment.run_id,
    Payment.stripe_params,
    Payment.asked_at,
    Payment.asked_anew,
    Payment.status,
    Payment.stripe_payment_intent_id,
    Payment.stripe_checkout_session_id,
)
LEASE = func.now() + bindparam("lease")
HOLDS_LEASE = (Payment.id == bindparam("payment_id")) & (Payment.lease_token == bindparam("token"))

_LET_GO = Message(
    update(Payment)
    .where(HOLDS_LEASE, Payment.step != Step.FINISHED)
    .values(lease_until=func.now() + bindparam("pause"), tracking_error=bindparam("new_tracking_error"))
    .returning(Payment.id)
)


def held_payment(columns: Mapping[Any, Any]) -> HeldPayment:
    """A payment from its `HELD_COLUMNS`."""
    return HeldPayment(**{**columns, "kind": PaymentKind(columns["kind"]), "step": Step(columns["step"])})


def execute(services: Services, message: Message, payment: HeldPayment, **values: Any) -> bool:
    """Send a statement on a payment that we hold, as a transaction of its own; False when we don't hold it."""
    held = {"payment_id": payment.id, "token": payment.lease_token}
    return bool(send(services.database, message, {**held, **values}))


def reason_of(error: Exception | None) -> str | None:
    """What an upstream did, in a few words of ours."""
    return f"{error.upstream} {error.reason}" if isinstance(error, UpstreamError) else None


def lease_of(services: Services) -> timedelta:
    return timedelta(seconds=services.settings.payment_lease_seconds)


def let_go(
    payment: HeldPayment, services: Services, *, pause: timedelta = timedelta(0), error: Exception | None = None
) -> None:
    """End the lease early, so that a retry need not wait for it; if that fails, it lapses by itself."""
    try:
        execute(services, _LET_GO, payment, pause=pause, new_tracking_error=reason_of(error))
    except DATABASE_ERRORS:
        log.warning("the lease of payment %s could not be ended; it lapses by itself", payment.id)
