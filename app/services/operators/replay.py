"""Folding stored events again: a release may bring another rule, or a mended one, of what a payment has become.

Payments are read in pages and folded in memory, without a lock. Only one whose row says something else is locked and
folded once more, as an event of its own would do, so this can run beside everything else.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Uuid, any_, bindparam, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

from app.database import Batch
from app.models import Payment, StripeEvent
from app.services import Services
from app.services.events.fold import FACTS, changes_of, projection_of
from app.services.events.receive import fold_again
from app.services.events.subscriptions import TAKE_UP
from app.services.operators.payments import show_payment

PAGE = 100
_FIRST = uuid.UUID(int=0)

_by_id = select(Payment.id).where(Payment.id > bindparam("after", type_=Uuid)).order_by(Payment.id).limit(PAGE)
_IDS = Batch(_by_id)
_FACTS = Batch(FACTS.where(Payment.id == any_(bindparam("ids", type_=ARRAY(Uuid)))).order_by(Payment.id))

_place = tuple_(StripeEvent.received_at, StripeEvent.id, StripeEvent.app_id)
_RECEIVED = Batch(
    select(StripeEvent.received_at, StripeEvent.id, StripeEvent.app_id, StripeEvent.payment_id)
    .where(
        StripeEvent.payment_id.is_not(None),
        StripeEvent.received_at < bindparam("until", type_=TIMESTAMP(timezone=True)),
        _place > tuple_(bindparam("after", type_=TIMESTAMP(timezone=True)), bindparam("id"), bindparam("app_id")),
    )
    .order_by(StripeEvent.received_at, StripeEvent.id, StripeEvent.app_id)
    .limit(PAGE)
)


@dataclass(frozen=True)
class Replayed:
    """A page of payments that were folded again.

    :param payments: how many they are
    :param changes: by payment, the columns that are another now: what each was, and what it is
    :param resume_after: where to go on: a payment's id, or the time when an event was received
    """

    payments: int
    changes: Mapping[uuid.UUID, Mapping[str, tuple[Any, Any]]]
    resume_after: uuid.UUID | datetime


def replay_payment(payment_id: uuid.UUID, *, services: Services) -> Replayed:
    """Fold one payment again, with what waits for it.

    :raises NotFound: when there is no such payment.
    """
    show_payment(payment_id, services=services)
    changes = fold_again(payment_id, services=services).changes
    return Replayed(1, {payment_id: changes} if changes else {}, payment_id)


def replay_all(*, after: uuid.UUID | None, services: Services) -> Iterator[Replayed]:
    """Fold all payments again, page by page, by their ids.

    :param after: only those with a greater id: where an earlier pass was stopped
    """
    last_id = after or _FIRST
    while rows := services.database.run(_IDS, after=last_id):
        last_id = rows[-1].id
        yield _replay([row.id for row in rows], last_id, services)


def replay_since(since: datetime, *, until: datetime, services: Services) -> Iterator[Replayed]:
    """Fold the payments with events received in a span of time again, page by page of those events.

    A payment is folded once for each page that holds an event of its own.
    """
    place: dict[str, Any] = {"after": since, "id": "", "app_id": ""}
    while events := services.database.run(_RECEIVED, until=until, **place):
        last = events[-1]
        place = {"after": last.received_at, "id": last.id, "app_id": last.app_id}
        yield _replay(sorted({event.payment_id for event in events}), last.received_at, services)


def _replay(payment_ids: Sequence[uuid.UUID], resume_after: uuid.UUID | datetime, services: Services) -> Replayed:
    facts = groupby(services.database.run(_FACTS, ids=list(payment_ids)), key=lambda row: row.payment_id)
    differing = [payment_id for payment_id, rows in facts if _differs(list(rows))]
    folded = {payment_id: fold_again(payment_id, services=services).changes for payment_id in differing}
    # Those that began before subscriptions were followed.
    services.database.run(TAKE_UP, ids=list(payment_ids))
    return Replayed(len(payment_ids), {key: changes for key, changes in folded.items() if changes}, resume_after)


def _differs(rows: Sequence[Any]) -> bool:
    projection = projection_of(rows)
    return projection is not None and bool(changes_of(rows[0], projection) or projection.foreign_event_ids)
