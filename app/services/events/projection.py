"""What a payment has become: a pure function of the set of its events, whatever order they came in and how often.

Everything here joins facts by OR, by MAX or by the id of what they are about, so that it can't matter which event
came first. `created` is in whole seconds at Stripe, and event ids aren't ordered: where two events of one second
disagree, a rank decides, and the id only where that is equal.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from app.models import PaymentKind, PaymentStatus

PAID_SESSION = frozenset({"paid", "no_payment_required"})
DISPUTE_CLOSED_WITHOUT_LOSS = frozenset({"won", "warning_closed", "prevented"})
DISPUTE_CLOSED = DISPUTE_CLOSED_WITHOUT_LOSS | {"lost"}

# A refund only moves to the right; one that had succeeded can still fail, when the customer's bank sends it back.
# https://docs.stripe.com/refunds#failed-refunds
REFUND_RANK = {"pending": 0, "requires_action": 0, "succeeded": 1, "failed": 2, "canceled": 2}

# Which of several unfinished states of one second is the later one.
STATUS_RANK = {
    PaymentStatus.REQUIRES_PAYMENT_METHOD: 1,
    PaymentStatus.REQUIRES_CONFIRMATION: 2,
    PaymentStatus.REQUIRES_ACTION: 3,
    PaymentStatus.PROCESSING: 4,
    # The checkout's word for it, which comes in the same second as its intent's.
    PaymentStatus.PENDING: 5,
    PaymentStatus.REQUIRES_CAPTURE: 6,
    PaymentStatus.FAILED: 7,
}
CREATED_RANK = 0

# https://docs.stripe.com/upgrades#what-changes-does-stripe-consider-to-be-backward-compatible
MAX_ID_LENGTH = 255

# 9999-12-31 23:59:59, the last second that a datetime can hold: an event may carry any integer.
LAST_SECOND = 253_402_300_799


@dataclass(frozen=True)
class Event:
    """A Stripe event about a payment; `created` is in seconds since 1970."""

    id: str
    type: str
    created: int
    object: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """What the object is, by its own word: an id's prefix doesn't tell (a Link refund is `pyr_`)."""
        return str(self.object.get("object", ""))


@dataclass(frozen=True, kw_only=True)
class Creation:
    """What is known of a payment from its creation alone. Amounts are in the currency's smallest unit."""

    kind: PaymentKind
    status: str
    amount_in_cents: int | None
    currency: str | None
    payment_intent_id: str | None
    checkout_session_id: str | None
    subscription_id: str | None
    customer_id: str | None


@dataclass(frozen=True, kw_only=True)
class Success:
    """A payment intent that succeeded, or a checkout that was paid without one."""

    id: str
    stripe_payment_intent_id: str | None
    stripe_charge_id: str | None
    amount_in_cents: int | None
    currency: str | None
    receipt_url: str | None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A try to pay that failed."""

    id: str
    stripe_payment_intent_id: str | None
    failure_code: str | None
    failure_message: str | None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Refund:
    """A refund in its latest state."""

    id: str
    stripe_refund_id: str
    stripe_payment_intent_id: str | None
    stripe_charge_id: str | None
    amount_in_cents: int
    currency: str | None
    reason: str | None
    status: str | None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Dispute:
    """A dispute in its latest state."""

    id: str
    stripe_dispute_id: str
    stripe_payment_intent_id: str | None
    stripe_charge_id: str | None
    amount_in_cents: int
    currency: str | None
    reason: str | None
    status: str | None
    created_at: datetime

    @property
    def takes_money(self) -> bool:
        """Whether it is open or lost."""
        return self.status not in DISPUTE_CLOSED_WITHOUT_LOSS


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What a payment has become. Amounts are in the currency's smallest unit."""

    status: str
    amount_in_cents: int | None
    currency: str | None
    payment_intent_id: str | None
    subscription_id: str | None
    invoice_id: str | None
    charge_id: str | None
    customer_id: str | None
    received_in_cents: int
    refunded_in_cents: int
    disputed_in_cents: int
    successes: tuple[Success, ...]
    failures: tuple[Failure, ...]
    refunds: tuple[Refund, ...]
    disputes: tuple[Dispute, ...]


@dataclass
class _Facts:
    """The events of a payment by what they are about; those about something else are left out."""

    creation: Creation
    sessions: list[Event] = field(default_factory=list)
    invoices: list[Event] = field(default_factory=list)
    intents: list[Event] = field(default_factory=list)
    unconfirmed_intents: list[Event] = field(default_factory=list)
    charges: list[Event] = field(default_factory=list)
    refunds: list[tuple[Event, Mapping[str, Any]]] = field(default_factory=list)
    disputes: list[Event] = field(default_factory=list)
    payment_intent_id: str | None = None
    subscription_id: str | None = None
    invoice_id: str | None = None


def project(creation: Creation, events: Iterable[Event]) -> Projection:
    """Fold events into what the payment has become. The same event id counts once."""
    facts = _gather(creation, {event.id: event for event in events}.values())
    session = _last([event for event in facts.sessions if isinstance(event.object.get("amount_total"), int)])
    successes = _successes(facts)
    refunds = _refunds(facts)
    disputes = _disputes(facts)
    received = _received(facts)
    refunded = _refunded(facts, refunds)
    return Projection(
        status=_status(facts, received=received, refunded=refunded, disputes=disputes),
        amount_in_cents=cents(session.object["amount_total"]) if session else creation.amount_in_cents,
        currency=(session and _currency(session.object)) or creation.currency,
        payment_intent_id=facts.payment_intent_id,
        subscription_id=facts.subscription_id,
        invoice_id=facts.invoice_id,
        charge_id=next((success.stripe_charge_id for success in successes if success.stripe_charge_id), None),
        customer_id=_customer(facts),
        received_in_cents=received,
        refunded_in_cents=refunded,
        disputed_in_cents=sum(dispute.amount_in_cents for dispute in disputes if dispute.takes_money),
        successes=successes,
        failures=_failures(facts),
        refunds=refunds,
        disputes=disputes,
    )


def _gather(creation: Creation, events: Iterable[Event]) -> _Facts:
    facts = _Facts(creation)
    by_kind: dict[str, list[Event]] = {}
    for event in sorted(events, key=_order):
        by_kind.setdefault(event.kind, []).append(event)
    facts.sessions = [
        e for e in by_kind.get("checkout.session", ()) if e.object.get("id") == creation.checkout_session_id
    ]
    _gather_subscription(facts, by_kind)
    _gather_intents(facts, by_kind.get("payment_intent", []))
    if facts.payment_intent_id:
        _gather_money(facts, by_kind)
    return facts


def _gather_subscription(facts: _Facts, by_kind: Mapping[str, list[Event]]) -> None:
    """Find the subscription, its first invoice and that one's intent; renewals are none of the payment's business."""
    facts.subscription_id = facts.creation.subscription_id or _first_id(facts.sessions, "subscription")
    if facts.subscription_id is None:
        return
    invoices = by_kind.get("invoice", [])
    first = [e for e in invoices if is_first_invoice(e.object) and subscription_of(e.object) == facts.subscription_id]
    facts.invoice_id = _first_id(facts.sessions, "invoice") or _first_id(first, "id")
    facts.invoices = [e for e in invoices if e.object.get("id") == facts.invoice_id]
    payments = [e for e in by_kind.get("invoice_payment", ()) if id_of(e.object.get("invoice")) == facts.invoice_id]
    facts.payment_intent_id = _first_id(facts.invoices, "payment_intent") or next(
        filter(None, (id_of(dig(e.object, "payment", "payment_intent")) for e in payments)), None
    )


def _gather_intents(facts: _Facts, intents: list[Event]) -> None:
    creation = facts.creation
    facts.payment_intent_id = (
        creation.payment_intent_id or _first_id(facts.sessions, "payment_intent") or facts.payment_intent_id
    )
    if facts.payment_intent_id:
        facts.intents = [e for e in intents if e.object.get("id") == facts.payment_intent_id]
    elif creation.kind is PaymentKind.CHECKOUT_SESSION:
        # Nobody but the session can tell which intent is its own; until it does, one that carries the payment's
        # metadata and asks for the same money may show a failed try, and never more than that.
        facts.unconfirmed_intents = [
            e
            for e in intents
            if e.object.get("amount") == creation.amount_in_cents and e.object.get("currency") == creation.currency
        ]


def _gather_money(facts: _Facts, by_kind: Mapping[str, list[Event]]) -> None:
    intent_id = facts.payment_intent_id
    facts.charges = [e for e in by_kind.get("charge", ()) if id_of(e.object.get("payment_intent")) == intent_id]
    charge_ids = {id_of(e.object.get("latest_charge")) for e in facts.intents} | {
        id_of(e.object.get("id")) for e in facts.charges
    }

    def is_ours(reversal: Mapping[str, Any]) -> bool:
        of_intent = id_of(reversal.get("payment_intent"))
        return of_intent == intent_id or (of_intent is None and id_of(reversal.get("charge")) in charge_ids - {None})

    facts.refunds = [(e, e.object) for e in by_kind.get("refund", ()) if is_ours(e.object)]
    for event in facts.charges:
        # Before 2022-11-15 a charge carried its refunds. https://docs.stripe.com/changelog
        listed = dig(event.object, "refunds", "data")
        if isinstance(listed, list):
            facts.refunds += [(event, refund) for refund in listed if isinstance(refund, Mapping)]
    facts.disputes = [e for e in by_kind.get("dispute", ()) if is_ours(e.object)]


def _is_paid(facts: _Facts) -> bool:
    return any(event.type == "payment_intent.succeeded" for event in facts.intents) or _paid_session(facts) is not None


def _paid_session(facts: _Facts) -> Event | None:
    return _last(
        [
            event
            for event in facts.sessions
            if event.type == "checkout.session.async_payment_succeeded"
            or (
                event.type == "checkout.session.completed"
                and text_of(event.object.get("payment_status")) in PAID_SESSION
            )
        ]
    )


def _received(facts: _Facts) -> int:
    """What came in: the intent says so; until it does, the first invoice, or a session that is paid."""
    by_intent = max((cents(event.object.get("amount_received")) for event in facts.intents), default=0)
    by_invoice = max((cents(event.object.get("amount_paid")) for event in facts.invoices), default=0)
    session = _paid_session(facts)
    return by_intent or by_invoice or (cents(session.object.get("amount_total")) if session else 0)


def _refunded(facts: _Facts, refunds: Iterable[Refund]) -> int:
    """What went back: the refunds that we know to have succeeded, or what the charges say of those that we don't."""
    succeeded = sum(refund.amount_in_cents for refund in refunds if refund.status == "succeeded")
    return max(succeeded, _refunded_by_charges(facts))


def _refunded_by_charges(facts: _Facts) -> int:
    """By charge the most that it ever showed as refunded, without the refunds in it that failed later."""
    charges: dict[str | None, list[Event]] = {}
    for event in facts.charges:
        charges.setdefault(id_of(event.object.get("id")), []).append(event)
    failed = _failed_refunds(facts)
    return sum(_refunded_by_charge(snapshots, failed) for snapshots in charges.values())


def _refunded_by_charge(snapshots: list[Event], failed: list[tuple[int, int, int]]) -> int:
    # What was authorised and never captured is shown as refunded too, though it was never received.
    captured = max(_captured(event.object) for event in snapshots)
    never_captured = max(cents(event.object.get("amount")) for event in snapshots) - captured

    def shown(event: Event) -> int:
        undone = sum(amount for made, ended, amount in failed if made <= event.created <= ended)
        return cents(event.object.get("amount_refunded")) - never_captured - undone

    return max(0, *(shown(event) for event in snapshots))


def _failed_refunds(facts: _Facts) -> list[tuple[int, int, int]]:
    """Of each refund that failed: when it was made, when that was told first, and its amount."""
    failed: dict[str | None, tuple[int, int, int]] = {}
    for event, refund in facts.refunds:
        if REFUND_RANK.get(text_of(refund.get("status")) or "", 0) == REFUND_RANK["failed"]:
            made, refund_id = refund.get("created"), id_of(refund.get("id"))
            told = (made if isinstance(made, int) else 0, event.created, cents(refund.get("amount")))
            failed[refund_id] = min(failed.get(refund_id, told), told, key=lambda row: row[1:])
    return list(failed.values())


def _captured(charge: Mapping[str, Any]) -> int:
    """What was captured of a charge; the amount of that is shown since 2020."""
    if "amount_captured" in charge:
        return cents(charge["amount_captured"])
    return 0 if charge.get("captured") is False else cents(charge.get("amount"))


def _status(facts: _Facts, *, received: int, refunded: int, disputes: Iterable[Dispute]) -> str:
    if any(dispute.takes_money for dispute in disputes):
        return PaymentStatus.DISPUTED
    if refunded > 0:
        return PaymentStatus.REFUNDED if refunded >= received else PaymentStatus.PARTIALLY_REFUNDED
    if _is_paid(facts):
        return PaymentStatus.SUCCEEDED
    if any(event.type == "payment_intent.canceled" for event in facts.intents):
        return PaymentStatus.CANCELED
    if any(event.type == "checkout.session.expired" for event in facts.sessions):
        return PaymentStatus.EXPIRED
    return max(_unfinished(facts), default=(0, 0, "", facts.creation.status))[3]


def _unfinished(facts: _Facts) -> Iterable[tuple[int, int, str, str]]:
    """What isn't final, as (created, rank, event id, status): the greatest is the latest."""
    for event in (*facts.intents, *facts.unconfirmed_intents):
        yield from _unfinished_intent(event)
    for event in (*facts.sessions, *facts.invoices):
        if event.type in ("checkout.session.async_payment_failed", "invoice.payment_failed"):
            yield event.created, STATUS_RANK[PaymentStatus.FAILED], event.id, PaymentStatus.FAILED
        elif event.type == "checkout.session.completed" and event.object.get("payment_status") == "unpaid":
            yield event.created, STATUS_RANK[PaymentStatus.PENDING], event.id, PaymentStatus.PENDING


_STATUS_OF_INTENT_EVENT = {
    "payment_intent.created": PaymentStatus.REQUIRES_PAYMENT_METHOD,
    "payment_intent.requires_action": PaymentStatus.REQUIRES_ACTION,
    "payment_intent.processing": PaymentStatus.PROCESSING,
    "payment_intent.amount_capturable_updated": PaymentStatus.REQUIRES_CAPTURE,
    "payment_intent.payment_failed": PaymentStatus.FAILED,
}


def _unfinished_intent(event: Event) -> Iterable[tuple[int, int, str, str]]:
    if event.type == "payment_intent.created":
        shown = text_of(event.object.get("status"))
        status = shown if shown in STATUS_RANK else PaymentStatus.REQUIRES_PAYMENT_METHOD
        yield event.created, CREATED_RANK, event.id, str(status)
    elif event.type in _STATUS_OF_INTENT_EVENT:
        status = _STATUS_OF_INTENT_EVENT[event.type]
        yield event.created, STATUS_RANK[status], event.id, status


def _successes(facts: _Facts) -> tuple[Success, ...]:
    """One for the payment's intent, or for its session where it was paid without one."""
    event = _last([e for e in facts.intents if e.type == "payment_intent.succeeded"]) or _paid_session(facts)
    if event is None:
        return ()
    charge_id = id_of(event.object.get("latest_charge")) or _succeeded_charge(facts)
    receipt = _last([e for e in facts.charges if e.object.get("receipt_url") and e.object.get("id") == charge_id])
    return (
        Success(
            id=facts.payment_intent_id or str(facts.creation.checkout_session_id),
            stripe_payment_intent_id=facts.payment_intent_id,
            stripe_charge_id=charge_id,
            amount_in_cents=_received(facts),
            currency=_currency(event.object),
            receipt_url=text_of(receipt.object.get("receipt_url")) if receipt else None,
            created_at=_time(event.created),
        ),
    )


def _succeeded_charge(facts: _Facts) -> str | None:
    charge = _last([e for e in facts.charges if e.object.get("status") == "succeeded"])
    return id_of(charge.object.get("id")) if charge else None


def _failures(facts: _Facts) -> tuple[Failure, ...]:
    """One for each try: the intent tells them apart; where there is none, the invoice or the session does."""
    tries: dict[str, Failure] = {}
    for event in (*facts.intents, *facts.unconfirmed_intents):
        if event.type == "payment_intent.payment_failed":
            error = event.object.get("last_payment_error")
            key = text_of(dig(error, "charge")) or event.id
            tries.setdefault(key, _failure(event, error, text_of(event.object.get("id"))))
    if not tries:
        for event in (*facts.invoices, *facts.sessions):
            if event.type in ("invoice.payment_failed", "checkout.session.async_payment_failed"):
                error = event.object.get("last_finalization_error")
                tries[event.id] = _failure(event, error, facts.payment_intent_id)
    return tuple(sorted(tries.values(), key=lambda failure: (failure.created_at, failure.id)))


def _failure(event: Event, error: object, payment_intent_id: str | None) -> Failure:
    return Failure(
        id=event.id,
        stripe_payment_intent_id=payment_intent_id,
        failure_code=text_of(dig(error, "code")),
        failure_message=text_of(dig(error, "message")),
        created_at=_time(event.created),
    )


def _refunds(facts: _Facts) -> tuple[Refund, ...]:
    furthest: dict[str, tuple[tuple[int, int, str], Mapping[str, Any], Event]] = {}
    for event, refund in facts.refunds:
        refund_id = text_of(refund.get("id"))
        place = (REFUND_RANK.get(str(refund.get("status")), 0), event.created, event.id)
        if refund_id and (refund_id not in furthest or furthest[refund_id][0] < place):
            furthest[refund_id] = (place, refund, event)
    refunds = [
        Refund(id=refund_id, stripe_refund_id=refund_id, **_reversal(refund, event))
        for refund_id, (_, refund, event) in furthest.items()
    ]
    return tuple(sorted(refunds, key=lambda refund: (refund.created_at, refund.id)))


def _disputes(facts: _Facts) -> tuple[Dispute, ...]:
    latest: dict[str, tuple[tuple[int, bool, str], Event]] = {}
    for event in facts.disputes:
        dispute_id = text_of(event.object.get("id"))
        place = (event.created, text_of(event.object.get("status")) in DISPUTE_CLOSED, event.id)
        if dispute_id and (dispute_id not in latest or latest[dispute_id][0] < place):
            latest[dispute_id] = (place, event)
    disputes = [
        Dispute(id=dispute_id, stripe_dispute_id=dispute_id, **_reversal(event.object, event))
        for dispute_id, (_, event) in latest.items()
    ]
    return tuple(sorted(disputes, key=lambda dispute: (dispute.created_at, dispute.id)))


def _reversal(reversal: Mapping[str, Any], event: Event) -> dict[str, Any]:
    """What a refund and a dispute have in common."""
    created = reversal.get("created")
    return {
        "stripe_payment_intent_id": id_of(reversal.get("payment_intent")),
        "stripe_charge_id": id_of(reversal.get("charge")),
        "amount_in_cents": cents(reversal.get("amount")),
        "currency": _currency(reversal),
        "reason": text_of(reversal.get("reason")),
        "status": text_of(reversal.get("status")),
        "created_at": _time(created if isinstance(created, int) else event.created),
    }


def _customer(facts: _Facts) -> str | None:
    events = facts.sessions or facts.intents
    named = _last([event for event in events if id_of(event.object.get("customer"))])
    return id_of(named.object.get("customer")) if named else facts.creation.customer_id


def is_first_invoice(invoice: Mapping[str, Any]) -> bool:
    """Whether this is the invoice that a subscription begins with."""
    return invoice.get("billing_reason") == "subscription_create"


def subscription_of(invoice: Mapping[str, Any]) -> str | None:
    """The subscription of an invoice, where newer API versions hold it and where older ones did."""
    newer = dig(invoice, "parent", "subscription_details", "subscription")
    return id_of(newer) or id_of(invoice.get("subscription"))


def id_of(reference: object) -> str | None:
    """The id of what a field refers to, whether it holds the id or the expanded object."""
    found = text_of(reference.get("id")) if isinstance(reference, Mapping) else text_of(reference)
    return found if found is None or len(found) <= MAX_ID_LENGTH else None


def text_of(value: object) -> str | None:
    """The value if it is a string that says something."""
    return value if isinstance(value, str) and value else None


def _currency(of: Mapping[str, Any]) -> str | None:
    currency = text_of(of.get("currency"))
    return currency if currency and len(currency) == 3 else None


def dig(value: object, *path: str) -> object:
    """What lies at a path of keys, or None where the path ends early."""
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def cents(value: object) -> int:
    """An amount, which in an event is a whole number of the currency's smallest unit; anything else counts as none."""
    is_amount = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    return value if is_amount else 0  # type: ignore[return-value]


def _first_id(events: Iterable[Event], key: str) -> str | None:
    return next(filter(None, (id_of(event.object.get(key)) for event in events)), None)


def _order(event: Event) -> tuple[int, str]:
    return event.created, event.id


def _last(events: Iterable[Event]) -> Event | None:
    return max(events, key=_order, default=None)


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(min(max(seconds, 0), LAST_SECOND), UTC)
