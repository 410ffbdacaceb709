"""The outbox: what an app is told of a change is written by the transaction that makes the change.

With it comes a delivery for each endpoint that there is. No event is ever without its deliveries, and whatever ends
the transaction ends both.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Select, Text, Uuid, any_, bindparam, func, or_, select
from sqlalchemy.dialects.postgresql import JSONB, insert

from app.models import AppEvent, AppEventType, Delivery, EventEndpoint

ADD_EVENT = insert(AppEvent).values(
    id=bindparam("event_id", type_=Uuid),
    type=bindparam("type", type_=Text),
    app_id=bindparam("app_id", type_=Text),
    payment_id=bindparam("payment_id", type_=Uuid),
    subscription_id=bindparam("subscription_id", type_=Text),
    state_number=bindparam("state_number", type_=BigInteger),
    data=bindparam("data", type_=JSONB),
)
# The number that the statement before has given.
_number = func.lastval()
# An endpoint that is being deleted is waited for, and then not told.
_listening: Select[Any] = (
    select(_number, EventEndpoint.id, bindparam("subject", type_=Text))
    .where(
        EventEndpoint.app_id == bindparam("app_id", type_=Text),
        EventEndpoint.disabled_at.is_(None),
        or_(EventEndpoint.types.is_(None), bindparam("type", type_=Text) == any_(EventEndpoint.types)),
    )
    .with_for_update(read=True, key_share=True, of=EventEndpoint)
)
_was_added = select(AppEvent.number).where(AppEvent.number == _number).exists()
_DELIVERY_COLUMNS = ["event_number", "endpoint_id", "subject"]

# Two statements: an event, and a delivery of it to whoever listens.
TELL = (ADD_EVENT, insert(Delivery).from_select(_DELIVERY_COLUMNS, _listening))
# Where the event's id says what is told: by whichever path Stripe's event comes, and however often.
TELL_ONCE = (
    ADD_EVENT.on_conflict_do_nothing(),
    insert(Delivery).from_select(_DELIVERY_COLUMNS, _listening.where(_was_added)),
)


def told_of_payment(
    types: Sequence[AppEventType], *, payment_id: uuid.UUID, state_number: int, data: dict[str, Any]
) -> list[dict[str, Any]]:
    """The values for `TELL`, besides the app's id, once for each type."""
    about = {"payment_id": payment_id, "state_number": state_number}
    return [_values(uuid.uuid4(), each, str(payment_id), data) | about for each in types]


def told_of_subscription(
    types: Sequence[AppEventType], *, subscription_id: str, state_number: int, data: dict[str, Any]
) -> list[dict[str, Any]]:
    """The values for `TELL`, besides the app's id, once for each type."""
    about = {"subscription_id": subscription_id, "state_number": state_number}
    return [_values(uuid.uuid4(), each, subscription_id, data) | about for each in types]


def told_of_payment_method(
    event_id: uuid.UUID, event_type: AppEventType, *, payment_method_id: str, data: dict[str, Any]
) -> dict[str, Any]:
    """The values for `TELL_ONCE`, besides the app's id."""
    return _values(event_id, event_type, payment_method_id, data)


def told_of_ping(event_id: uuid.UUID) -> dict[str, Any]:
    """The values for `ADD_EVENT`, besides the app's id: it is about nothing but itself."""
    return _values(event_id, AppEventType.PING, str(event_id), {})


def _values(event_id: uuid.UUID, event_type: AppEventType, subject: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "type": event_type,
        "subject": subject,
        "payment_id": None,
        "subscription_id": None,
        "state_number": None,
        "data": data,
    }
