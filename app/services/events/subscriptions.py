"""A subscription's row is brought up to date with its facts, which are events of the payment that it began with."""

import uuid
from collections.abc import Iterable
from dataclasses import fields
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Boolean, Text, Uuid, any_, bindparam, case, func, null, or_, select
from sqlalchemy.dialects.postgresql import ARRAY, insert

from app.database import Batch, Transaction
from app.models import Payment, PaymentKind, Subscription
from app.services.events.app_event import columns_of, data_of_subscription_change, types_of_subscription_change
from app.services.events.outbox import TELL, told_of_subscription
from app.services.events.stripe_event import Event
from app.services.events.stripe_object import id_of
from app.services.events.subscription import SubscriptionState, project_subscription

# What Stripe shows by then is later than the seconds that are in doubt.
RECHECK_AFTER = timedelta(seconds=3)
# Until then, events mostly tell what a subscription is.
UNKNOWN_FOR = timedelta(seconds=60)

STATE_COLUMNS = tuple(column.name for column in fields(SubscriptionState))
# Of a subscription that has no row.
NOTHING_KNOWN: Any = SimpleNamespace(**dict.fromkeys(STATE_COLUMNS), state_number=0)
_is_settled: Any = bindparam("is_settled", type_=Boolean)
_recheck_at = case((_is_settled, null()), else_=func.now() + bindparam("after"))
_OWNER = (Payment.app_id, bindparam("subscription_id", type_=Text), Payment.id, Payment.org_id, _recheck_at)
_OWNER_COLUMNS = ["app_id", "id", "payment_id", "org_id", "recheck_at"]


def _inserted(*state: str) -> Any:
    values = (bindparam(name, type_=getattr(Subscription, name).type) for name in state)
    of_payment = select(*_OWNER, *values).where(Payment.id == bindparam("payment_id", type_=Uuid))
    return insert(Subscription).from_select([*_OWNER_COLUMNS, *state], of_payment)


_upsert = _inserted(*STATE_COLUMNS, "state_number")
_differs = (
    *(getattr(Subscription, name).is_distinct_from(_upsert.excluded[name]) for name in STATE_COLUMNS),
    Subscription.recheck_at.is_(None) != _is_settled,
)
# One that Stripe is already to be asked about is not put off by what else is told meanwhile.
_SAVE = Batch(
    _upsert.on_conflict_do_update(
        index_elements=[Subscription.app_id, Subscription.id],
        set_={name: _upsert.excluded[name] for name in (*STATE_COLUMNS, "state_number")}
        | {
            "recheck_at": case(
                (_is_settled, null()), else_=func.coalesce(Subscription.recheck_at, _upsert.excluded.recheck_at)
            )
        },
        where=or_(*_differs),
    )
)
_ASK_ABOUT = Batch(_inserted().on_conflict_do_nothing())

# As it was told last; the payment's row is locked, and with it this one.
_READ = Batch(
    select(*(getattr(Subscription, name) for name in (*STATE_COLUMNS, "state_number"))).where(
        Subscription.app_id == bindparam("app_id", type_=Text), Subscription.id == bindparam("subscription_id")
    )
)
_TELL = Batch(*TELL)

# Of payments, the subscriptions that nobody has followed: Stripe is to be asked what they are, and for their invoices.
TAKE_UP = Batch(
    insert(Subscription)
    .from_select(
        _OWNER_COLUMNS,
        select(Payment.app_id, Payment.stripe_subscription_id, Payment.id, Payment.org_id, func.now()).where(
            Payment.id == any_(bindparam("ids", type_=ARRAY(Uuid))),
            Payment.kind == PaymentKind.CHECKOUT_SESSION,
            Payment.stripe_subscription_id.is_not(None),
        ),
    )
    .on_conflict_do_nothing()
)


def save_subscription(
    transaction: Transaction,
    payment_id: uuid.UUID,
    subscription_id: str | None,
    events: Iterable[Event],
    *,
    app_id: str,
) -> None:
    """Write what the subscription that a payment began is by now, and what its app is told of that.

    Where its events don't say, Stripe is asked.
    """
    if subscription_id is None:
        return
    own = [event for event in events if event.kind == "subscription" and id_of(event.object) == subscription_id]
    names = {"payment_id": payment_id, "subscription_id": subscription_id}
    projection = project_subscription(own)
    if projection is None:
        transaction.run(_ASK_ABOUT, is_settled=False, after=UNKNOWN_FOR, **names)
        return
    known = transaction.run(_READ, app_id=app_id, subscription_id=subscription_id)
    before = known[0] if known else NOTHING_KNOWN
    types = types_of_subscription_change(before, projection.state)
    state = columns_of(projection.state) | {"state_number": before.state_number + bool(types)}
    transaction.run(_SAVE, is_settled=projection.is_settled, after=RECHECK_AFTER, **names, **state)
    for told in told_of_subscription(
        types,
        subscription_id=subscription_id,
        state_number=before.state_number + 1,
        data=data_of_subscription_change(before, projection.state),
    ):
        transaction.run(_TELL, app_id=app_id, **told)
