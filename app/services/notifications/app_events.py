"""The events that apps are told, as they are shown and sent; and sending one again."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Text, Uuid, any_, bindparam, func, null, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import aliased

from app.database import Batch
from app.errors import InvalidRequest, NotFound
from app.models import AppEvent, Delivery, DeliveryState, Payment, Subscription
from app.services import Services
from app.services.reports.status import SHOWN
from app.services.reports.subscriptions import SHOWN as SHOWN_SUBSCRIPTION

_app_id: Any = bindparam("app_id", type_=Text)
_type: Any = bindparam("type", type_=Text)
_payment_id: Any = bindparam("payment_id", type_=Uuid)
_before: Any = bindparam("before", type_=BigInteger)

EVENT = (
    AppEvent.number,
    AppEvent.id.label("event_id"),
    AppEvent.type,
    AppEvent.created_at,
    AppEvent.payment_id,
    AppEvent.subscription_id,
    AppEvent.data,
)
_LIST = Batch(
    select(*EVENT)
    .where(
        AppEvent.app_id == _app_id,
        or_(_type.is_(None), AppEvent.type == _type),
        or_(_payment_id.is_(None), AppEvent.payment_id == _payment_id),
        or_(_before.is_(None), AppEvent.number < _before),
    )
    .order_by(AppEvent.number.desc())
    .limit(bindparam("limit"))
)
_FIND = Batch(
    select(AppEvent.number).where(
        AppEvent.id == bindparam("event_id", type_=Uuid), or_(_app_id.is_(None), AppEvent.app_id == _app_id)
    )
)
_DELIVERIES = Batch(
    select(
        Delivery.event_number,
        Delivery.endpoint_id,
        Delivery.state,
        Delivery.attempts,
        Delivery.last_status,
        Delivery.last_error,
        Delivery.next_attempt_at,
        Delivery.ended_at,
    )
    .where(Delivery.event_number == any_(bindparam("numbers", type_=ARRAY(BigInteger))))
    .order_by(Delivery.event_number, Delivery.endpoint_id)
)
_SUBSCRIPTIONS = Batch(SHOWN_SUBSCRIPTION.where(Subscription.id == any_(bindparam("ids", type_=ARRAY(Text)))))
_PAYMENTS = Batch(SHOWN.where(Payment.id == any_(bindparam("payment_ids", type_=ARRAY(Uuid)))))


def undelivered(delivery: Any) -> Any:
    """Whether a delivery has not come to its end."""
    return or_(delivery.state == DeliveryState.WAITING, delivery.state == DeliveryState.SENDING)


MAX_LISTED = 1_000
_state: Any = bindparam("state", type_=Text)
_UNDELIVERED = Batch(
    select(
        AppEvent.created_at,
        AppEvent.app_id,
        AppEvent.type,
        AppEvent.id.label("event_id"),
        Delivery.endpoint_id,
        Delivery.state,
        Delivery.attempts,
        Delivery.last_error,
        Delivery.next_attempt_at,
    )
    .join(AppEvent, AppEvent.number == Delivery.event_number)
    .where(
        or_(undelivered(Delivery), Delivery.state == DeliveryState.DEAD),
        or_(_state.is_(None), Delivery.state == _state),
        or_(_app_id.is_(None), AppEvent.app_id == _app_id),
    )
    .order_by(Delivery.event_number.desc(), Delivery.endpoint_id)
    .limit(MAX_LISTED)
)

# No claim that has not seen what is sent again has any of the same subject in hand: each is waited for.
_event_number = bindparam("event_number", type_=BigInteger)
_sent_again = aliased(Delivery)
_hold_subjects = (
    select(Delivery.event_number)
    .join(
        _sent_again,
        (Delivery.endpoint_id == _sent_again.endpoint_id) & (Delivery.subject == _sent_again.subject),
    )
    .where(_sent_again.event_number == _event_number, undelivered(Delivery))
    .order_by(Delivery.endpoint_id, Delivery.event_number)
    .with_for_update(of=Delivery)
)
AGAIN: dict[str, Any] = {
    "state": DeliveryState.WAITING,
    "attempts": 0,
    "next_attempt_at": func.now(),
    "ended_at": null(),
}
_REDELIVER = Batch(
    _hold_subjects,
    update(Delivery)
    .where(Delivery.event_number == _event_number, Delivery.state != DeliveryState.SENDING)
    .values(AGAIN),
)


@dataclass(frozen=True)
class Shown:
    """An event with what it tells, as `AppEventSchema` and `EventBodySchema` describe it."""

    number: int
    event_id: uuid.UUID
    type: str
    created_at: Any
    data: Mapping[str, Any]


def show_events(events: Iterable[Any], *, services: Services) -> dict[int, Shown]:
    """Events by their number, from rows that hold `EVENT`: each with what it is about, as that was then.

    What never changes of a payment or a subscription stands on its own row alone; how a payment's run is tracked is
    told as it stands now.
    """
    rows = list(events)
    payment_ids = sorted({row.payment_id for row in rows if row.payment_id is not None})
    payments = services.database.run(_PAYMENTS, payment_ids=payment_ids) if payment_ids else []
    subscription_ids = sorted({row.subscription_id for row in rows if row.subscription_id is not None})
    subscriptions = services.database.run(_SUBSCRIPTIONS, ids=subscription_ids) if subscription_ids else []
    subjects = {row.id: row._mapping for row in (*payments, *subscriptions)}
    return {row.number: _show(row, subjects.get(row.payment_id or row.subscription_id)) for row in rows}


def _show(event: Any, subject: Mapping[str, Any] | None) -> Shown:
    data = event.data
    if subject is not None:
        name = "subscription" if event.payment_id is None else "payment"
        data = {**data, name: {**subject, **data[name], "updated_at": event.created_at}}
    return Shown(event.number, event.event_id, event.type, event.created_at, data)


def list_events(
    *,
    app_id: str,
    limit: int,
    type: str | None = None,
    payment_id: str | None = None,
    cursor: str | None = None,
    services: Services,
) -> dict[str, Any]:
    """A page of an app's events, newest first, with where each is on its way.

    :raises InvalidRequest: when the cursor is none of ours.
    """
    before = None if cursor is None else _number_of(cursor, app_id, services)
    if cursor is not None and before is None:
        raise InvalidRequest({"cursor": ["Is not one that a page gave."]})
    payment = None if payment_id is None else _read_id(payment_id)
    if payment_id is not None and payment is None:
        return {"events": [], "next_cursor": None}
    values = {"app_id": app_id, "type": type, "payment_id": payment, "before": before}
    # One more than asked for tells whether there is a next page.
    rows = services.database.run(_LIST, **values, limit=limit + 1)
    page = rows[:limit]
    next_cursor = str(page[-1].event_id) if len(rows) > limit else None
    return {"events": _with_deliveries(page, services), "next_cursor": next_cursor}


def _with_deliveries(page: Sequence[Any], services: Services) -> list[dict[str, Any]]:
    shown = show_events(page, services=services)
    deliveries: dict[int, list[dict[str, Any]]] = {number: [] for number in shown}
    for row in services.database.run(_DELIVERIES, numbers=list(shown)):
        is_due = row.ended_at is None
        next_attempt_at = row.next_attempt_at if is_due else None
        deliveries[row.event_number].append({**row._mapping, "next_attempt_at": next_attempt_at})
    return [{**vars(event), "deliveries": deliveries[number]} for number, event in shown.items()]


def list_undelivered(
    *, app_id: str | None = None, state: DeliveryState | None = None, services: Services
) -> list[dict[str, Any]]:
    """What is on its way to apps or was given up, the newest first."""
    return [row._asdict() for row in services.database.run(_UNDELIVERED, app_id=app_id, state=state)]


def redeliver_event(event_id: str, *, app_id: str | None = None, services: Services) -> None:
    """Send an event again to the endpoints that it was made for, as if it had never been tried.

    :raises NotFound: when there is no such event, or it isn't the app's.
    """
    number = _number_of(event_id, app_id, services)
    if number is None:
        raise NotFound("Event not found")
    services.database.run(_REDELIVER, event_number=number)


def _number_of(event_id: str, app_id: str | None, services: Services) -> int | None:
    read = _read_id(event_id)
    found = [] if read is None else services.database.run(_FIND, event_id=read, app_id=app_id)
    return found[0].number if found else None


def _read_id(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
