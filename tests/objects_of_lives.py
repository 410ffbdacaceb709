"""Stripe's objects of a life, as its API shows them to whoever reads them, in the version that the service asks for."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from app.services.events.stripe_event import Event
from app.services.reconciliation.object_events import ObjectReader
from app.services.upstreams.stripe import Resource, Stripe
from tests.lives import INTENT, INVOICE, SESSION, SUBSCRIPTION, Life
from tests.stripe_shapes import (
    ApiVersion,
    Intent,
    Shape,
    charge_shape,
    dispute_shape,
    intent_shape,
    invoice_payment_shape,
    invoice_shape,
    refund_shape,
)

VERSION = ApiVersion.PINNED
EPOCH = datetime.fromtimestamp(0, UTC)


class ObjectsOf:
    """Stands for Stripe's API, with the objects of one life."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.intents = {intent.id: intent for intent in (life.intent, *life.paid_intents)}

    def retrieve(self, resource: Resource[Any], app_id: str, object_id: str, context: object) -> Shape:
        return next(shape for shape in self._all(resource.object) if shape["id"] == object_id)

    def list(
        self, resource: Resource[Any], app_id: str, filters: Mapping[str, Any], *, new_context: object
    ) -> Iterator[Shape]:
        wanted = {name: value for name, value in filters.items() if name != "created"}
        yield from (shape for shape in self._all(resource.object) if wanted.items() <= shape.items())

    def _all(self, kind: str) -> Sequence[Shape]:
        life = self.life
        charges = [charge_shape(VERSION, charge, invoice_id=None) for charge in life.all_charges]
        refunds = [refund_shape(refund) for charge in life.all_charges for refund in charge.refunds]
        shapes: dict[str, Sequence[Shape]] = {
            "checkout.session": [self._session()],
            "payment_intent": [intent_shape(VERSION, each, invoice_id=None) for each in self.intents.values()],
            "charge": charges,
            "refund": refunds,
            "dispute": [dispute_shape(dispute) for dispute in life.all_disputes],
            "invoice": [self._invoice()],
            "invoice_payment": [self._paying(intent) for intent in self.intents.values()] if self._is_asked else [],
        }
        return shapes[kind]

    @property
    def _is_asked(self) -> bool:
        """Whether the invoice has asked for money; what is free asks for none."""
        return self.life.subscription and not self.life.free

    def _session(self) -> Shape:
        """A session names its intent, or its subscription, when it is complete."""
        life, is_complete = self.life, self.life.session_is_complete
        other = "expired" if life.status == "expired" else "open"
        return {
            "id": SESSION,
            "object": "checkout.session",
            "amount_total": life.amount,
            "currency": life.currency,
            "invoice": INVOICE if is_complete and life.subscription else None,
            "payment_intent": INTENT if is_complete and not (life.subscription or life.free) else None,
            "payment_status": life.session_payment_status,
            "status": "complete" if is_complete else other,
            "subscription": SUBSCRIPTION if is_complete and life.subscription else None,
        }

    def _invoice(self) -> Shape:
        names = {"subscription_id": SUBSCRIPTION, "reason": "subscription_create"}
        status = "paid" if self.life.paid else "open"
        return invoice_shape(VERSION, INVOICE, intent=None, amount_paid=self.life.received, status=status, **names)

    def _paying(self, intent: Intent) -> Shape:
        """One that isn't needed any more is canceled: https://docs.stripe.com/api/invoice-payment/object."""
        status = "paid" if intent in self.life.paid_intents else "canceled" if self.life.paid else "open"
        return invoice_payment_shape(f"inpay_{intent.id}", INVOICE, intent) | {"status": status}


def snapshots_of(life: Life) -> list[Event]:
    """What reconciliation tells of a life where it reads the objects, and not the events."""
    reader = ObjectReader("shop", cast(Stripe, ObjectsOf(life)), lambda: None, life.now)  # type: ignore[arg-type, return-value]
    session_id, intent_id = (SESSION, None) if life.is_checkout else (None, INTENT)
    told = reader.read_payment(stripe_checkout_session_id=session_id, stripe_payment_intent_id=intent_id)
    return [*told, *reader.read_reversals(EPOCH)]
