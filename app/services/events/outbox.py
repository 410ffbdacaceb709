"""The outbox: what an app is told of a change is written by the transaction that makes the change.

With it comes a delivery for each endpoint that there is. No event is ever without its deliveries, and whatever ends
the transaction ends both.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Text, Uuid, any_, bindparam, func, or_, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert

from app.models import AppEvent, AppEventType, Delivery, EventEndpoint

_event_ids: Any = bindparam("event_ids", type_=ARRAY(Uuid))
_types: Any = bindparam("types", type_=ARRAY(Text))

# One for each type. Numbers are given in the order of the types.
ADD_EVENTS = insert(AppEvent).from_select(
    ["id", "type", "app_id", "payment_id", "subscription_id", "state_number", "data"],
    select(
        func.unnest(_event_ids),
        func.unnest(_types),
        bindparam("app_id", type_=Text),
        bindparam("payment_id", type_=Uuid),
        bindparam("subscription_id", type_=Text),
        bindparam("state_number", type_=BigInteger),
        bindparam("data", type_=JSONB),
    ),
)

# An endpoint that is being deleted is waited for, and then not told.
_listening = (
    select(AppEvent.number, EventEndpoint.id, bindparam("subject", type_=Text))
    .join(EventEndpoint, EventEndpoint.app_id == AppEvent.app_id)
    .where(
        AppEvent.id == any_(_event_ids),
        EventEndpoint.disabled_at.is_(None),
        or_(EventEndpoint.types.is_(None), AppEvent.type == any_(EventEndpoint.types)),
    )
    .with_for_update(read=True, key_share=True, of=EventEndpoint)
)
ADD_DELIVERIES = insert(Delivery).from_select(["event_number", "endpoint_id", "subject"], _listening)

TELL = (ADD_EVENTS, ADD_DELIVERIES)


def told_of_payment(
    types: Sequence[AppEventType], *, payment_id: uuid.UUID, state_number: int, data: dict[str, Any]
) -> dict[str, Any]:
    """The values for `TELL`, besides the app's id."""
    return {
        "event_ids": [uuid.uuid4() for _ in types],
        "types": list(types),
        "subject": str(payment_id),
        "payment_id": payment_id,
        "subscription_id": None,
        "state_number": state_number,
        "data": data,
    }
