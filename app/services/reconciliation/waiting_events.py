"""Waiting events: those that found no payment are looked at again, and deleted when none learns their ids."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, delete, func, select, tuple_
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.exc import DBAPIError

from app.database import Batch
from app.errors import is_lock_conflict
from app.models import StripeEvent
from app.services import Services
from app.services.events.receive import adopt, find_waited_for

UNMATCHED_KEPT = timedelta(days=90)
BATCH = 500

# Events that found no payment may belong to one that learned their ids in the very moment of a crash.
_WAITING = Batch(
    select(StripeEvent.app_id, StripeEvent.id, StripeEvent.refs, StripeEvent.received_at)
    .where(
        StripeEvent.payment_id.is_(None),
        tuple_(StripeEvent.received_at, StripeEvent.id, StripeEvent.app_id)
        > tuple_(bindparam("after", type_=TIMESTAMP(timezone=True)), bindparam("after_id"), bindparam("after_app")),
    )
    .order_by(StripeEvent.received_at, StripeEvent.id, StripeEvent.app_id)
    .limit(BATCH)
)
# An event that is being joined is locked and passed over. Waiting for it, in whatever order rows are found here, would
# be a deadlock where the one that joins waits for another of these.
_old = (
    select(StripeEvent.app_id, StripeEvent.id)
    .where(StripeEvent.payment_id.is_(None), StripeEvent.received_at < func.now() - UNMATCHED_KEPT)
    .limit(BATCH)
    .with_for_update(skip_locked=True)
    .cte("old")
)
_DELETE = Batch(
    delete(StripeEvent)
    .where(tuple_(StripeEvent.app_id, StripeEvent.id).in_(select(_old.c.app_id, _old.c.id)))
    .returning(StripeEvent.id)
)


@dataclass(frozen=True)
class Rejoined:
    """What a look at a batch of waiting events came to.

    :param joined: how many payments were given events
    :param put_off: the payments that another transaction held; their events wait for the next look
    """

    joined: int
    put_off: tuple[uuid.UUID, ...] = ()


def rejoin_waiting_events(services: Services, *, since: datetime | None = None) -> Iterator[Rejoined]:
    """Look once more for the payments of events that have none, batch by batch; yield what each batch came to.

    :param since: only events received since then
    """
    after = {"after": since or datetime.min.replace(tzinfo=UTC), "after_id": "", "after_app": ""}
    while events := services.database.run(_WAITING, **after):
        refs = sorted({ref for event in events for ref in event.refs})
        yield _rejoin(find_waited_for(refs, services=services), services)
        last = events[-1]
        after = {"after": last.received_at, "after_id": last.id, "after_app": last.app_id}


def _rejoin(waited_for: Sequence[Any], services: Services) -> Rejoined:
    """Give payments the events that wait for them; one that is locked must not keep the others waiting."""
    put_off = []
    for owner in waited_for:
        try:
            adopt(owner.payment_id, owner.ids, services=services)
        except DBAPIError as error:
            if not is_lock_conflict(error):
                raise
            put_off.append(owner.payment_id)
    return Rejoined(len(waited_for) - len(put_off), tuple(put_off))


def delete_old_waiting_events(services: Services) -> Iterator[int]:
    """Delete events that found no payment for 90 days, batch by batch; yield how many each held."""
    while deleted := services.database.run(_DELETE):
        yield len(deleted)
