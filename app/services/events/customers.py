"""Customers that Stripe says are deleted: their organisations begin with another."""

from typing import Any

from sqlalchemy import Text, bindparam, func, update

from app.database import Batch, Transaction
from app.models import Customer
from app.services.events.accounts import may_touch
from app.services.events.stripe_event import Event
from app.services.events.stripe_object import id_of

DELETED = "customer.deleted"

_app_id: Any = bindparam("app_id", type_=Text)
_FORGET = Batch(
    update(Customer)
    .where(
        Customer.stripe_customer_id == bindparam("stripe_customer_id"),
        may_touch(_app_id, Customer.app_id),
        Customer.deleted_at.is_(None),
    )
    .values(deleted_at=func.now())
)


def forget_customer(event: Event, *, app_id: str | None, transaction: Transaction) -> None:
    """Note that a customer is gone, where an event says so; a late event about it can't bring it back.

    :param app_id: as for `receive_event`
    """
    if event.type == DELETED:
        transaction.run(_FORGET, app_id=app_id or "", stripe_customer_id=id_of(event.object.get("id")))
