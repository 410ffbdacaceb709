"""Looking at payments by hand, and folding them again."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select

from app.errors import NotFound
from app.models import Payment, StripeEvent, TrackingState
from app.services import Services
from app.services.events.receive import adopt_events

MAX_SHOWN = 1_000

_STEPS = (
    Payment.step,
    Payment.attempt,
    Payment.lease_until,
    Payment.recovery_tries,
    Payment.recover_at,
    Payment.asked_at,
    Payment.asked_anew,
    Payment.answer_status,
    Payment.run_search_from,
    Payment.run_search_until,
)
_RUN = (Payment.org_id, Payment.run_id, Payment.parent_run_id, Payment.tracking_state, Payment.tracking_error)
_ROW = (
    Payment.id,
    Payment.kind,
    Payment.app_id,
    Payment.idempotency_key,
    Payment.status,
    Payment.amount_in_cents,
    Payment.currency,
    Payment.amount_received_in_cents,
    Payment.amount_refunded_in_cents,
    Payment.amount_disputed_in_cents,
    Payment.stripe_payment_intent_id,
    Payment.stripe_checkout_session_id,
    Payment.stripe_subscription_id,
    Payment.stripe_invoice_id,
    Payment.created_at,
    Payment.updated_at,
)
_FIND = select(*_ROW, *_STEPS, *_RUN).where(Payment.id == bindparam("payment_id"))
_EVENTS = (
    select(StripeEvent.created, StripeEvent.type, StripeEvent.id, StripeEvent.received_at)
    .where(StripeEvent.payment_id == bindparam("payment_id"))
    .order_by(StripeEvent.created, StripeEvent.id)
    .limit(MAX_SHOWN)
)
_STUCK = (
    select(Payment.id, Payment.app_id, Payment.kind, Payment.step, Payment.asked_at, Payment.tracking_error)
    .where(Payment.tracking_state == TrackingState.STUCK, Payment.step != "finished")
    .order_by(Payment.lease_until)
    .limit(MAX_SHOWN)
)
_WITH_EVENTS_SINCE = (
    select(StripeEvent.payment_id)
    .where(StripeEvent.payment_id.is_not(None), StripeEvent.received_at >= bindparam("since"))
    .distinct()
)


def show_payment(payment_id: uuid.UUID, *, services: Services) -> dict[str, Any]:
    """A payment's row, its steps, its run, and its events in order.

    :raises NotFound: when there is no such payment.
    """
    with services.database.connect() as connection:
        row = connection.execute(_FIND, {"payment_id": payment_id}).one_or_none()
        if row is None:
            raise NotFound("Payment not found")
        events = connection.execute(_EVENTS, {"payment_id": payment_id}).all()

    def part(columns: Any) -> dict[str, Any]:
        return {column.key: getattr(row, column.key) for column in columns}

    return {
        "payment": part(_ROW),
        "steps": part(_STEPS),
        "run": part(_RUN),
        "events": [dict(event._mapping) for event in events],
    }


def list_stuck_payments(*, services: Services) -> list[dict[str, Any]]:
    """The payments that nobody but a person can decide, the longest stuck first."""
    with services.database.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(_STUCK)]


def replay_events(*, payment_id: uuid.UUID | None, since: datetime | None, services: Services) -> int:
    """Fold a payment, or those with events received since a time, again; return how many were.

    :raises NotFound: when there is no such payment.
    """
    if payment_id is not None:
        show_payment(payment_id, services=services)
        payment_ids = [payment_id]
    else:
        with services.database.connect() as connection:
            payment_ids = [row.payment_id for row in connection.execute(_WITH_EVENTS_SINCE, {"since": since})]
    for each in payment_ids:
        adopt_events(each, services=services)
    return len(payment_ids)
