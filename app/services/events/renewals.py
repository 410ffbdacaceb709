"""Renewals: each later invoice of a subscription that is paid, or fails, is a payment of its own.

Its id is made of the app and the invoice, so whichever event tells first, by whichever path, makes the same row once.
"""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Text, any_, bindparam, cast, exists, func, or_, select
from sqlalchemy.dialects.postgresql import ARRAY, array, insert
from sqlalchemy.orm import aliased

from app.database import Batch, Transaction
from app.models import Payment, PaymentKind, StripeEvent, StripeObject, Subscription
from app.services import Services
from app.services.events.accounts import may_touch
from app.services.events.facts import BEGINS_RENEWAL
from app.services.events.projection import LAST_SECOND
from app.services.events.stripe_event import Event
from app.services.events.stripe_object import RENEWAL_PREFIX, cents_of, id_of, renewal_of

NAMESPACE = uuid.UUID("6b9f3c0e-5b0c-4b8e-9d0e-2f6a1c7d4e58")

_app_id: Any = bindparam("app_id", type_=Text)
_invoice_id: Any = bindparam("invoice_id", type_=Text)
_ids: Any = bindparam("ids", type_=ARRAY(Text))

# Whom a renewal is for stands on the payment that its subscription began with.
_COPIED = ("app_id", "parent_run_id", "brand_id", "campaign_id")
_known = aliased(StripeObject)
# A subscription may have been handed to another organisation since.
_began = (
    select(
        *(getattr(Payment, name) for name in _COPIED),
        func.coalesce(Subscription.org_id, Payment.org_id).label("org_id"),
    )
    .join(StripeObject, StripeObject.payment_id == Payment.id)
    .outerjoin(Subscription, (Subscription.app_id == StripeObject.app_id) & (Subscription.id == StripeObject.id))
    .where(Payment.kind == PaymentKind.CHECKOUT_SESSION)
)
# Nothing for an invoice that a payment knows: the first one, or one that has begun a renewal.
_FIND_FIRST = Batch(
    _began.where(
        StripeObject.id == bindparam("subscription_id"),
        may_touch(func.coalesce(_app_id, ""), StripeObject.app_id),
        ~exists().where(_known.id == _invoice_id),
    )
)
_BEGIN = Batch(
    insert(Payment)
    .values(
        id=bindparam("payment_id"),
        kind=PaymentKind.RENEWAL,
        created_at=bindparam("created_at"),
        **{name: bindparam(name) for name in (*_COPIED, "org_id")},
    )
    .on_conflict_do_nothing(),
    insert(StripeObject)
    .values(id=_invoice_id, app_id=_app_id, payment_id=bindparam("payment_id"))
    .on_conflict_do_nothing(),
)
# Renewals that came before their subscription was known.
_WAITING = Batch(
    _began.add_columns(StripeEvent.object)
    .join(StripeEvent, StripeEvent.refs.overlap(array([RENEWAL_PREFIX + cast(StripeObject.id, Text)])))
    .where(
        StripeObject.id == any_(_ids),
        StripeEvent.payment_id.is_(None),
        may_touch(StripeEvent.app_id, StripeObject.app_id),
        or_(*(StripeEvent.type == name for name in BEGINS_RENEWAL)),
    )
)


def begin_renewal(event: Event, *, app_id: str | None, transaction: Transaction) -> None:
    """Make the payment of an invoice that an event tells of, where it is a renewal's first; the event joins it.

    :param app_id: the app whose path brought it; None where only Stripe knows
    """
    subscription_id = renewal_of(event.object) if event.kind == "invoice" and event.type in BEGINS_RENEWAL else None
    invoice_id = id_of(event.object)
    if subscription_id is None or invoice_id is None:
        return
    names = {"subscription_id": subscription_id, "invoice_id": invoice_id}
    for first in transaction.run(_FIND_FIRST, app_id=app_id, **names):
        transaction.run(_BEGIN, **_columns(first, event.object))


def begin_waiting_renewals(references: Sequence[str], *, services: Services) -> list[str]:
    """Make the payments of renewals that wait for a subscription; return their invoices' ids.

    :param references: of what waits, or of what may be waited for; only those to a subscription's renewals count
    """
    subscriptions = [ref.removeprefix(RENEWAL_PREFIX) for ref in references if ref.startswith(RENEWAL_PREFIX)]
    waiting = services.database.run(_WAITING, ids=subscriptions) if subscriptions else []
    begun = [_columns(row, row.object) for row in waiting]
    for columns in begun:
        services.database.run(_BEGIN, **columns)
    return [columns["invoice_id"] for columns in begun]


def _columns(first: Any, invoice: Any) -> dict[str, Any]:
    invoice_id = id_of(invoice) or ""
    made = datetime.fromtimestamp(min(cents_of(invoice.get("created")) or 0, LAST_SECOND), UTC)
    return {
        **{name: getattr(first, name) for name in (*_COPIED, "org_id")},
        "payment_id": renewal_id(first.app_id, invoice_id),
        "invoice_id": invoice_id,
        "created_at": made,
    }


def renewal_id(app_id: str, invoice_id: str) -> uuid.UUID:
    """The id of an invoice's payment: the same for whoever makes it."""
    return uuid.uuid5(NAMESPACE, f"{app_id}/{invoice_id}")
