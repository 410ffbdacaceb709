"""The outbox: what an app is told of a change is written by the transaction that makes the change.

With it comes a delivery for each endpoint that there is. No event is ever without its deliveries, and whatever ends
the transaction ends both.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Text, Uuid, any_, bindparam, func, or_, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, Insert, insert

from app.models import AppEvent, AppEventType, Delivery, EventEndpoint

# One for each type. Numbers are given in the order of the types.
ADD_EVENTS = insert(AppEvent).from_select(
    ["id", "type", "app_id", "payment_id", "subscription_id", "state_number", "data"],
    select(
        func.unnest(bindparam("event_ids", type_=ARRAY(Uuid))),
        func.unnest(bindparam("types", type_=ARRAY(Text))),
        bindparam("app_id", type_=Text),
        bindparam("payment_id", type_=Uuid),
        bindparam("subscription_id", type_=Text),
        bindparam("state_number", type_=BigInteger),
        bindparam("data", type_=JSONB),
    ),
)


def _tell(adding: Insert) -> Insert:
    """Add events, and a delivery of each to whoever listens."""
    told = adding.returning(AppEvent.number, AppEvent.app_id, AppEvent.type).cte("told")
    # An endpoint that is being deleted is waited for, and then not told.
    listening = (
        select(told.c.number, EventEndpoint.id, bindparam("subject", type_=Text))
        .join(EventEndpoint, EventEndpoint.app_id == told.c.app_id)
        .where(
            EventEndpoint.disabled_at.is_(None),
            or_(EventEndpoint.types.is_(None), told.c.type == any_(EventEndpoint.types)),
        )
        .with_for_update(read=True, key_share=True, of=EventEndpoint)
    )
    return insert(Delivery).from_select(["event_number", "endpoint_id", "subject"], listening)


TELL = _tell(ADD_EVENTS)
# Where the event's id says what is told: by whichever path Stripe's event comes, and however often.
TELL_ONCE = _tell(ADD_EVENTS.on_conflict_do_nothing())


def told_of_payment(
    types: Sequence[AppEventType], *, payment_id: uuid.UUID, state_number: int, data: dict[str, Any]
) -> dict[str, Any]:
    """The values for `TELL`, besides the app's id."""
    ids = [uuid.uuid4() for _ in types]
    return _values(ids, types, str(payment_id), data) | {"payment_id": payment_id, "state_number": state_number}


def told_of_subscription(
    types: Sequence[AppEventType], *, subscription_id: str, state_number: int, data: dict[str, Any]
) -> dict[str, Any]:
    """The values for `TELL`, besides the app's id."""
    ids = [uuid.uuid4() for _ in types]
    return _values(ids, types, subscription_id, data) | {
        "subscription_id": subscription_id,
        "state_number": state_number,
    }


def told_of_payment_method(
    event_id: uuid.UUID, event_type: AppEventType, *, payment_method_id: str, data: dict[str, Any]
) -> dict[str, Any]:
    """The values for `TELL_ONCE`, besides the app's id."""
    return _values([event_id], [event_type], payment_method_id, data)


def _values(
    event_ids: Sequence[uuid.UUID], types: Sequence[AppEventType], subject: str, data: dict[str, Any]
) -> dict[str, Any]:
    return {
        "event_ids": list(event_ids),
        "types": list(types),
        "subject": subject,
        "payment_id": None,
        "subscription_id": None,
        "state_number": None,
        "data": data,
    }
