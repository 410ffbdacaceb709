"""Lives of payments: what a customer, a bank and Stripe do, the events that tell of it, and what it comes to.

The model keeps a payment's state as plain variables that each action sets, as Stripe does; it folds nothing.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from app.models import PaymentKind
from app.services.events.projection import Projection, project
from app.services.events.stripe_event import Event, answer_event

AMOUNT = 5000
PAYMENT_ID = uuid.UUID(int=7)
BORN_AT = 1_700_000_000
INTENT, SESSION, CHARGE, SUBSCRIPTION, INVOICE = "pi_1", "cs_1", "ch_1", "sub_1", "in_1"


@dataclass
class Life:
    """A payment as Stripe sees it, and everything that Stripe said of it."""

    kind: PaymentKind
    subscription: bool = False
    old_api: bool = False
    now: int = BORN_AT
    events: list[Event] = field(default_factory=list)
    status: str = "requires_payment_method"
    paid: bool = False
    received: int = 0
    tries: int = 0
    failures: int = 0
    refunds: dict[str, tuple[int, str]] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    disputes: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def creation(self) -> Event:
        """What Stripe answered when it made the payment's object."""
        if self.kind is PaymentKind.PAYMENT_INTENT:
            made = {"id": INTENT, "object": "payment_intent", "amount": AMOUNT, "status": "requires_payment_method"}
            return answer_event(PAYMENT_ID, 1, "payment_intent.created", made | {"currency": "usd", "created": BORN_AT})
        made = {"id": SESSION, "object": "checkout.session", "amount_total": AMOUNT, "payment_intent": None}
        return answer_event(PAYMENT_ID, 1, "checkout.session.created", made | {"currency": "usd", "created": BORN_AT})

    def projection_of(self, events: Sequence[Event]) -> Projection:
        """What the fold makes of the payment, told by these events."""
        projection = project(PAYMENT_ID, self.kind, [self.creation, *events])
        assert projection
        return projection

    def tell(self, kind: str, stripe_object: dict[str, Any]) -> None:
        """Stripe makes an event; ids are in no order."""
        number = len(self.events)
        self.events.append(Event(f"evt_{(number * 7919) % 1000:03}_{number}", kind, self.now, stripe_object))

    def tell_intent(self, kind: str, **fields: Any) -> None:
        shape = {"id": INTENT, "object": "payment_intent", "amount": AMOUNT, "currency": "usd", "amount_received": 0}
        self.tell(f"payment_intent.{kind}", shape | {"latest_charge": None} | fields)

    def tell_session(self, kind: str, **fields: Any) -> None:
        shape = {"id": SESSION, "object": "checkout.session", "amount_total": AMOUNT, "currency": "usd"}
        links = {"payment_intent": None if self.subscription else INTENT}
        if self.subscription:
            links |= {"subscription": SUBSCRIPTION, "invoice": INVOICE}
        self.tell(f"checkout.session.{kind}", shape | links | fields)

    def tell_charge(self, kind: str, **fields: Any) -> None:
        shape = {"id": CHARGE, "object": "charge", "payment_intent": INTENT, "amount": AMOUNT, "status": "succeeded"}
        money = {"amount_captured": self.received, "amount_refunded": self.refunded + AMOUNT - self.received}
        self.tell(f"charge.{kind}", shape | money | {"receipt_url": "https://receipt.test/1"} | fields)

    def tell_invoice(self, kind: str, *, invoice_id: str = INVOICE, reason: str = "subscription_create") -> None:
        amount_paid = AMOUNT if kind == "paid" else 0
        shape = {"id": invoice_id, "object": "invoice", "amount_paid": amount_paid, "billing_reason": reason}
        if self.old_api:
            links: dict[str, Any] = {"subscription": SUBSCRIPTION, "payment_intent": INTENT}
        else:
            links = {"parent": {"subscription_details": {"subscription": SUBSCRIPTION}}}
        self.tell(f"invoice.{kind}", shape | links)
        if kind == "paid" and not self.old_api:
            payment = {"type": "payment_intent", "payment_intent": INTENT}
            paid = {"id": "inpay_1", "object": "invoice_payment", "invoice": invoice_id, "payment": payment}
            self.tell("invoice_payment.paid", paid)

    @property
    def refunded(self) -> int:
        return sum(amount for amount, status in self.refunds.values() if status in ("pending", "succeeded"))

    # What may happen, each when it can.

    def pass_time(self) -> None:
        self.now += 1

    def fail(self) -> None:
        """The customer's card is declined."""
        if self.paid or self.status in ("canceled", "expired", "requires_capture", "pending", "processing"):
            return
        self.pass_time()
        self.tries += 1
        self.failures += 1
        error = {"code": "card_declined", "message": "Declined.", "charge": f"ch_failed_{self.tries}"}
        self.tell_intent("payment_failed", status="requires_payment_method", last_payment_error=error)
        if self.subscription:
            self.tell_invoice("payment_failed")
        self.status = "failed"

    def ask_action(self) -> None:
        """The bank asks the customer."""
        if self.paid or self.subscription or self.status in ("canceled", "expired", "requires_capture", "pending"):
            return
        if self.status == "processing":
            return
        self.pass_time()
        self.tell_intent("requires_action", status="requires_action")
        self.status = "requires_action"

    def process(self) -> None:
        """A method that takes days begins."""
        if self.paid or self.subscription or self.status in ("canceled", "expired", "requires_capture", "pending"):
            return
        if self.status == "processing":
            return
        self.pass_time()
        self.tell_intent("processing", status="processing")
        self.status = "processing"
        if self.kind is PaymentKind.CHECKOUT_SESSION:
            self.pass_time()
            self.tell_session("completed", payment_status="unpaid")
            self.status = "pending"

    def fail_later(self) -> None:
        """What took days fails."""
        if self.status not in ("processing", "pending") or self.paid:
            return
        self.pass_time()
        self.failures += 1
        error = {"code": "debit_failed", "message": "No money.", "charge": "ch_later"}
        self.tell_intent("payment_failed", status="requires_payment_method", last_payment_error=error)
        if self.kind is PaymentKind.CHECKOUT_SESSION:
            self.tell_session("async_payment_failed", payment_status="unpaid")
        self.status = "failed_for_good" if self.kind is PaymentKind.CHECKOUT_SESSION else "failed"

    def authorize(self) -> None:
        """The money is held and not yet taken."""
        if self.kind is not PaymentKind.PAYMENT_INTENT or self.paid or self.status in ("canceled", "processing"):
            return
        if self.status == "requires_capture":
            return
        self.pass_time()
        self.tell_intent("amount_capturable_updated", status="requires_capture", amount_capturable=AMOUNT)
        self.status = "requires_capture"

    def pay(self, part: int = AMOUNT) -> None:
        """The money is taken: all of it, or a part of what was authorised."""
        if self.paid or self.status in ("canceled", "expired", "failed_for_good"):
            return
        was_pending = self.status == "pending"
        self.received = part if self.status == "requires_capture" else AMOUNT
        self.paid = True
        self.tell_intent("succeeded", status="succeeded", amount_received=self.received, latest_charge=CHARGE)
        self.tell_charge("succeeded")
        if self.subscription:
            self.tell_invoice("paid")
        if self.kind is PaymentKind.CHECKOUT_SESSION:
            self.tell_session("async_payment_succeeded" if was_pending else "completed", payment_status="paid")
        self.status = "succeeded"

    def renew(self) -> None:
        """The subscription's next month: none of the payment's business."""
        if self.subscription and self.paid:
            self.pass_time()
            self.tell_invoice("payment_failed", invoice_id="in_2", reason="subscription_cycle")

    def cancel(self) -> None:
        """The app gives up."""
        if self.kind is PaymentKind.PAYMENT_INTENT and not self.paid and self.status not in ("canceled", "processing"):
            self.tell_intent("canceled", status="canceled")
            self.status = "canceled"

    def expire(self) -> None:
        """The customer never came."""
        waits = self.status not in ("expired", "pending", "failed_for_good", "processing")
        if self.kind is PaymentKind.CHECKOUT_SESSION and not self.paid and waits:
            self.tell_session("expired", payment_status="unpaid", payment_intent=None, subscription=None, invoice=None)
            self.status = "expired"

    def refund(self, amount: int, *, pending: bool = False) -> None:
        """The app gives money back."""
        left = self.received - self.refunded
        if not self.paid or left <= 0:
            return
        self.pass_time()
        refund_id = f"re_{len(self.refunds)}"
        self.refunds[refund_id] = (min(amount, left), "pending" if pending else "succeeded")
        self.made[refund_id] = self.now
        self.tell_refund(refund_id, "created")
        self.tell_charge("refunded", **self.embedded_refunds())

    def embedded_refunds(self) -> dict[str, Any]:
        """Older API versions show a charge with its refunds."""
        if not self.old_api:
            return {}
        return {"refunds": {"data": [self.refund_object(refund_id) for refund_id in self.refunds]}}

    def refund_object(self, refund_id: str) -> dict[str, Any]:
        amount, status = self.refunds[refund_id]
        shape = {"id": refund_id, "object": "refund", "amount": amount, "status": status, "currency": "usd"}
        return shape | {"payment_intent": INTENT, "charge": CHARGE, "created": self.made[refund_id]}

    def tell_refund(self, refund_id: str, kind: str) -> None:
        name = "charge.refund.updated" if self.old_api else f"refund.{kind}"
        self.tell(name, self.refund_object(refund_id))

    def move_refund(self, number: int, status: str) -> None:
        """A bank lets a refund succeed, or sends it back."""
        if not self.refunds:
            return
        refund_id = sorted(self.refunds)[number % len(self.refunds)]
        amount, before = self.refunds[refund_id]
        if before == "failed" or before == status:
            return
        self.refunds[refund_id] = (amount, status)
        self.pass_time()
        self.tell_refund(refund_id, "failed" if status == "failed" else "updated")

    def dispute(self, status: str) -> None:
        """The customer asks the bank for the money."""
        if self.paid and not self.disputes:
            self.disputes["du_0"] = (self.received, status)
            self.tell_dispute("created")

    def move_dispute(self, status: str) -> None:
        """The bank decides."""
        if "du_0" in self.disputes and self.disputes["du_0"][1] not in ("won", "lost", "warning_closed", "prevented"):
            self.disputes["du_0"] = (self.received, status)
            self.tell_dispute("closed")
            self.tell_dispute("funds_reinstated" if status == "won" else "updated")

    def tell_dispute(self, kind: str) -> None:
        amount, status = self.disputes["du_0"]
        shape = {"id": "du_0", "object": "dispute", "amount": amount, "status": status, "reason": "fraudulent"}
        self.tell(f"charge.dispute.{kind}", shape | {"payment_intent": INTENT, "charge": CHARGE, "currency": "usd"})

    # What it comes to.

    @property
    def expected_status(self) -> str:
        if any(status not in ("won", "warning_closed", "prevented") for _, status in self.disputes.values()):
            return "disputed"
        if self.refunded:
            return "refunded" if self.refunded >= self.received else "partially_refunded"
        if self.status == "failed_for_good":
            return "failed"
        untouched = self.status == "requires_payment_method"
        return "checkout_created" if untouched and self.kind is PaymentKind.CHECKOUT_SESSION else self.status

    @property
    def expected_failures(self) -> int:
        return self.failures


def _actions() -> st.SearchStrategy[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    plain = [
        "pass_time",
        "fail",
        "ask_action",
        "process",
        "fail_later",
        "authorize",
        "pay",
        "renew",
        "cancel",
        "expire",
    ]
    amounts = st.integers(1, AMOUNT)
    return st.one_of(
        st.sampled_from(plain).map(lambda name: (name, (), {})),
        amounts.map(lambda part: ("pay", (part,), {})),
        st.tuples(amounts, st.booleans()).map(lambda it: ("refund", (it[0],), {"pending": it[1]})),
        st.tuples(st.integers(0, 9), st.sampled_from(["succeeded", "failed"])).map(lambda it: ("move_refund", it, {})),
        st.sampled_from(["needs_response", "warning_needs_response"]).map(lambda s: ("dispute", (s,), {})),
        st.sampled_from(["won", "lost", "warning_closed", "prevented"]).map(lambda s: ("move_dispute", (s,), {})),
    )


@st.composite
def lives(draw: st.DrawFn) -> Life:
    """Any life of a payment."""
    kind = draw(st.sampled_from(PaymentKind))
    subscription = kind is PaymentKind.CHECKOUT_SESSION and draw(st.booleans())
    life = Life(kind, subscription=subscription, old_api=draw(st.booleans()))
    if kind is PaymentKind.PAYMENT_INTENT:
        life.tell_intent("created", status="requires_payment_method")
    for name, arguments, options in draw(st.lists(_actions(), max_size=12)):
        getattr(life, name)(*arguments, **options)
    return life
