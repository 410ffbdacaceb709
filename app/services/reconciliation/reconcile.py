"""Reconciliation: what webhooks may have lost is asked of Stripe, and fed to the same function as a webhook."""

import logging
import math
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert

from app.database import Batch
from app.errors import DATABASE_ERRORS, ServiceError, is_database_outage
from app.models import EventCursor, Payment
from app.services import Services
from app.services.concurrency import InHand, Work, side_by_side
from app.services.events.receive import Outcome, receive_event
from app.services.events.stripe_event import Event, NotAnEvent, read_event
from app.services.events.stripe_object import id_of
from app.services.operations.operation import LEASE, lease_of, reason_of
from app.services.operations.recovery import DATABASE_TOO_SLOW, command_context
from app.services.reconciliation.object_events import read_object_events
from app.services.stopping import Stopping
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import Resource

log = logging.getLogger(__name__)

# https://docs.stripe.com/api/events/list: at most 20 types a call, events of the last 30 days.
MAX_TYPES = 20
EVENTS_LISTED = timedelta(days=30)
# An event may be listed a while after its `created`.
OVERLAP = timedelta(hours=1)

EVENTS = Resource[dict[str, Any]]("/v1/events", "event", dict)
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
    """What the reconciliation of an app came to.

    :param listed: how many events Stripe listed, or its objects were turned into
    :param stored: how many of them were new
    :param unreadable: how many things Stripe listed that are no events; each is in the log, and hid no other
    :param objects_read: whether Stripe's objects were read, since it lists the events no more
    """

    app_id: str
    listed: int = 0
    stored: int = 0
    unreadable: int = 0
    objects_read: bool = False
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
_APPS = Batch(select(_apps.c.app_id).where(_apps.c.app_id.is_not(None)))

_new_cursor = insert(EventCursor).values(app_id=bindparam("app_id"), lease_token=bindparam("token"), lease_until=LEASE)
_CLAIM = Batch(
    _new_cursor.on_conflict_do_update(
        index_elements=[EventCursor.app_id],
        set_={"lease_token": _new_cursor.excluded.lease_token, "lease_until": _new_cursor.excluded.lease_until},
        where=EventCursor.lease_until <= func.now(),
    ).returning(EventCursor.reconciled_until, func.now().label("now"))
)

_FIRST_PAYMENT = Batch(
    select(func.min(Payment.created_at).label("created_at")).where(Payment.app_id == bindparam("app_id"))
)

_is_held = (EventCursor.app_id == bindparam("of_app")) & (EventCursor.lease_token == bindparam("token"))
_EXTEND = Batch(update(EventCursor).where(_is_held).values(lease_until=LEASE).returning(EventCursor.app_id))
_MOVE = Batch(update(EventCursor).where(_is_held).values(reconciled_until=bindparam("until"), lease_until=func.now()))
_RELEASE = Batch(update(EventCursor).where(_is_held).values(lease_until=func.now()))


def reconcile_apps(services: Services, *, command: str, again_after_seconds: float = math.inf) -> Iterator[Reconciled]:
    """Ask Stripe for what every app with payments may have missed; an app that fails doesn't stop the others.

    :param again_after_seconds: when the others have another turn while an app takes longer than that
    """
    app_ids, listed_at = iter(find_apps(services)), time.monotonic()

    def claim(_: InHand) -> Work[Reconciled] | None:
        nonlocal app_ids, listed_at
        # An app is one piece of work, so none has more than one place.
        for app_id in app_ids:
            if cursor := _claim(app_id, services):
                return Work(app_id, partial(_reconcile_app, cursor, services, command))
        if time.monotonic() - listed_at >= again_after_seconds:
            app_ids, listed_at = iter(find_apps(services)), time.monotonic()
        return None

    yield from side_by_side(claim, stop=services.stop)


def find_apps(services: Services) -> list[str]:
    """The apps that have payments."""
    return [app.app_id for app in services.database.run(_APPS)]


def _claim(app_id: str, services: Services) -> HeldCursor | None:
    token = uuid.uuid4()
    claimed = services.database.run(_CLAIM, app_id=app_id, token=token, lease=lease_of(services))
    if not claimed:
        return None
    row = claimed[0]
    # An app that was never reconciled may have missed whatever happened since its first payment.
    since = row.reconciled_until or services.database.run(_FIRST_PAYMENT, app_id=app_id)[0].created_at
    return HeldCursor(app_id, token, since, row.now)


def _reconcile_app(cursor: HeldCursor, services: Services, command: str) -> Reconciled:
    done = Reconciled(cursor.app_id, objects_read=cursor.is_too_old)
    try:
        for event in _events(cursor, services, command):
            services.stop.check()
            done = _receive(done, event, services)
        _execute(_MOVE, cursor, services, until=cursor.now)
    except Exception as error:
        # An app that we can't handle, or of which a row is locked, must not keep the others waiting.
        _leave(cursor, services)
        return replace(done, error=_explain(cursor, error))
    return done


def _leave(cursor: HeldCursor, services: Services) -> None:
    """Let the app go; if that fails, the lease lapses by itself."""
    try:
        _execute(_RELEASE, cursor, services)
    except DATABASE_ERRORS:
        log.warning("the lease of the cursor of app %s could not be ended; it lapses by itself", cursor.app_id)


def _receive(done: Reconciled, event: Event | None, services: Services) -> Reconciled:
    """Receive what was listed, and count it; None is no event."""
    if event is None:
        return replace(done, listed=done.listed + 1, unreadable=done.unreadable + 1)
    receipt = receive_event(event, app_id=done.app_id, services=services)
    return replace(done, listed=done.listed + 1, stored=done.stored + (receipt.outcome is Outcome.STORED))


def _explain(cursor: HeldCursor, error: Exception) -> str:
    if isinstance(error, ServiceError):
        return reason_of(error) or error.sentence
    if isinstance(error, Stopping):
        return str(error)
    if is_database_outage(error):
        return DATABASE_TOO_SLOW
    log.error("app %s can't be reconciled", cursor.app_id, exc_info=error)
    return f"unexpected {type(error).__name__}, see the log"


def _events(cursor: HeldCursor, services: Services, command: str) -> Iterator[Event | None]:
    """What may have been missed; None for each thing that Stripe lists and that is no event."""

    def new_context() -> CallContext:
        _extend(cursor, services)
        return command_context(command, services)

    for start in range(0, len(EVENT_TYPES), MAX_TYPES):
        types = list(EVENT_TYPES[start : start + MAX_TYPES])
        filters = {"types": types, "created": {"gte": int(cursor.since.timestamp())}}
        for listed in services.stripe.list_as_shown(EVENTS, cursor.app_id, filters, new_context=new_context):
            yield _readable(listed, cursor)
    if cursor.is_too_old:
        yield from read_object_events(cursor.app_id, since=cursor.since, services=services, new_context=new_context)


def _readable(listed: object, cursor: HeldCursor) -> Event | None:
    try:
        return read_event(listed)
    except NotAnEvent:
        log.warning("Stripe lists %r for app %s, which is no event", id_of(listed), cursor.app_id)
        return None


class CursorLost(ServiceError):
    """Another process reconciles the app by now."""

    code = "cursor_lost"

    def __init__(self) -> None:
        super().__init__("another process has it")


def _extend(cursor: HeldCursor, services: Services) -> None:
    if not _execute(_EXTEND, cursor, services, lease=lease_of(services)):
        raise CursorLost


def _execute(batch: Batch, cursor: HeldCursor, services: Services, **values: Any) -> list[Any]:
    return services.database.run(batch, of_app=cursor.app_id, token=cursor.token, **values)
