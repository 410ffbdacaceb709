"""Waiting events: those that found no payment are looked at again, and deleted when none learns their ids."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from sqlalchemy import bindparam, delete, func, select, tuple_
from sqlalchemy.dialects.postgresql import TIMESTAMP

from app.database import Batch
from app.models import StripeEvent
from app.services import Services
from app.services.events.receive import adopt_events_that_wait_for

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
_DELETE = Batch(
    delete(StripeEvent)
    .where(
        # Asked again: one may have been joined since it was found.
        StripeEvent.payment_id.is_(None),
        tuple_(StripeEvent.app_id, StripeEvent.id).in_(
            select(StripeEvent.app_id, StripeEvent.id)
            .where(StripeEvent.payment_id.is_(None), StripeEvent.received_at < func.now() - UNMATCHED_KEPT)
            .limit(BATCH)
        ),
    )
    .returning(StripeEvent.id)
)


def rejoin_waiting_events(services: Services, *, since: datetime | None = None) -> Iterator[int]:
    """Look once more for the payments of events that have none, batch by batch; yield how many payments were found.

    :param since: only events received since then
    """
    after = {"after": since or datetime.min.replace(tzinfo=UTC), "after_id": "", "after_app": ""}
    while events := services.database.run(_WAITING, **after):
        refs = sorted({ref for event in events for ref in event.refs})
        yield len(adopt_events_that_wait_for(refs, services=services))
        last = events[-1]
        after = {"after": last.received_at, "after_id": last.id, "after_app": last.app_id}


def delete_old_waiting_events(services: Services) -> Iterator[int]:
    """Delete events that found no payment for 90 days, batch by batch; yield how many each held."""
    while deleted := services.database.run(_DELETE):
        yield len(deleted)
