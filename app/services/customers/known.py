"""The table of customers: which customer at Stripe is an organisation's, decided by a unique index and not by looking.

Stripe keeps nothing unique: two creates make two customers, and its search lags. So a row is inserted first, and its id
is the idempotency key under which all who find the row have the customer made.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Text, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from app.database import Batch
from app.errors import CustomerExists
from app.models import Customer, Subscription
from app.services import Services
from app.services.operations.engine import STRIPE_IDEMPOTENCY_WINDOW

_app_id: Any = bindparam("app_id", type_=Text)
_org_id: Any = bindparam("org_id", type_=Text)
_id: Any = bindparam("id")

_is_organisations = (Customer.app_id == _app_id) & (Customer.org_id == _org_id) & Customer.deleted_at.is_(None)
_FIND = Batch(
    select(
        Customer.id,
        Customer.stripe_customer_id,
        Customer.created_at,
        (Customer.created_at <= func.now() - STRIPE_IDEMPOTENCY_WINDOW).label("is_old"),
    ).where(_is_organisations)
)
_ADD = Batch(
    insert(Customer)
    .values(id=_id, app_id=_app_id, org_id=_org_id)
    .on_conflict_do_nothing(
        index_elements=[Customer.app_id, Customer.org_id], index_where=Customer.deleted_at.is_(None)
    )
)
# Whoever is first to say it has made it.
_MADE = Batch(
    update(Customer)
    .where(Customer.id == _id, Customer.stripe_customer_id.is_(None), Customer.deleted_at.is_(None))
    .values(stripe_customer_id=bindparam("stripe_customer_id"))
    .returning(Customer.id)
)
_GIVE_UP = Batch(
    update(Customer)
    .where(Customer.id == _id, Customer.stripe_customer_id.is_(None), Customer.deleted_at.is_(None))
    .values(deleted_at=func.now())
)
_DELETE = Batch(
    update(Customer)
    .where(Customer.app_id == _app_id, Customer.stripe_customer_id == bindparam("stripe_customer_id"),
           Customer.deleted_at.is_(None))
    .values(deleted_at=func.now())
    .returning(Customer.id)
)  # fmt: skip
# Its subscriptions go with it; what is paid from then on is the other organisation's.
_MOVE = Batch(
    update(Subscription)
    .where(Subscription.app_id == _app_id, Subscription.org_id == _org_id,
           Subscription.customer_id == bindparam("stripe_customer_id"))
    .values(org_id=bindparam("to_org_id")),
    update(Customer)
    .where(_is_organisations, Customer.stripe_customer_id == bindparam("stripe_customer_id"))
    .values(org_id=bindparam("to_org_id"))
    .returning(Customer.id),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class KnownCustomer:
    """An organisation's row.

    :param stripe_customer_id: None where it is not known yet what Stripe has made
    :param is_old: whether Stripe may have forgotten the row's idempotency key
    """

    id: uuid.UUID
    stripe_customer_id: str | None
    created_at: datetime
    is_old: bool


def find_known(app_id: str, org_id: str, *, services: Services) -> KnownCustomer | None:
    """An organisation's row, where it has one."""
    # PostgreSQL knows no NUL, so no organisation has one.
    if "\x00" in org_id:
        return None
    rows = services.database.run(_FIND, app_id=app_id, org_id=org_id)
    return KnownCustomer(**rows[0]._asdict()) if rows else None


def find_or_add(app_id: str, org_id: str, *, services: Services) -> KnownCustomer:
    """An organisation's row; a new one where it has none."""
    while (known := find_known(app_id, org_id, services=services)) is None:
        services.database.run(_ADD, id=uuid.uuid4(), app_id=app_id, org_id=org_id)
    return known


def find_customer_id(app_id: str, org_id: str, services: Services) -> str | None:
    """The id of an organisation's customer at Stripe, where it has one."""
    known = find_known(app_id, org_id, services=services)
    return known.stripe_customer_id if known else None


def note_made(known: KnownCustomer, stripe_customer_id: str, *, services: Services) -> bool:
    """Note what Stripe has made for a row; return whether nobody had before."""
    return bool(services.database.run(_MADE, id=known.id, stripe_customer_id=stripe_customer_id))


def give_up(known: KnownCustomer, *, services: Services) -> None:
    """Leave a row for which Stripe certainly has nothing, so that the organisation begins with another."""
    services.database.run(_GIVE_UP, id=known.id)


def note_deleted(app_id: str, stripe_customer_id: str, *, services: Services) -> bool:
    """Note that Stripe has a customer no more; return whether nobody had before."""
    return bool(services.database.run(_DELETE, app_id=app_id, stripe_customer_id=stripe_customer_id))


def move(app_id: str, org_id: str, *, to_org_id: str, stripe_customer_id: str, services: Services) -> bool:
    """Let a customer be another organisation's; return whether it was this one's until now.

    :raises CustomerExists: when that other has one of its own.
    """
    try:
        moved = services.database.run(
            _MOVE, app_id=app_id, org_id=org_id, to_org_id=to_org_id, stripe_customer_id=stripe_customer_id
        )
    except IntegrityError as error:
        raise CustomerExists from error
    return bool(moved)
