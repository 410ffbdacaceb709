"""Looking at payments by hand."""

import uuid
from typing import Any

from sqlalchemy import bindparam, select

from app.database import Batch
from app.errors import NotFound
from app.models import Operation, Payment, StripeEvent, TrackingState
from app.services import Services
from app.services.events.projection import STATE_COLUMNS

MAX_SHOWN = 1_000

_PAYMENT = (
    Payment.id,
    Payment.kind,
    Payment.app_id,
    Payment.org_id,
    Payment.parent_run_id,
    *(getattr(Payment, name) for name in STATE_COLUMNS),
    Payment.created_at,
    Payment.updated_at,
)
_OPERATION = (
    Operation.idempotency_key,
    Operation.step,
    Operation.attempt,
    Operation.lease_until,
    Operation.recovery_tries,
    Operation.recover_at,
    Operation.asked_at,
    Operation.asked_anew,
    Operation.answer_status,
)
_RUN = (
    Operation.run_id,
    Operation.run_search_from,
    Operation.run_search_until,
    Operation.tracking_state,
    Operation.tracking_error,
)
_FIND = Batch(
    select(*_PAYMENT, *_OPERATION, *_RUN)
    .outerjoin(Operation, Operation.id == Payment.id)
    .where(Payment.id == bindparam("payment_id"))
)
_EVENTS = Batch(
    select(StripeEvent.created, StripeEvent.type, StripeEvent.id, StripeEvent.received_at)
    .where(StripeEvent.payment_id == bindparam("payment_id"))
    .order_by(StripeEvent.created, StripeEvent.id)
    .limit(MAX_SHOWN)
)
_ACTIONS = Batch(
    select(
        Operation.created_at,
        Operation.kind,
        Operation.id,
        Operation.idempotency_key,
        Operation.step,
        Operation.answer_status,
        Operation.answer,
        Operation.tracking_error,
    )
    .where(Operation.payment_id == bindparam("payment_id"), Operation.id != Operation.payment_id)
    .order_by(Operation.created_at, Operation.id)
    .limit(MAX_SHOWN)
)
_STUCK = Batch(
    select(
        Operation.id,
        Operation.payment_id,
        Operation.app_id,
        Operation.kind,
        Operation.step,
        Operation.asked_at,
        Operation.tracking_error,
    )
    .where(Operation.tracking_state == TrackingState.STUCK, Operation.lease_until.is_not(None))
    .order_by(Operation.lease_until)
    .limit(MAX_SHOWN)
)


def show_payment(payment_id: uuid.UUID, *, services: Services) -> dict[str, Any]:
    """A payment's row, its operation, its run, what was done with it, and its events in order.

    :raises NotFound: when there is no such payment.
    """
    rows = services.database.run(_FIND, payment_id=payment_id)
    if not rows:
        raise NotFound("Payment not found")
    row = rows[0]._asdict()
    parts = {"payment": _PAYMENT, "operation": _OPERATION, "run": _RUN}
    shown: dict[str, Any] = {
        part: {column.key: row[column.key] for column in columns} for part, columns in parts.items()
    }
    lists = {"actions": _ACTIONS, "events": _EVENTS}
    for part, query in lists.items():
        shown[part] = [row._asdict() for row in services.database.run(query, payment_id=payment_id)]
    return shown


def app_of_payment(payment_id: uuid.UUID, *, services: Services) -> str:
    """The app that a payment is for.

    :raises NotFound: when there is no such payment.
    """
    return str(show_payment(payment_id, services=services)["payment"]["app_id"])


def list_stuck_operations(*, services: Services) -> list[dict[str, Any]]:
    """The operations that nobody but a person can decide, the longest stuck first."""
    return [row._asdict() for row in services.database.run(_STUCK)]
