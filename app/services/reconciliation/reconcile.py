"""Reconciliation: what webhooks may have lost is asked of Stripe, and fed to the same function as a webhook.

Of each app a window of time is read, page by page. Where the reading stops, at an error or at the end of the process,
the next pass goes on in the same window, after the last event that was read; only a window that was read to its end
moves the cursor. Stripe lists the newest first: what it lists after an event is older, so what happens meanwhile
shifts nothing, and is read in the next window.
"""

import logging
import math
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
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
from app.services.events.stripe_event import UNREADABLE, Event, NotAnEvent, read_event, unreadable_event
from app.services.events.stripe_object import id_of
from app.services.operations.operation import LEASE, lease_of, reason_of
from app.services.operations.recovery import DATABASE_TOO_SLOW, command_context
from app.services.reconciliation.object_events import read_object_events
from app.services.stopping import Stopping
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import NoSuchObject, Resource

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
    "customer.deleted",
    "payment_method.attached",
    "payment_method.detached",
    "invoice.payment_action_required",
    "invoice.voided",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "customer.subscription.trial_will_end",
)

OnPage = Callable[[str, float], None]


@dataclass(frozen=True)
class Reconciled:
    """What the reconciliation of an app came to.

    :param listed: how many events Stripe listed, or its objects were turned into
    :param stored: how many of them were new
    :param unreadable: how many things Stripe listed that are no events; each is stored as it came, and hid no other
    :param objects_read: whether Stripe's objects were read, since it lists the events no more
    """

    app_id: str
    listed: int = 0
    stored: int = 0
    unreadable: int = 0
    objects_read: bool = False
    error: str | None = None


@dataclass
class Window:
    """A span of time in which events may have been missed, and how far the reading of it has come.

    :param since: where it begins; only this bounds the list, whose later end is where the reading of it began
    :param until: up to when events were read, once all of it is read
    :param types_left: the types of events to ask for, of which the first `MAX_TYPES` are being read
    :param last_event_id: the last event of these that was received; those listed after it are left
    :param read_back_to: when that event was created, in seconds since 1970, where this pass has received it
    """

    since: datetime
    until: datetime
    types_left: list[str] = field(default_factory=lambda: list(EVENT_TYPES))
    last_event_id: str | None = None
    read_back_to: int | None = None

    @property
    def share_left(self) -> float:
        """How much of it is left to read, from 1 to 0, as far as the times of events tell."""
        since, until = self.since.timestamp(), self.until.timestamp()
        read = (until - (self.read_back_to or until)) / (until - since)
        types_read = min(MAX_TYPES, len(self.types_left)) * min(1.0, max(0.0, read))
        return (len(self.types_left) - types_read) / len(EVENT_TYPES)

    @property
    def filters(self) -> dict[str, Any]:
        """What Stripe is asked for next. https://docs.stripe.com/api/events/list"""
        filters = {"types": self.types_left[:MAX_TYPES], "created": {"gte": int(self.since.timestamp())}}
        return filters | ({"starting_after": self.last_event_id} if self.last_event_id else {})

    def pass_over(self, event: Event) -> None:
        """Go on behind an event that was received."""
        self.last_event_id, self.read_back_to = event.id, event.created

    def end_types(self) -> None:
        """Go on to the next types."""
        self.types_left, self.last_event_id, self.read_back_to = self.types_left[MAX_TYPES:], None, None

    def place(self) -> dict[str, Any]:
        """The columns that keep it; where nothing was read yet, a later pass may as well read up to a later time."""
        if self.last_event_id is None and len(self.types_left) == len(EVENT_TYPES):
            return NOWHERE
        return {
            "window_since": self.since,
            "window_until": self.until,
            "types_left": self.types_left,
            "last_event_id": self.last_event_id,
        }


@dataclass(frozen=True)
class HeldCursor:
    """An app whose reconciliation this process has to itself."""

    app_id: str
    token: uuid.UUID
    now: datetime
    window: Window

    @property
    def is_too_old(self) -> bool:
        """Whether events may have been missed that Stripe lists no more."""
        return self.window.since < self.now - EVENTS_LISTED


# One entry of the index for each app, however many payments it has.
_first_app = select(func.min(Payment.app_id).label("app_id")).cte("apps", recursive=True)
_next_app = (
    select(func.min(Payment.app_id)).where(Payment.app_id > _first_app.c.app_id).correlate(_first_app).scalar_subquery()
)
_apps = _first_app.union_all(select(_next_app).where(_first_app.c.app_id.is_not(None)))
_APPS = Batch(select(_apps.c.app_id).where(_apps.c.app_id.is_not(None)))

_WINDOW = ("window_since", "window_until", "types_left", "last_event_id")
_window_columns = [getattr(EventCursor, name) for name in _WINDOW]
_kept_place = {column.key: bindparam(column.key, type_=column.type) for column in _window_columns}
NOWHERE = dict.fromkeys(_WINDOW)

_new_cursor = insert(EventCursor).values(app_id=bindparam("app_id"), lease_token=bindparam("token"), lease_until=LEASE)
_CLAIM = Batch(
    _new_cursor.on_conflict_do_update(
        index_elements=[EventCursor.app_id],
        set_={"lease_token": _new_cursor.excluded.lease_token, "lease_until": _new_cursor.excluded.lease_until},
        where=EventCursor.lease_until <= func.now(),
    ).returning(EventCursor.reconciled_until, *_window_columns, func.now().label("now"))
)

_FIRST_PAYMENT = Batch(
    select(func.min(Payment.created_at).label("created_at")).where(Payment.app_id == bindparam("app_id"))
)

_is_held = (EventCursor.app_id == bindparam("of_app")) & (EventCursor.lease_token == bindparam("token"))
_EXTEND = Batch(
    update(EventCursor).where(_is_held).values(_kept_place | {"lease_until": LEASE}).returning(EventCursor.app_id)
)
_RELEASE = Batch(update(EventCursor).where(_is_held).values(_kept_place | {"lease_until": func.now()}))
# Where the version before works beside this one, it may have moved the cursor further meanwhile.
_MOVE = Batch(
    update(EventCursor)
    .where(_is_held)
    .values(
        NOWHERE
        | {
            "reconciled_until": func.greatest(EventCursor.reconciled_until, bindparam("until")),
            "lease_until": func.now(),
        }
    )
)


def reconcile_apps(
    services: Services,
    *,
    command: str,
    again_after_seconds: float = math.inf,
    on_page: OnPage = lambda app_id, share_left: None,
) -> Iterator[Reconciled]:
    """Ask Stripe for what every app with payments may have missed; an app that fails doesn't stop the others.

    :param again_after_seconds: when the others have another turn while an app takes longer than that
    :param on_page: told before each page which app it is of, and how much of it is left, from 1 to 0
    """
    app_ids, listed_at = iter(find_apps(services)), time.monotonic()

    def claim(_: InHand) -> Work[Reconciled] | None:
        nonlocal app_ids, listed_at
        # An app is one piece of work, so none has more than one place.
        for app_id in app_ids:
            if cursor := _claim(app_id, services):
                return Work(app_id, partial(_reconcile_app, cursor, services, command, on_page))
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
    return HeldCursor(app_id, token, row.now, _left_window(row) or _new_window(row, app_id, services))


def _left_window(row: Any) -> Window | None:
    """The window that a pass before left in its middle."""
    return row.window_until and Window(row.window_since, row.window_until, row.types_left, row.last_event_id)


def _new_window(row: Any, app_id: str, services: Services) -> Window:
    # An app that was never reconciled may have missed whatever happened since its first payment.
    since = row.reconciled_until or services.database.run(_FIRST_PAYMENT, app_id=app_id)[0].created_at
    return Window(since - OVERLAP, row.now)


def _reconcile_app(cursor: HeldCursor, services: Services, command: str, on_page: OnPage) -> Reconciled:
    done = Reconciled(cursor.app_id, objects_read=cursor.is_too_old)
    try:
        for event in _events(cursor, services, command, on_page):
            services.stop.check()
            done = _receive(done, event, services)
        _execute(_MOVE, cursor, services, until=cursor.window.until)
    except Exception as error:
        # An app that we can't handle, or of which a row is locked, must not keep the others waiting.
        _leave(cursor, services, is_lost=isinstance(error, NoSuchObject))
        return replace(done, error=_explain(cursor, error))
    return done


def _leave(cursor: HeldCursor, services: Services, *, is_lost: bool) -> None:
    """Let the app go, for a pass that goes on where this one stopped; if that fails, the lease lapses by itself.

    :param is_lost: Stripe no longer lists the event after which to go on, so that the window is begun anew
    """
    try:
        _execute(_RELEASE, cursor, services, **(NOWHERE if is_lost else cursor.window.place()))
    except DATABASE_ERRORS:
        log.warning("the lease of the cursor of app %s could not be ended; it lapses by itself", cursor.app_id)


def _receive(done: Reconciled, event: Event, services: Services) -> Reconciled:
    """Receive what was listed, and count it."""
    receipt = receive_event(event, app_id=done.app_id, services=services)
    return replace(
        done,
        listed=done.listed + 1,
        stored=done.stored + (receipt.outcome is Outcome.STORED),
        unreadable=done.unreadable + (event.type == UNREADABLE),
    )


def _explain(cursor: HeldCursor, error: Exception) -> str:
    if isinstance(error, ServiceError):
        return reason_of(error) or error.sentence
    if isinstance(error, Stopping):
        return str(error)
    if is_database_outage(error):
        return DATABASE_TOO_SLOW
    log.error("app %s can't be reconciled", cursor.app_id, exc_info=error)
    return f"unexpected {type(error).__name__}, see the log"


def _events(cursor: HeldCursor, services: Services, command: str, on_page: OnPage) -> Iterator[Event]:
    """What may have been missed."""

    def new_context() -> CallContext:
        _extend(cursor, services)
        on_page(cursor.app_id, cursor.window.share_left)
        return command_context(command, services)

    window = cursor.window
    while window.types_left:
        for listed in services.stripe.list_as_shown(EVENTS, cursor.app_id, window.filters, new_context=new_context):
            event = _read_listed(listed, cursor)
            yield event
            # Who asks for the next one has received this one. After what is no event, Stripe can't be asked to go on.
            if event.type != UNREADABLE:
                window.pass_over(event)
        window.end_types()
    if cursor.is_too_old:
        yield from read_object_events(cursor.app_id, since=window.since, services=services, new_context=new_context)


def _read_listed(listed: object, cursor: HeldCursor) -> Event:
    """What Stripe listed, as an event; where it is none, as one that keeps it for a person to look at."""
    try:
        return read_event(listed)
    except NotAnEvent:
        log.warning("Stripe lists %r for app %s, which is no event", id_of(listed), cursor.app_id)
        return unreadable_event(listed)


class CursorLost(ServiceError):
    """Another process reconciles the app by now."""

    code = "cursor_lost"

    def __init__(self) -> None:
        super().__init__("another process has it")


def _extend(cursor: HeldCursor, services: Services) -> None:
    """Keep the app, and the place in its window, before a page is asked for."""
    if not _execute(_EXTEND, cursor, services, lease=lease_of(services), **cursor.window.place()):
        raise CursorLost


def _execute(batch: Batch, cursor: HeldCursor, services: Services, **values: Any) -> list[Any]:
    return services.database.run(batch, of_app=cursor.app_id, token=cursor.token, **values)
