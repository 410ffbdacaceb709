"""Folding: a payment's row is locked, its facts are read, and what they come to is written, in one transaction.

Ids that the payment learns go into the table of objects. Events that wait for them are looked for after the commit: of
an event and a payment that become known at the same time, the one that commits last sees the other.
"""

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import BigInteger, Text, Uuid, any_, bindparam, cast, delete, func, null, select, true, update
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP, insert

from app.database import Batch, Transaction
from app.metrics import count_status, count_unknown_value
from app.models import MoneyMovement, Payment, PaymentKind, StripeEvent, StripeObject
from app.services.events.app_event import data_of_change, types_of_change
from app.services.events.outbox import TELL, told_of_payment
from app.services.events.projection import ID_COLUMNS, STATE_COLUMNS, Projection, project
from app.services.events.stripe_event import Event
from app.services.events.stripe_object import renewal_reference
from app.services.events.subscriptions import save_subscription

log = logging.getLogger(__name__)

MAX_VALUE_LENGTH = 40
_payment_id = bindparam("payment_id", type_=Uuid)
_ids: Any = bindparam("ids", type_=ARRAY(Text))

EVENT_COLUMNS = tuple(
    column.label(f"event_{column.key}")
    for column in (StripeEvent.id, StripeEvent.type, StripeEvent.created, StripeEvent.object, StripeEvent.previous)
)

# Two events of one payment wait for each other here. What is read by the second statement is then what the one that
# was waited for has committed. Inserting an event takes a share of this lock, which FOR UPDATE would wait for.
LOCK = select(Payment.id).where(Payment.id == _payment_id).with_for_update(key_share=True)
FACTS = select(
    Payment.id.label("payment_id"),
    Payment.app_id,
    Payment.kind,
    Payment.state_number,
    *(getattr(Payment, name) for name in STATE_COLUMNS),
    *EVENT_COLUMNS,
).outerjoin(StripeEvent, StripeEvent.payment_id == Payment.id)
READ = FACTS.where(Payment.id == _payment_id)
LOCK_AND_READ = Batch(LOCK, READ)

_write = (
    update(Payment)
    .where(Payment.id == _payment_id)
    .values(
        {name: bindparam(name) for name in STATE_COLUMNS}
        | {
            "run_id": func.coalesce(bindparam("run_id"), Payment.run_id),
            "state_number": bindparam("state_number"),
            "updated_at": func.now(),
        }
    )
)

# An object that is another payment's stays so: one invoice can be paid with the intent of two.
_new_ids = select(func.unnest(_ids), bindparam("app_id", type_=Text), _payment_id)
_learn = insert(StripeObject).from_select(["id", "app_id", "payment_id"], _new_ids).on_conflict_do_nothing()
# By whether the payment has learned ids, and whether its app is told.
_WRITE = {
    (False, False): Batch(_write),
    (False, True): Batch(_write, *TELL),
    (True, False): Batch(_write, _learn),
    (True, True): Batch(_write, _learn, *TELL),
}
_TELL = Batch(*TELL)

# A payment's movements are few, and written anew as a whole. The payment's row is locked.
_moved: Any = (
    func.unnest(
        cast(bindparam("times"), ARRAY(TIMESTAMP(timezone=True))),
        cast(bindparam("kinds"), ARRAY(Text)),
        cast(bindparam("amounts"), ARRAY(BigInteger)),
    )
    .table_valued("occurred_at", "kind", "amount_in_cents", with_ordinality="number", name="moved")
    .render_derived()
)
_MOVE = Batch(
    delete(MoneyMovement).where(MoneyMovement.payment_id == _payment_id),
    insert(MoneyMovement).from_select(
        ["payment_id", "app_id", "org_id", "currency", "occurred_at", "kind", "amount_in_cents", "number"],
        select(Payment.id, Payment.app_id, Payment.org_id, bindparam("currency", type_=Text), *_moved.c)
        .select_from(Payment)
        .join(_moved, true())
        .where(Payment.id == _payment_id),
    ),
)

_DETACH = Batch(
    update(StripeEvent)
    .where(StripeEvent.payment_id == _payment_id, StripeEvent.id == any_(_ids))
    .values(payment_id=null())
)


@dataclass(frozen=True)
class Folded:
    """What a fold came to.

    :param learned: the ids that the payment has learned, for which other events may wait
    :param changes: of each column that is another now, what it was and what it is
    """

    learned: Sequence[str] = ()
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


def fold_and_commit(transaction: Transaction, rows: Sequence[Any], *, run_id: str | None = None) -> Folded:
    """Bring a payment's row up to date with its facts: the last thing that a transaction does.

    :param rows: what `READ` has selected, after `LOCK`
    :param run_id: the run that the payment's cost is on, where that was not known before
    """
    projection = projection_of(rows)
    if projection is None:
        return Folded()
    if rows[0].kind == PaymentKind.CHECKOUT_SESSION:
        subscription_id = projection.state.stripe_subscription_id
        save_subscription(transaction, rows[0].payment_id, subscription_id, events_of(rows), app_id=rows[0].app_id)
    return _save_and_commit(transaction, rows[0], projection, run_id)


def projection_of(rows: Sequence[Any]) -> Projection | None:
    """What a payment has become, by the facts that rows of `FACTS` hold; None before Stripe has made anything."""
    return project(rows[0].payment_id, PaymentKind(rows[0].kind), events_of(rows))


def changes_of(payment: Any, projection: Projection) -> dict[str, tuple[Any, Any]]:
    """Of each column in which a payment's row differs from its projection, what the row says and what it should."""
    state = asdict(projection.state)
    return {name: (getattr(payment, name), now) for name, now in state.items() if getattr(payment, name) != now}


def events_of(rows: Sequence[Any]) -> list[Event]:
    """The events in rows that hold `EVENT_COLUMNS` beside the columns of their payment; one without any has no id."""
    return [
        Event(row.event_id, row.event_type, row.event_created, row.event_object, row.event_previous)
        for row in rows
        if row.event_id is not None
    ]


def _save_and_commit(transaction: Transaction, payment: Any, projection: Projection, run_id: str | None) -> Folded:
    _tell_of_unknown_values(projection)
    changes = changes_of(payment, projection)
    learned = sorted(projection.own_ids - {getattr(payment, name) for name in ID_COLUMNS})
    if projection.foreign_event_ids:
        transaction.run(_DETACH, payment_id=payment.payment_id, ids=list(projection.foreign_event_ids))
    if not (changes or learned):
        return Folded()
    if "status" in changes:
        count_status(projection.state.status)
    if "movements_digest" in changes:
        _write_movements(transaction, payment.payment_id, projection)
    types = types_of_change(payment, projection.state)
    about = {"payment_id": payment.payment_id, "state_number": payment.state_number + bool(types)}
    # There is seldom more than one.
    *earlier, last = told_of_payment(types, **about, data=data_of_change(payment, projection.state)) or [about]
    for told in earlier:
        transaction.run(_TELL, app_id=payment.app_id, **told)
    ours = {"app_id": payment.app_id, "run_id": run_id, "ids": learned}
    transaction.run_and_commit(_WRITE[bool(learned), bool(types)], **ours, **last, **asdict(projection.state))
    return Folded([*learned, *_renewals_of(changes)], changes)


def _renewals_of(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """By what renewals wait for a subscription that a payment has learned."""
    _, subscription_id = changes.get("stripe_subscription_id", (None, None))
    return [renewal_reference(subscription_id)] if subscription_id else []


def _write_movements(transaction: Transaction, payment_id: uuid.UUID, projection: Projection) -> None:
    transaction.run(
        _MOVE,
        payment_id=payment_id,
        currency=projection.state.currency,
        times=[movement.occurred_at for movement in projection.movements],
        kinds=[movement.kind for movement in projection.movements],
        amounts=[movement.amount_in_cents for movement in projection.movements],
    )


# What was logged by this process: a value is worth one line, however many events hold it.
_logged: set[tuple[str, str]] = set()
MAX_LOGGED = 1_000


def _tell_of_unknown_values(projection: Projection) -> None:
    for name, value in projection.unknown_values:
        count_unknown_value(name)
        if (name, value) not in _logged and len(_logged) < MAX_LOGGED:
            _logged.add((name, value))
            log.warning("Stripe says %s is %r, which we don't know", name, value[:MAX_VALUE_LENGTH])
