"""Reconciliation: what webhooks may have lost is asked of Stripe, and fed to the same function as a webhook."""

import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, delete, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import TIMESTAMP, insert
from sqlalchemy.sql import Executable

from app.errors import ServiceError, is_database_outage
from app.models import EventCursor, Payment, StripeEvent
from app.services import Services
from app.services.events.projection import Event
from app.services.events.receive import Outcome, join_waiting_events, read_event, receive_event
from app.services.operations.leases import LEASE, lease_of, reason_of
from app.services.operations.recovery import command_context
from app.services.reconciliation.object_events import take_snapshots
from app.services.upstreams.call_context import CallContext

log = logging.getLogger(__name__)

# https://docs.stripe.com/api/events/list: at most 20 types a call, events of the last 30 days.
MAX_TYPES = 20
EVENTS_LISTED = timedelta(days=30)
# An event may be listed a while after its `created`.
OVERLAP = timedelta(hours=1)
UNMATCHED_KEPT = timedelta(days=90)
BATCH = 500

EVENT_TYPES = (
    "payment_intent.created",
    "payment_intent.requires_action",
    "payment_intent.processing",
    "payment_intent.amount_capturable_updated",
    "payment_intent.succeeded",
    "payment_intent.payment_failed",
    "payment_intent.canceled",
    "checkout.session.completed",
    "checkout.session.expired",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "charge.succeeded",
    "charge.updated",
    "charge.refunded",
    "charge.refund.updated",
    "refund.created",
    "refund.updated",
    "refund.failed",
    "charge.dispute.created",
    "charge.dispute.updated",
    "charge.dispute.closed",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.funds_reinstated",
    "invoice.paid",
    "invoice.payment_failed",
    "invoice_payment.paid",
)


@dataclass(frozen=True)
class Reconciled:
    """What the reconciliation of an app came to: how many events Stripe told, and how many of them were new."""

    app_id: str
    told: int = 0
    stored: int = 0
    walked: bool = False
    error: str | None = None


@dataclass(frozen=True)
class HeldCursor:
    """An app whose reconciliation this process has to itself."""

    app_id: str
    token: uuid.UUID
    reconciled_until: datetime
    now: datetime

    @property
    def since(self) -> datetime:
        """From when on events may have been missed."""
        return self.reconciled_until - OVERLAP

    @property
    def is_too_old(self) -> bool:
        """Whether events may have been missed that Stripe lists no more."""
        return self.since < self.now - EVENTS_LISTED


# One entry of the index for each app, however many payments it has.
_first_app = select(func.min(Payment.app_id).label("app_id")).cte("apps", recursive=True)
_next_app = (
    select(func.min(Payment.app_id)).where(Payment.app_id > _first_app.c.app_id).correlate(_first_app).scalar_subquery()
)
_apps = _first_app.union_all(select(_next_app).where(_first_app.c.app_id.is_not(None)))
_APPS = select(_apps.c.app_id).where(_apps.c.app_id.is_not(None))

_new_cursor = insert(EventCursor).values(app_id=bindparam("app_id"), lease_token=bindparam("token"), lease_until=LEASE)
_CLAIM = _new_cursor.on_conflict_do_update(
    index_elements=[EventCursor.app_id],
    set_={"lease_token": _new_cursor.excluded.lease_token, "lease_until": _new_cursor.excluded.lease_until},
    where=EventCursor.lease_until <= func.now(),
).returning(EventCursor.reconciled_until, func.now().label("now"))

_FIRST_PAYMENT = select(func.min(Payment.created_at)).where(Payment.app_id == bindparam("app_id"))

_is_held = (EventCursor.app_id == bindparam("of_app")) & (EventCursor.lease_token == bindparam("token"))
_EXTEND = update(EventCursor).where(_is_held).values(lease_until=LEASE).returning(EventCursor.app_id)
_MOVE = update(EventCursor).where(_is_held).values(reconciled_until=bindparam("until"), lease_until=func.now())
_RELEASE = update(EventCursor).where(_is_held).values(lease_until=func.now())


def reconcile_apps(services: Services, *, command: str) -> Iterator[Reconciled]:
    """Ask Stripe for what every app with payments may have missed; an app that fails doesn't stop the others."""
    with services.database.connect() as connection:
        apps = connection.execute(_APPS).scalars().all()
    for app_id in apps:
        if cursor := _claim(app_id, services):
            yield _reconcile_app(cursor, services, command)


def _claim(app_id: str, services: Services) -> HeldCursor | None:
    token = uuid.uuid4()
    with services.database.connect() as connection:
        row = connection.execute(_CLAIM, {"app_id": app_id, "token": token, "lease": lease_of(services)}).one_or_none()
        if row is None:
            return None
        # An app that was never reconciled may have missed whatever happened since its first payment.
        since = row.reconciled_until or connection.execute(_FIRST_PAYMENT, {"app_id": app_id}).scalar_one()
    return HeldCursor(app_id, token, since, row.now)


def _reconcile_app(cursor: HeldCursor, services: Services, command: str) -> Reconciled:
    told = stored = 0
    try:
        for event in _events(cursor, services, command):
            receipt = receive_event(event, app_id=cursor.app_id, services=services)
            told, stored = told + 1, stored + (receipt.outcome is Outcome.STORED)
    except Exception as error:
        if is_database_outage(error):
            raise
        _execute(_RELEASE, cursor, services)
        return Reconciled(cursor.app_id, told, stored, cursor.is_too_old, _explain(cursor, error))
    _execute(_MOVE, cursor, services, until=cursor.now)
    return Reconciled(cursor.app_id, told, stored, cursor.is_too_old)


def _explain(cursor: HeldCursor, error: Exception) -> str:
    if isinstance(error, ServiceError):
        return reason_of(error) or error.sentence
    log.error("app %s can't be reconciled", cursor.app_id, exc_info=error)
    return f"unexpected {type(error).__name__}, see the log"


def _events(cursor: HeldCursor, services: Services, command: str) -> Iterator[Event]:
    def new_context() -> CallContext:
        _extend(cursor, services)
        return command_context(command, services)

    for start in range(0, len(EVENT_TYPES), MAX_TYPES):
        types = list(EVENT_TYPES[start : start + MAX_TYPES])
        filters = {"types": types, "created": {"gte": int(cursor.since.timestamp())}}
        for listed in services.stripe.list_objects(cursor.app_id, "/v1/events", filters, new_context=new_context):
            yield read_event(listed)
    if cursor.is_too_old:
        yield from take_snapshots(cursor.app_id, since=cursor.since, services=services, new_context=new_context)


class CursorLost(ServiceError):
    """Another process reconciles the app by now."""

    code = "cursor_lost"

    def __init__(self) -> None:
        super().__init__("another process has it")


def _extend(cursor: HeldCursor, services: Services) -> None:
    if _execute(_EXTEND, cursor, services, lease=lease_of(services)) == 0:
        raise CursorLost


def _execute(statement: Executable, cursor: HeldCursor, services: Services, **values: Any) -> int:
    with services.database.connect() as connection:
        held = {"of_app": cursor.app_id, "token": cursor.token}
        return int(connection.execute(statement, {**held, **values}).rowcount)


# Events that found no payment may belong to one that learned their ids in the very moment of a crash.
_WAITING = (
    select(StripeEvent.app_id, StripeEvent.id, StripeEvent.refs, StripeEvent.received_at)
    .where(
        StripeEvent.payment_id.is_(None),
        tuple_(StripeEvent.received_at, StripeEvent.id, StripeEvent.app_id)
        > tuple_(bindparam("after", type_=TIMESTAMP(timezone=True)), bindparam("after_id"), bindparam("after_app")),
    )
    .order_by(StripeEvent.received_at, StripeEvent.id, StripeEvent.app_id)
    .limit(BATCH)
)


def rejoin_waiting_events(services: Services, *, since: datetime | None = None) -> Iterator[int]:
    """Look once more for the payments of events that have none, batch by batch; yield how many payments were found.

    :param since: only events received since then
    """
    after = {"after": since or datetime.min.replace(tzinfo=UTC), "after_id": "", "after_app": ""}
    while True:
        with services.database.connect() as connection:
            events = connection.execute(_WAITING, after).all()
        if not events:
            return
        refs = sorted({ref for event in events for ref in event.refs})
        yield join_waiting_events(refs, services=services) if refs else 0
        last = events[-1]
        after = {"after": last.received_at, "after_id": last.id, "after_app": last.app_id}


_LET_GO = delete(StripeEvent).where(
    tuple_(StripeEvent.app_id, StripeEvent.id).in_(
        select(StripeEvent.app_id, StripeEvent.id)
        .where(StripeEvent.payment_id.is_(None), StripeEvent.received_at < func.now() - UNMATCHED_KEPT)
        .limit(BATCH)
    )
)


def let_go_of_old_events(services: Services) -> int:
    """Delete events that found no payment for 90 days, in small batches; return how many were."""
    deleted = 0
    while True:
        with services.database.connect() as connection:
            batch = connection.execute(_LET_GO).rowcount
        deleted += batch
        if batch < BATCH:
            return deleted
