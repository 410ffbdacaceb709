"""Receiving Stripe's events: each is stored once, joined to its payment, and folded into what that has become.

An event's payment is known by the table of objects, or hinted at by metadata. An event that finds neither waits; it
looks once more after its own commit, and a payment that learns an id looks for events that wait for it.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Text,
    Uuid,
    any_,
    bindparam,
    case,
    cast,
    exists,
    func,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, array, insert

from app.database import Batch, Transaction
from app.metrics import count_event
from app.models import Payment, PaymentKind, StripeEvent, StripeObject
from app.services import Services
from app.services.events.accounts import is_foreign, lead_of, may_touch
from app.services.events.customers import forget_customer
from app.services.events.fold import LOCK, LOCK_AND_READ, READ, Folded, fold_and_commit
from app.services.events.payment_methods import tell_of_payment_method
from app.services.events.projection import ID_COLUMNS
from app.services.events.renewals import begin_renewal, begin_waiting_renewals
from app.services.events.stripe_event import Event
from app.services.events.stripe_object import dig, references, renewal_reference, text_of


class Outcome(StrEnum):
    """What became of an event that was received."""

    STORED = "stored"
    DUPLICATE = "duplicate"


@dataclass(frozen=True)
class Receipt:
    """What became of an event, and the payment that it was joined to."""

    outcome: Outcome
    payment_id: uuid.UUID | None


_refs: Any = bindparam("refs", type_=ARRAY(Text))
_ids: Any = bindparam("ids", type_=ARRAY(Text))
_app_id: Any = bindparam("app_id", type_=Text)
_event_id: Any = bindparam("event_id", type_=Text)
_payment_id: Any = bindparam("payment_id", type_=Uuid)

# The payment of the first of an event's ids that is known: its own id before what it belongs to.
_owner = (
    select(StripeObject.payment_id)
    .where(StripeObject.id == any_(_refs), may_touch(func.coalesce(_app_id, ""), StripeObject.app_id))
    .order_by(func.array_position(_refs, StripeObject.id))
    .limit(1)
    .scalar_subquery()
)
_new_event = select(
    func.coalesce(_app_id, ""),
    _event_id,
    _owner,
    bindparam("type", type_=Text),
    bindparam("created", type_=BigInteger),
    bindparam("object", type_=JSONB),
    bindparam("previous", type_=JSONB(none_as_null=True)),
    _refs,
    bindparam("api_version", type_=Text),
)
_is_known_to_all = exists().where(StripeEvent.app_id.in_(["", lead_of(_app_id)]), StripeEvent.id == _event_id)
_EVENT_COLUMNS = ["app_id", "id", "payment_id", "type", "created", "object", "previous", "refs", "api_version"]
# An event is stored once by each path, and not by an app's where a path has brought it that all share, or all of its
# account: that is Stripe's own word, which an app's path may not be. Nothing comes back for one that is not stored.
_STORE = Batch(
    insert(StripeEvent)
    .from_select(_EVENT_COLUMNS, _new_event.where(or_(_app_id.is_(None), not_(_is_known_to_all))))
    .on_conflict_do_nothing()
    .returning(StripeEvent.app_id, StripeEvent.payment_id)
)

_store_answer = (
    insert(StripeEvent)
    .values({name: bindparam(name) for name in _EVENT_COLUMNS} | {"id": _event_id})
    .on_conflict_do_nothing()
)
_STORE_ANSWER = Batch(_store_answer, LOCK, READ)


def _hinted(own_id: Any) -> Batch:
    return Batch(
        update(StripeEvent)
        .where(
            StripeEvent.app_id == _app_id,
            StripeEvent.id == _event_id,
            Payment.id == _payment_id,
            may_touch(_app_id, Payment.app_id),
            Payment.kind == PaymentKind.CHECKOUT_SESSION,
            own_id.is_(None),
        )
        .values(payment_id=Payment.id)
        .returning(StripeEvent.payment_id)
    )


# A failed try on Stripe's page is told before anything says which intent, or which subscription, is the checkout's own.
# Until the payment knows it, metadata may hint at it: anyone with the app's key can write that.
_JOIN_HINTED = {
    "payment_intent": _hinted(Payment.stripe_payment_intent_id),
    "invoice": _hinted(Payment.stripe_subscription_id),
}

# Which payments know one of these ids, while an event waits for it. What waits is counted, for which the index on its
# ids is read: for EXISTS, the planner expects to find one soon among all that waits.
_waiting = (
    select(func.count())
    .where(
        StripeEvent.payment_id.is_(None),
        StripeEvent.refs.overlap(array([cast(StripeObject.id, Text)])),
        may_touch(StripeEvent.app_id, StripeObject.app_id),
    )
    .correlate(StripeObject)
    .scalar_subquery()
)
_WAITED_FOR = Batch(
    select(StripeObject.payment_id, func.array_agg(StripeObject.id).label("ids"))
    .where(StripeObject.id == any_(_refs), _waiting > 0)
    .group_by(StripeObject.payment_id)
)

_join = (
    update(StripeEvent)
    .where(
        Payment.id == _payment_id,
        StripeEvent.payment_id.is_(None),
        StripeEvent.refs.overlap(_ids),
        may_touch(StripeEvent.app_id, Payment.app_id),
    )
    .values(payment_id=Payment.id)
)
_ADOPT = Batch(LOCK, _join, READ)

# What is told of a subscription is about the payment that it began with, and not about its renewals.
_OWN_IDS = Batch(
    select(
        *(getattr(Payment, name) for name in ID_COLUMNS if name != "stripe_subscription_id"),
        case((Payment.kind != PaymentKind.RENEWAL, Payment.stripe_subscription_id)),
    ).where(Payment.id == _payment_id),
)


def receive_event(event: Event, *, app_id: str | None, services: Services) -> Receipt:
    """Store an event and fold it into its payment. When this returns, both are committed.

    What waits is looked for afterwards, also for a duplicate: its process may have died before it looked.

    :param app_id: the app whose path or reconciliation brought it; None where only Stripe knows
    """
    is_ours = not is_foreign(event, app_id, services)
    refs = list(references(event.object)) if is_ours else []
    payment_id = None
    with services.database.transaction() as transaction:
        if is_ours:
            begin_renewal(event, app_id=app_id, transaction=transaction)
            forget_customer(event, app_id=app_id, transaction=transaction)
        stored = transaction.run(_STORE, app_id=app_id, refs=refs, **_facts(event))
        if stored and is_ours:
            tell_of_payment_method(event, app_id=app_id, transaction=transaction)
        if stored and refs and (payment_id := _payment_of(stored[0], event, transaction)) is not None:
            learned = fold_and_commit(transaction, transaction.run(LOCK_AND_READ, payment_id=payment_id)).learned
    if payment_id is None or learned:
        found = adopt_events_that_wait_for(refs if payment_id is None else learned, services=services)
        payment_id = payment_id or next(iter(found), None)
    count_event(is_new=bool(stored), has_payment=payment_id is not None)
    return Receipt(Outcome.STORED if stored else Outcome.DUPLICATE, payment_id)


def store_answer_and_commit(
    answer: Event, *, app_id: str, payment_id: uuid.UUID, run_id: str | None, transaction: Transaction
) -> Sequence[str]:
    """Store what Stripe answered to an operation, and fold it; return the ids that the payment has learned.

    :param run_id: the run that the payment's cost is on
    """
    refs = list(references(answer.object))
    facts = _facts(answer)
    rows = transaction.run(_STORE_ANSWER, app_id=app_id, payment_id=payment_id, refs=refs, **facts)
    return fold_and_commit(transaction, rows, run_id=run_id).learned


def adopt_events_that_wait_for(ids: Sequence[str], *, services: Services) -> list[uuid.UUID]:
    """Join events that wait to the payments that know any of these ids; return those payments."""
    waited_for = find_waited_for(ids, services=services)
    for owner in waited_for:
        adopt(owner.payment_id, owner.ids, services=services)
    return [owner.payment_id for owner in waited_for]


def find_waited_for(ids: Sequence[str], *, services: Services) -> list[Any]:
    """The payments that know any of these ids while an event waits for it: rows of `payment_id` and `ids`.

    Renewals that wait for a subscription which is known by now are begun.
    """
    invoices = begin_waiting_renewals(ids, services=services)
    return services.database.run(_WAITED_FOR, refs=[*ids, *invoices]) if ids else []


def adopt(payment_id: uuid.UUID, ids: Sequence[str], *, services: Services) -> Folded:
    """Join the events that wait for ids of a payment's own, and fold them; then those that are explained by them."""
    with services.database.transaction() as transaction:
        folded = fold_and_commit(transaction, transaction.run(_ADOPT, payment_id=payment_id, ids=list(ids)))
    adopt_events_that_wait_for(folded.learned, services=services)
    return folded


def fold_again(payment_id: uuid.UUID, *, services: Services) -> Folded:
    """Join what waits for a payment, and fold all its events."""
    ids = [own_id for row in services.database.run(_OWN_IDS, payment_id=payment_id) for own_id in row if own_id]
    folded = adopt(payment_id, ids, services=services) if ids else Folded()
    adopt_events_that_wait_for([renewal_reference(own_id) for own_id in ids], services=services)
    return folded


def _facts(event: Event) -> dict[str, Any]:
    return {
        "event_id": event.id,
        "type": event.type,
        "created": event.created,
        "object": event.object,
        "previous": event.previous,
        "api_version": event.api_version,
    }


def _payment_of(stored: Any, event: Event, transaction: Transaction) -> uuid.UUID | None:
    """The payment that an event was stored with, or else the one that its metadata hints at."""
    if stored.payment_id is not None:
        return uuid.UUID(str(stored.payment_id))
    hinted_id, join = payment_hint(event.object), _JOIN_HINTED.get(event.kind)
    if hinted_id is None or join is None:
        return None
    joined = transaction.run(join, app_id=stored.app_id, event_id=event.id, payment_id=hinted_id)
    return joined[0].payment_id if joined else None


def payment_hint(stripe_object: Mapping[str, Any]) -> uuid.UUID | None:
    """The payment that an object's metadata names, or for an invoice its subscription's."""
    carriers = (
        stripe_object.get("metadata"),
        dig(stripe_object, "parent", "subscription_details", "metadata"),
        dig(stripe_object, "subscription_details", "metadata"),
    )
    named = next(filter(None, (text_of(dig(metadata, "paymentId")) for metadata in carriers)), "")
    try:
        return uuid.UUID(named)
    except ValueError:
        return None
