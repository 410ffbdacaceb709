"""Lives of payments: what a customer, a bank and Stripe do, the events that tell of it, and what it comes to.

The model keeps a payment's state as plain variables that each action sets, as Stripe does; it folds nothing.
"""

import copy
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from app.models import PaymentKind
from app.services.events.projection import Projection, project
from app.services.events.stripe_event import Event, answer_event, type_of_state
from tests.stripe_shapes import (
    CURRENCY,
    ApiVersion,
    Charge,
    Dispute,
    Intent,
    Refund,
    charge_shape,
    dispute_shape,
    intent_shape,
    invoice_payment_shape,
    invoice_shape,
    refund_shape,
)

AMOUNT = 5000
PAYMENT_ID = uuid.UUID(int=7)
BORN_AT = 1_700_000_000
INTENT, SESSION, CHARGE, SUBSCRIPTION, INVOICE = "pi_1", "cs_1", "ch_1", "sub_1", "in_1"

# What a dispute may become: https://docs.stripe.com/disputes/how-disputes-work, /api/disputes/object#status
_DISPUTES_NEXT = {
    "warning_needs_response": ("warning_under_review", "warning_closed", "needs_response", "prevented"),
    "warning_under_review": ("warning_closed", "needs_response"),
    "needs_response": ("under_review", "won", "lost", "prevented"),
    "under_review": ("won", "lost"),
}
# A bank may send back what had succeeded: https://docs.stripe.com/refunds#failed-refunds
_REFUNDS_NEXT = {"pending": ("succeeded", "failed", "canceled"), "succeeded": ("failed",)}


@dataclass
class Life:
    """A payment as Stripe sees it, and everything that Stripe said of it.

    `slow` objects tell of one happening in different seconds. `failed_refunds_count` says that a charge's
    `amount_refunded` keeps what came back: Stripe documents neither this nor the contrary, and where every refund is
    named neither matters. A `free` one costs `amount`: 0 or nothing at all.
    """

    kind: PaymentKind
    subscription: bool = False
    version: ApiVersion = ApiVersion.PINNED
    slow: bool = False
    failed_refunds_count: bool = False
    amount: int | None = AMOUNT
    now: int = BORN_AT
    events: list[Event] = field(default_factory=list)
    status: str = ""
    session_is_complete: bool = False
    paid: bool = False
    received: int = 0
    paid_intents: list[Intent] = field(default_factory=list)
    failure_codes: list[str] = field(default_factory=list)
    named_refunds: dict[str, Refund] = field(default_factory=dict)
    all_disputes: list[Dispute] = field(default_factory=list)
    all_charges: list[Charge] = field(default_factory=list)
    charge_count: int = 0
    told_count: int = 0
    # What the session said last of its payment.
    session_payment_status: str = "unpaid"
    # The life as it was each time that somebody looked.
    looks: list["Life"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.asked = self.amount
        self.intent = Intent(INTENT, AMOUNT)
        self.status = "checkout_created" if self.is_checkout else "requires_payment_method"

    @property
    def is_checkout(self) -> bool:
        return self.kind is PaymentKind.CHECKOUT_SESSION

    @property
    def free(self) -> bool:
        return not self.amount

    @property
    def currency(self) -> str | None:
        return None if self.amount is None else CURRENCY

    @property
    def creation(self) -> Event:
        """What Stripe answered when it made the payment's object, in the version of the service's own calls."""
        shape = {"currency": None if self.asked is None else CURRENCY, "created": BORN_AT}
        if self.kind is PaymentKind.PAYMENT_INTENT:
            made = {"id": INTENT, "object": "payment_intent", "amount": AMOUNT, "status": "requires_payment_method"}
            return answer_event(f"{PAYMENT_ID}:1", "payment_intent.created", made | shape)
        made = {"id": SESSION, "object": "checkout.session", "amount_total": self.asked, "payment_intent": None}
        return answer_event(f"{PAYMENT_ID}:1", "checkout.session.created", made | shape)

    def projection_of(self, events: Sequence[Event]) -> Projection:
        """What the fold makes of the payment, told by these events."""
        projection = project(PAYMENT_ID, self.kind, [self.creation, *events])
        assert projection
        return projection

    # How Stripe tells.

    def tell(self, kind: str, stripe_object: dict[str, Any]) -> None:
        """Stripe makes an event; ids are in no order."""
        number, self.told_count = self.told_count, self.told_count + 1
        self.events.append(Event(f"evt_{(number * 7919) % 1000:03}_{number}", kind, self.now, stripe_object))

    def tell_again(self, number: int) -> None:
        """Tell what an event told, in the same second, by another id."""
        event = self.events[number % len(self.events)]
        self.events.append(Event(f"{event.id}_again", event.type, event.created, event.object))

    @property
    def own_invoice(self) -> str | None:
        return INVOICE if self.subscription else None

    def tell_intent(self, kind: str, intent: Intent | None = None, **fields: Any) -> None:
        shape = intent_shape(self.version, intent or self.intent, invoice_id=self.own_invoice)
        self.tell(f"payment_intent.{kind}", shape | fields)

    def tell_session(self, kind: str, *, payment_status: str, **fields: Any) -> None:
        self.session_payment_status = payment_status
        shape = {"id": SESSION, "object": "checkout.session", "amount_total": self.amount, "currency": self.currency}
        links = {"payment_intent": None if self.subscription or self.free else INTENT}
        if self.subscription:
            links |= {"subscription": SUBSCRIPTION, "invoice": INVOICE}
        self.tell(f"checkout.session.{kind}", shape | links | {"payment_status": payment_status} | fields)

    def tell_charge(self, kind: str, charge: Charge) -> None:
        self.tell(f"charge.{kind}", charge_shape(self.version, charge, invoice_id=self.own_invoice))

    def tell_invoice(self, kind: str, *, intent: Intent | None, **fields: Any) -> None:
        names = {"subscription_id": SUBSCRIPTION, "reason": "subscription_create"}
        shape = invoice_shape(self.version, INVOICE, intent=intent, amount_paid=0, **names)
        self.tell(f"invoice.{kind}", shape | {"amount_due": self.amount or 0} | fields)

    def tell_refund(self, refund: Refund, *, is_new: bool = False) -> None:
        """Tell of a refund by its own events; older versions only know the update of one."""
        if not is_new or self.version.tells_refunds:
            self.named_refunds[refund.id] = refund
        names = ["created"] if is_new else ["updated", "failed"][: 1 + (refund.status == "failed")]
        if self.version.tells_refunds:
            for name in names:
                self.tell(f"refund.{name}", refund_shape(refund))
        if not is_new:
            self.tell("charge.refund.updated", refund_shape(refund))

    def tell_charge_refunded(self, charge: Charge) -> None:
        self.tell_charge("refunded", charge)
        if self.version.lists_inside:
            self.named_refunds |= {refund.id: refund for refund in charge.refunds}

    def tell_dispute(self, dispute: Dispute, kind: str) -> None:
        self.tell(f"charge.dispute.{kind}", dispute_shape(dispute))

    # What callers have done, each when it can be.

    def ask_refund(self, amount: int, *, lost: bool, **options: Any) -> None:
        """A caller gives money back. The answer names the refund in every version: it is in the service's own."""
        before, known = len(self.events), self.all_refunds
        self.refund(amount, **options)
        for refund in self.all_refunds:
            if refund not in known:
                self.named_refunds[refund.id] = refund
                self.answer("refund.created", refund_shape(refund), before, created=None, lost=lost)

    def ask_capture(self, part: int, *, lost: bool, late: int) -> None:
        """A caller takes what is held."""
        before = len(self.events)
        self.capture(part)
        self.answer_state(intent_shape(ApiVersion.PINNED, self.intent, invoice_id=None), before, lost=lost, late=late)

    def ask_cancel(self, *, lost: bool, late: int) -> None:
        """A caller gives up an intent, what it holds, or an open page."""
        before = len(self.events)
        if self.is_checkout and not self.session_is_complete:
            self.expire()
            shown = {"id": SESSION, "object": "checkout.session", "amount_total": self.amount, "status": "expired"}
            shape: dict[str, Any] = shown | {"currency": self.currency, "payment_intent": None, "subscription": None}
        else:
            self.cancel()
            shape = intent_shape(ApiVersion.PINNED, self.intent, invoice_id=None)
        self.answer_state(shape, before, lost=lost, late=late)

    def answer_state(self, shape: dict[str, Any], before: int, *, lost: bool, late: int) -> None:
        """An answer that shows a state, which recovery may see only hours later, by a clock of its own."""
        told = type_of_state(shape)
        if told and len(self.events) > before:
            self.answer(told, shape, before, created=self.now + late, lost=lost)

    def answer(self, told: str, shape: dict[str, Any], before: int, *, created: int | None, lost: bool) -> None:
        """Stripe answers a caller's request; its own events of that may be lost."""
        if lost:
            of_it = (told, "charge.refunded") if told == "refund.created" and self.version.tells_refunds else (told,)
            self.events[before:] = [event for event in self.events[before:] if event.type not in of_it]
        upstream_key = f"{uuid.UUID(int=1000 + self.told_count)}:1"
        self.events.append(answer_event(upstream_key, told, shape, created=created))

    # What may happen, each when it can.

    def pass_time(self) -> None:
        self.now += 1

    def look(self) -> None:
        """Somebody reads the payment's objects."""
        seen = copy.copy(self)
        seen.events, seen.looks = [], []
        self.looks.append(copy.deepcopy(seen))

    def lag(self) -> None:
        """The next object tells a little later of the same."""
        self.now += self.slow

    @property
    def is_open(self) -> bool:
        """Whether the customer can try to pay."""
        busy = self.status in ("canceled", "expired", "requires_capture", "pending", "processing")
        return not (self.paid or self.free or busy or self.session_is_complete)

    def new_charge(self, charge_id: str, status: str, *, code: str | None = None) -> Charge:
        amount = self.intent.amount
        charge = Charge(charge_id, INTENT, amount, status, 0, code, self.failed_refunds_count, created=self.now)
        self.intent.charge = charge
        self.all_charges.append(charge)
        return charge

    def fail(self, code: str = "card_declined", *, charged: bool = True) -> None:
        """The customer's card is declined; or the customer isn't authenticated, and no charge is made."""
        if not self.is_open:
            return
        self.pass_time()
        self.charge_count += 1
        charge = self.new_charge(f"ch_failed_{self.charge_count}", "failed", code=code) if charged else None
        self.record_failure(code, charge)

    def record_failure(self, code: str, charge: Charge | None) -> None:
        """One try: its charge, its intent and its invoice tell of it.

        An authentication that fails leaves no charge in the error:
        https://docs.stripe.com/api/payment_intents/object#payment_intent_object-last_payment_error-charge
        """
        self.failure_codes.append(code)
        self.intent.error = {"type": "card_error", "code": code, "message": "No."}
        if charge:
            self.intent.error["charge"] = charge.id
            self.tell_charge("failed", charge)
            self.lag()
        self.intent.status = "requires_payment_method"
        self.tell_intent("payment_failed")
        self.lag()
        if self.subscription:
            # A customer's tries on the page all count as the first:
            # https://docs.stripe.com/api/invoices/object#invoice_object-attempt_count
            self.tell_invoice("payment_failed", intent=self.intent)
        self.status = "failed"

    def ask_action(self) -> None:
        """The bank asks the customer. Before a checkout names its intent, only a failed try of it is shown."""
        if not self.is_open or self.kind is PaymentKind.CHECKOUT_SESSION:
            return
        self.pass_time()
        self.intent.status, self.intent.error = "requires_action", None
        self.tell_intent("requires_action")
        if self.subscription:
            self.tell_invoice("payment_action_required", intent=self.intent)
        self.status = "requires_action"

    def process(self) -> None:
        """A method that takes days begins."""
        if not self.is_open:
            return
        self.pass_time()
        self.charge_count += 1
        charge = self.new_charge(f"ch_slow_{self.charge_count}", "pending")
        self.intent.status, self.intent.error = "processing", None
        self.tell_intent("processing")
        self.tell_charge("pending", charge)
        self.status = "processing"
        if self.is_checkout:
            self.complete_session_unpaid()

    def complete_session_unpaid(self) -> None:
        self.pass_time()
        self.tell_session("completed", payment_status="unpaid")
        self.session_is_complete = True
        self.status = "pending"

    def fail_later(self) -> None:
        """What took days fails; a page is not opened again for it."""
        charge = self.intent.charge
        if self.paid or self.intent.status != "processing" or not charge:
            return
        self.pass_time()
        charge.status, charge.failure_code = "failed", "debit_failed"
        self.record_failure("debit_failed", charge)
        if self.is_checkout:
            self.lag()
            self.tell_session("async_payment_failed", payment_status="unpaid")

    def authorize(self) -> None:
        """The money is held and not yet taken. The charge has succeeded all the same.

        https://docs.stripe.com/payments/place-a-hold-on-a-payment-method
        """
        if not self.is_open or self.subscription:
            return
        self.pass_time()
        charge = self.new_charge(CHARGE, "succeeded")
        self.intent.status, self.intent.error, self.intent.capturable = "requires_capture", None, AMOUNT
        self.tell_charge("succeeded", charge)
        self.tell_intent("amount_capturable_updated")
        if self.is_checkout:
            self.tell_session("completed", payment_status="unpaid")
            self.session_is_complete = True
        self.status = "requires_capture"

    def increment(self, more: int) -> None:
        """More is authorised: https://docs.stripe.com/payments/incremental-authorization."""
        charge = self.intent.charge
        if self.status != "requires_capture" or not charge or self.is_checkout:
            return
        self.pass_time()
        charge.amount += more
        self.intent.amount, self.intent.capturable = charge.amount, charge.amount
        self.tell_charge("updated", charge)
        self.tell_intent("amount_capturable_updated")

    def reprice(self, total: int) -> None:
        """On the page: taxes, shipping, and a promotion code that may leave nothing to pay."""
        if self.is_checkout and self.is_open and not self.events:
            self.amount = self.intent.amount = total

    def pay(self, part: int = AMOUNT) -> None:
        """The money is taken: all of it, or `part` of what was authorised (which may be more than all of it)."""
        if self.status == "requires_capture":
            self.capture(part)
        elif self.is_open or self.intent.status == "processing":
            was_pending = self.status == "pending"
            self.take()
            self.end_session_paid("async_payment_succeeded" if was_pending else "completed")

    def pay_invoice_later(self) -> None:
        """The page's try failed for good; the customer pays the invoice by its own page."""
        if self.subscription and self.session_is_complete and self.status == "failed":
            self.take()

    def take(self) -> None:
        self.pass_time()
        charge = self.intent.charge
        if not charge or charge.status != "pending":
            charge = self.new_charge(CHARGE, "succeeded")
        self.intent.error = None
        charge.status, charge.captured = "succeeded", charge.amount
        self.tell_charge("succeeded", charge)
        self.lag()
        self.receive(self.intent)
        if self.subscription:
            self.tell_invoice("paid", intent=self.intent, amount_paid=self.received)

    def receive(self, intent: Intent) -> None:
        """Money has come by an intent."""
        assert intent.charge
        intent.status, intent.capturable, intent.received = "succeeded", 0, intent.charge.captured
        self.paid_intents.append(intent)
        self.received += intent.received
        self.paid = True
        self.status = "succeeded"
        self.tell_intent("succeeded", intent)
        self.lag()
        if self.subscription and self.version.has_invoice_payments:
            payment_id = f"inpay_{len(self.paid_intents)}"
            self.tell("invoice_payment.paid", invoice_payment_shape(payment_id, INVOICE, intent))

    def end_session_paid(self, name: str) -> None:
        if self.is_checkout:
            self.lag()
            self.tell_session(name, payment_status="paid")
            self.session_is_complete = True

    def pay_in_parts(self, first: int) -> None:
        """Two intents pay one invoice.

        https://docs.stripe.com/changelog/basil/2025-03-31/add-support-for-multiple-partial-payments-on-invoices
        """
        if not (self.is_open and self.subscription and self.version.has_invoice_payments):
            return
        self.pass_time()
        second = Intent("pi_2", AMOUNT - first)
        self.intent.amount, self.intent.error = first, None
        for intent, charge_id in ((self.intent, CHARGE), (second, "ch_2")):
            charge = Charge(charge_id, intent.id, intent.amount, captured=intent.amount)
            charge.failed_refunds_count, charge.created = self.failed_refunds_count, self.now
            intent.charge = charge
            self.all_charges.append(charge)
            self.tell_charge("succeeded", charge)
            self.receive(intent)
        self.tell_invoice("paid", intent=None, amount_paid=self.received)
        self.end_session_paid("completed")

    def capture(self, part: int, *, first: int = 0) -> None:
        """Take `part` of what is held, `first` of it by a capture of its own; Stripe lets go of the rest.

        More than was held: https://docs.stripe.com/payments/overcapture; by several captures:
        https://docs.stripe.com/payments/multicapture
        """
        charge = self.intent.charge
        if self.status != "requires_capture" or not charge:
            return
        if 0 < first < min(part, charge.amount):
            self.pass_time()
            charge.captured = self.intent.received = first
            self.intent.capturable = charge.amount - first
            self.tell_charge("captured", charge)
            self.tell_intent("amount_capturable_updated")
        self.pass_time()
        charge.captured = part
        self.tell_charge("captured", charge)
        self.receive(self.intent)
        self.release(charge)

    def release(self, charge: Charge) -> None:
        """Stripe shows what it lets go as a refund that moves no balance."""
        if charge.amount > charge.captured:
            let_go = charge.amount - charge.captured
            release = Refund(f"re_released_{charge.id}", charge, let_go, "succeeded", self.now, None, is_release=True)
            charge.refunds.append(release)
            self.tell_charge_refunded(charge)
            self.tell_refund(release, is_new=True)

    def pay_nothing(self, payment_status: str) -> None:
        """A free checkout, or a trial, is complete: no intent is made.

        https://docs.stripe.com/payments/checkout/no-cost-orders
        """
        if not self.free or self.session_is_complete or self.status == "expired":
            return
        self.pass_time()
        if self.subscription:
            self.tell_invoice("paid", intent=None)
        self.paid, self.session_is_complete, self.status = True, True, "succeeded"
        self.tell_session("completed", payment_status=payment_status)

    def settle(self, *, outside: bool) -> None:
        """The invoice is paid outside of Stripe, or by the customer's credit: no intent pays it.

        https://docs.stripe.com/api/invoices/object#invoice_object-amount_paid
        """
        ended = self.session_is_complete and self.status == "failed"
        if not self.subscription or not (self.is_open or ended):
            return
        if not self.session_is_complete:
            self.complete_session_unpaid()
        self.pass_time()
        self.received = AMOUNT if outside else 0
        flag = {} if self.version.has_invoice_payments else {"paid_out_of_band": outside}
        self.tell_invoice("paid", intent=None, amount_paid=self.received, **flag)
        self.paid, self.status = True, "succeeded"

    def renew(self, *, paid: bool = False) -> None:
        """The subscription's next month: none of the payment's business."""
        if not (self.subscription and self.paid):
            return
        self.pass_time()
        charge = Charge("ch_renewal", "pi_renewal", AMOUNT, captured=AMOUNT)
        intent = Intent("pi_renewal", AMOUNT, "succeeded", AMOUNT, charge=charge)
        names = {"subscription_id": SUBSCRIPTION, "reason": "subscription_cycle"}
        if not paid:
            self.tell("invoice.payment_failed", invoice_shape(self.version, "in_2", intent=intent, **names))
            return
        shape = invoice_shape(self.version, "in_2", intent=intent, amount_paid=AMOUNT, **names)
        self.tell("invoice.paid", shape)
        if self.version.has_invoice_payments:
            self.tell("invoice_payment.paid", invoice_payment_shape("inpay_renewal", "in_2", intent))
        self.tell("payment_intent.succeeded", intent_shape(self.version, intent, invoice_id="in_2"))
        self.tell("charge.succeeded", charge_shape(self.version, charge, invoice_id="in_2"))

    def cancel(self) -> None:
        """The app gives up; what was held is let go."""
        held = self.status == "requires_capture"
        idle = self.kind is PaymentKind.PAYMENT_INTENT and not self.paid
        if not held and (not idle or self.status in ("canceled", "processing")):
            return
        self.pass_time()
        self.intent.status, self.intent.capturable = "canceled", 0
        self.tell_intent("canceled")
        if held and self.intent.charge:
            self.release(self.intent.charge)
        self.status = "canceled"

    def expire(self) -> None:
        """The customer never came."""
        if self.is_checkout and not self.session_is_complete and self.status != "expired":
            self.pass_time()
            self.tell_session("expired", payment_status="unpaid", payment_intent=None, subscription=None, invoice=None)
            self.status = "expired"

    def charge_of(self, which: int) -> Charge | None:
        return self.paid_intents[which % len(self.paid_intents)].charge if self.paid_intents else None

    def is_told_for_sure(self, charge: Charge) -> bool:
        """Whether what the charge shows is known: see `failed_refunds_count`. 2022-11-15 doesn't name all refunds."""
        names_all = self.version.lists_inside or self.version.tells_refunds
        return names_all or all(refund.is_active for refund in charge.refunds)

    def touch(self, which: int) -> None:
        """Something that is no matter of money changes on the charge."""
        charge = self.charge_of(which)
        if charge and self.is_told_for_sure(charge):
            self.pass_time()
            self.tell_charge("updated", charge)

    def refund(self, amount: int, *, pending: bool = False, which: int = 0) -> None:
        """The app gives money back. A disputed charge can't be refunded; one that is inquired about can."""
        charge = self.charge_of(which)
        disputed = any(dispute.held and dispute.charge is charge for dispute in self.all_disputes)
        if not charge or disputed or charge.refundable <= 0 or not self.is_told_for_sure(charge):
            return
        self.pass_time()
        number = sum(not refund.is_release for refund in self.all_refunds)
        given = min(amount, charge.refundable)
        status, moved = ("pending", None) if pending else ("succeeded", f"txn_re_{number}")
        refund = Refund(f"re_{number}", charge, given, status, self.now, moved)
        charge.refunds.append(refund)
        self.tell_refund(refund, is_new=True)
        self.tell_charge_refunded(charge)
        if charge.refunded >= charge.captured:
            self.close_inquiries(charge)

    @property
    def all_refunds(self) -> list[Refund]:
        return [refund for intent in self.paid_intents if intent.charge for refund in intent.charge.refunds]

    def close_inquiries(self, charge: Charge) -> None:
        """A full refund ends an inquiry; older versions call the end by its cause.

        https://docs.stripe.com/disputes/how-disputes-work#inquiries
        """
        for dispute in self.all_disputes:
            if dispute.charge is charge and dispute.is_open:
                self.pass_time()
                dispute.status = "warning_closed" if self.version.has_invoice_payments else "charge_refunded"
                self.tell_dispute(dispute, "closed")

    def move_refund(self, number: int, status: str) -> None:
        """A bank lets a refund succeed, or sends it back; or the app takes it back in time."""
        refunds = [refund for refund in self.all_refunds if not refund.is_release]
        if not refunds or status not in _REFUNDS_NEXT.get(refunds[number % len(refunds)].status, ()):
            return
        refund = refunds[number % len(refunds)]
        self.pass_time()
        refund.status = status
        if status == "succeeded":
            refund.balance_transaction = f"txn_{refund.id}"
        self.tell_refund(refund)
        if self.is_told_for_sure(refund.charge):
            self.tell_charge("updated", refund.charge)

    def dispute(self, status: str, amount: int = AMOUNT, *, which: int = 0) -> None:
        """The customer asks the bank for the money, or only asks; one charge may see several."""
        charge = self.charge_of(which)
        complained = sum(it.amount for it in self.all_disputes if it.charge is charge and not it.is_closed_without_loss)
        if not charge or complained >= charge.captured:
            return
        self.pass_time()
        number, left = len(self.all_disputes), charge.captured - complained
        dispute = Dispute(f"du_{number}", charge, min(amount, left), status)
        self.all_disputes.append(dispute)
        self.tell_dispute(dispute, "created")
        if dispute.held:
            self.tell_dispute(dispute, "funds_withdrawn")

    def move_dispute(self, status: str, number: int = 0) -> None:
        """The bank decides."""
        if not self.all_disputes:
            return
        dispute = self.all_disputes[number % len(self.all_disputes)]
        if status not in _DISPUTES_NEXT.get(dispute.status, ()):
            return
        self.pass_time()
        dispute.status = status
        self.tell_dispute(dispute, "updated" if dispute.is_open else "closed")
        if status == "won":
            self.tell_dispute(dispute, "funds_reinstated")

    # What it comes to.

    @property
    def refunded(self) -> int:
        return sum(refund.amount for refund in self.all_refunds if refund.is_active and not refund.is_release)

    @property
    def disputed(self) -> int:
        return sum(dispute.held for dispute in self.all_disputes)

    @property
    def lost(self) -> int:
        """What disputes have taken for good."""
        return sum(dispute.amount for dispute in self.all_disputes if dispute.status == "lost")

    @property
    def refunds(self) -> dict[str, tuple[int, str]]:
        """The refunds that Stripe has named; 2022-11-15 names none that changes no more after it is made."""
        named = [refund for refund in self.named_refunds.values() if not refund.is_release]
        return {refund.id: (refund.amount, refund.status) for refund in named}

    @property
    def disputes(self) -> dict[str, tuple[int, str]]:
        return {dispute.id: (dispute.amount, dispute.status) for dispute in self.all_disputes}

    @property
    def failures(self) -> int:
        return len(self.failure_codes)

    @property
    def success_count(self) -> int:
        """One for each paid intent; one for what was paid without any."""
        return len(self.paid_intents) or int(self.paid)

    @property
    def expected_status(self) -> str:
        if any(not dispute.is_closed_without_loss for dispute in self.all_disputes):
            return "disputed"
        if self.refunded:
            return "refunded" if self.refunded >= self.received else "partially_refunded"
        return self.status


Action = tuple[str, tuple[Any, ...], dict[str, Any]]
Choice = st.SearchStrategy[Action]


def _plain(*names: str) -> Choice:
    return st.sampled_from(names).map(lambda name: (name, (), {}))


def _try() -> Choice:
    return st.one_of(
        _plain("fail", "ask_action", "pass_time"),
        st.just(("fail", ("payment_intent_authentication_failure",), {"charged": False})),
    )


# More than the authorised amount is an overcapture; less lets go of the rest.
_captured = st.just(AMOUNT) | st.integers(1, AMOUNT + 1000)
_increment: Choice = st.integers(1, AMOUNT).map(lambda more: ("increment", (more,), {}))
_asked = st.fixed_dictionaries({"lost": st.booleans(), "late": st.sampled_from([-2, 0, 1, 20 * 3600])})
_ask_capture: Choice = st.tuples(_captured, _asked).map(lambda it: ("ask_capture", (it[0],), it[1]))
_ask_cancel: Choice = _asked.map(lambda options: ("ask_cancel", (), options))
_capture: Choice = st.one_of(
    _ask_capture,
    _captured.map(lambda part: ("pay", (part,), {})),
    st.tuples(_captured, st.integers(1, AMOUNT)).map(lambda it: ("capture", (it[0],), {"first": it[1]})),
)
_at_once = st.tuples(_plain("pay"))
_held = st.one_of(
    st.tuples(_plain("authorize"), _capture),
    st.tuples(_plain("authorize"), _increment, _capture),
    st.tuples(_plain("authorize"), _plain("cancel", "pass_time") | _ask_cancel),
)
_slow = st.tuples(_plain("process"), _plain("pay", "fail_later", "fail_later", "pass_time"), _plain("fail", "pay"))
_free: Choice = st.sampled_from(["paid", "no_payment_required"]).map(lambda it: ("pay_nothing", (it,), {}))
_reprice: Choice = st.sampled_from([0, AMOUNT - 1000, AMOUNT + 1000]).map(lambda total: ("reprice", (total,), {}))
_repriced = st.tuples(_reprice, _plain("pay"), _free)
_given_up = st.tuples(_plain("cancel", "expire", "pass_time") | _ask_cancel)
_parts: Choice = st.integers(1, AMOUNT - 1).map(lambda first: ("pay_in_parts", (first,), {}))
_settling: Choice = st.booleans().map(lambda outside: ("settle", (), {"outside": outside}))
_paid_later = st.tuples(_plain("process"), _plain("fail_later"), _plain("pay_invoice_later") | _settling)


def _ways_to_pay(life: Life) -> st.SearchStrategy[tuple[Action, ...]]:
    """How the payment is paid, or isn't."""
    if life.free:
        return st.one_of(st.tuples(_free), _given_up)
    if life.subscription:
        return st.one_of(_at_once, _slow, st.tuples(_parts), st.tuples(_settling), _paid_later, _repriced, _given_up)
    return st.one_of(_at_once, _held, _held, _slow, _repriced, _given_up)


def _after_payment() -> Choice:
    amounts, which = st.integers(1, AMOUNT), st.integers(0, 3)
    refund_ends = st.sampled_from(["succeeded", "failed", "canceled"])
    begins = st.sampled_from(["needs_response", "warning_needs_response", "prevented"])
    moves = st.sampled_from(
        ["won", "lost", "warning_closed", "prevented", "under_review", "warning_under_review", "needs_response"]
    )
    return st.one_of(
        st.tuples(amounts | st.just(AMOUNT + 9000), st.booleans(), which).map(
            lambda it: ("refund", (it[0],), {"pending": it[1], "which": it[2]})
        ),
        st.tuples(amounts | st.just(AMOUNT), st.booleans(), which, st.booleans()).map(
            lambda it: ("ask_refund", (it[0],), {"pending": it[1], "which": it[2], "lost": it[3]})
        ),
        st.tuples(which, refund_ends).map(lambda it: ("move_refund", it, {})),
        st.tuples(begins, amounts | st.just(AMOUNT), which).map(lambda it: ("dispute", it[:2], {"which": it[2]})),
        st.tuples(moves, which).map(lambda it: ("move_dispute", it, {})),
        st.booleans().map(lambda paid: ("renew", (), {"paid": paid})),
        which.map(lambda it: ("touch", (it,), {})),
        _plain("fail", "cancel", "pass_time", "expire"),
        _ask_cancel,
    )


@st.composite
def lives(draw: st.DrawFn, versions: Iterable[ApiVersion] = ApiVersion) -> Life:
    """Any life of a payment: what is tried first, how it is paid, if so, and what comes of it."""
    kind = draw(st.sampled_from([PaymentKind.PAYMENT_INTENT, PaymentKind.CHECKOUT_SESSION]))
    is_checkout = kind is PaymentKind.CHECKOUT_SESSION
    version = draw(st.sampled_from(list(versions)))
    cost = draw(st.sampled_from([AMOUNT] * 6 + [0, None])) if is_checkout else AMOUNT
    is_subscription = is_checkout and draw(st.booleans())
    life = Life(kind, subscription=is_subscription, version=version, slow=draw(st.booleans()), amount=cost)
    life.failed_refunds_count = draw(st.booleans())
    if kind is PaymentKind.PAYMENT_INTENT:
        life.tell_intent("created")
    tried = draw(st.lists(_try(), max_size=3))
    paid = draw(_ways_to_pay(life))
    later = draw(st.lists(_after_payment(), min_size=draw(st.integers(0, 5)), max_size=7))
    looks = draw(st.sets(st.integers(0, 9), max_size=2))
    for number, (name, arguments, options) in enumerate([*tried, *paid, *later]):
        getattr(life, name)(*arguments, **options)
        if number in looks:
            life.look()
    if life.events:
        for number in draw(st.lists(st.integers(0, 99), max_size=4)):
            life.tell_again(number)
    return life
