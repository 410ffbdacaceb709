"""Saved payment methods: an app is told that its organisation has saved one, or that one is gone."""

import uuid

from sqlalchemy import Text, bindparam, select

from app.database import Batch, Transaction
from app.models import AppEventType, Customer
from app.services.events.accounts import may_touch
from app.services.events.outbox import TELL_ONCE, told_of_payment_method
from app.services.events.stripe_event import Event
from app.services.events.stripe_object import id_of, text_of

NAMESPACE = uuid.UUID("0d8c2f5b-4f0e-4a37-9c52-3a7be1d0c6a4")
TYPES = {
    "payment_method.attached": AppEventType.PAYMENT_METHOD_SAVED,
    "payment_method.detached": AppEventType.PAYMENT_METHOD_REMOVED,
}

# A customer that is deleted tells nothing of each of its methods.
_OWNERS = Batch(
    select(Customer.app_id, Customer.org_id).where(
        Customer.stripe_customer_id == bindparam("customer_id", type_=Text),
        may_touch(bindparam("path_app_id", type_=Text), Customer.app_id),
        Customer.deleted_at.is_(None),
    )
)
_TELL = Batch(*TELL_ONCE)


def tell_of_payment_method(event: Event, *, app_id: str | None, transaction: Transaction) -> None:
    """Write what the app of a method's customer is told, where an event says that it was saved or removed.

    A method that is gone has no customer: who had it is what was before.
    https://docs.stripe.com/api/events/types#event_types-payment_method.detached

    :param app_id: as for `receive_event`
    """
    told = TYPES.get(event.type)
    customer_id = id_of(event.object.get("customer")) or id_of((event.previous or {}).get("customer"))
    method_id = id_of(event.object.get("id"))
    if told is None or customer_id is None or method_id is None:
        return
    for owner in transaction.run(_OWNERS, customer_id=customer_id, path_app_id=app_id or ""):
        method = {
            "payment_method_id": method_id,
            "type": text_of(event.object.get("type")),
            "customer_id": customer_id,
            "app_id": owner.app_id,
            "org_id": owner.org_id,
        }
        event_id = uuid.uuid5(NAMESPACE, f"{owner.app_id}/{event.id}")
        values = told_of_payment_method(event_id, told, payment_method_id=method_id, data={"payment_method": method})
        transaction.run(_TELL, app_id=owner.app_id, **values)
