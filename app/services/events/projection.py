"""What a payment has become: a pure function of the set of its events, whatever order they came in and how often.

Everything here joins facts by OR, by MAX or by the id of what they are about, so that it can't matter which event
came first. `created` is in whole seconds at Stripe, and event ids aren't ordered: where two events of one second
disagree, a rank decides, and the id only where that is equal.
"""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from app.models import PaymentKind, PaymentStatus
from app.services.events.stripe_event import Event, answer_event_prefix
from app.services.events.stripe_object import (
    cents_of,
    currency_of,
    dig,
    id_of,
    is_first_invoice,
    subscription_of,
    text_of,
)

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

# 9999-12-31 23:59:59, the last second that a datetime can hold: an event may carry any integer.
LAST_SECOND = 253_402_300_799


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
class PaymentState:
    """What a payment has become, by the names of its columns. Amounts are in the currency's smallest unit."""

    status: str
    amount_in_cents: int | None
    currency: str | None
    stripe_payment_intent_id: str | None
    stripe_checkout_session_id: str | None
    stripe_subscription_id: str | None
    stripe_invoice_id: str | None
    stripe_charge_id: str | None
    stripe_customer_id: str | None
    amount_received_in_cents: int
    amount_refunded_in_cents: int
    amount_disputed_in_cents: int
    success_count: int
    failure_count: int
    refund_count: int
    dispute_count: int


STATE_COLUMNS = tuple(column.name for column in fields(PaymentState))
# The ids by which later events are about the payment; many payments are one customer's.
ID_COLUMNS = tuple(name for name in STATE_COLUMNS if name.startswith("stripe_") and name != "stripe_customer_id")


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A payment's state, what happened to it, the ids of Stripe's objects that are its own, and what isn't about it.

    Foreign are events that were joined by their metadata, and are about another intent or subscription than its own.
    """

    state: PaymentState
    successes: tuple[Success, ...]
    failures: tuple[Failure, ...]
    refunds: tuple[Refund, ...]
    disputes: tuple[Dispute, ...]
    own_ids: frozenset[str]
    foreign_event_ids: frozenset[str]


@dataclass
class _Facts:
    """The events of a payment by what they are about; those about something else are left out."""

    kind: PaymentKind
    # What Stripe answered when it made the object that the payment began with.
    creation: Event
    sessions: list[Event] = field(default_factory=list)
    invoices: list[Event] = field(default_factory=list)
    intents: list[Event] = field(default_factory=list)
    unconfirmed_intents: list[Event] = field(default_factory=list)
    charges: list[Event] = field(default_factory=list)
    refunds: list[tuple[Event, Mapping[str, Any]]] = field(default_factory=list)
    disputes: list[Event] = field(default_factory=list)
    foreign: list[Event] = field(default_factory=list)
    stripe_payment_intent_id: str | None = None
    stripe_checkout_session_id: str | None = None
    stripe_subscription_id: str | None = None
    stripe_invoice_id: str | None = None


def project(payment_id: uuid.UUID, kind: PaymentKind, events: Iterable[Event]) -> Projection | None:
    """Fold events into what the payment has become; None before Stripe has made anything for it.

    The same event id counts once.
    """
    by_id = {event.id: event for event in events}
    prefix = answer_event_prefix(payment_id)
    creation = next((event for event_id, event in by_id.items() if event_id.startswith(prefix)), None)
    return None if creation is None else _project(_gather(kind, creation, by_id.values()))


def _project(facts: _Facts) -> Projection:
    successes = _successes(facts)
    failures = _failures(facts)
    refunds = _refunds(facts)
    disputes = _disputes(facts)
    received = _received(facts)
    refunded = _refunded(facts, refunds)
    state = PaymentState(
        status=_status(facts, received=received, refunded=refunded, disputes=disputes),
        **_asked_for(facts),
        stripe_payment_intent_id=facts.stripe_payment_intent_id,
        stripe_checkout_session_id=facts.stripe_checkout_session_id,
        stripe_subscription_id=facts.stripe_subscription_id,
        stripe_invoice_id=facts.stripe_invoice_id,
        stripe_charge_id=next((success.stripe_charge_id for success in successes if success.stripe_charge_id), None),
        stripe_customer_id=_customer(facts),
        amount_received_in_cents=received,
        amount_refunded_in_cents=refunded,
        amount_disputed_in_cents=sum(dispute.amount_in_cents for dispute in disputes if dispute.takes_money),
        success_count=len(successes),
        failure_count=len(failures),
        refund_count=len(refunds),
        dispute_count=len(disputes),
    )
    return Projection(
        state=state,
        successes=successes,
        failures=failures,
        refunds=refunds,
        disputes=disputes,
        own_ids=frozenset(filter(None, (getattr(state, name) for name in ID_COLUMNS))),
        foreign_event_ids=frozenset(event.id for event in facts.foreign),
    )


def _asked_for(facts: _Facts) -> dict[str, Any]:
    """The amount and the currency: the checkout's latest word, or what the intent was made with."""
    made = facts.creation.object
    told = [event for event in facts.sessions if isinstance(event.object.get("amount_total"), int)]
    if session := _last(told):
        return {
            "amount_in_cents": _cents(session.object["amount_total"]),
            "currency": currency_of(session.object.get("currency")) or currency_of(made.get("currency")),
        }
    return {"amount_in_cents": cents_of(made.get("amount")), "currency": currency_of(made.get("currency"))}


def _gather(kind: PaymentKind, creation: Event, events: Iterable[Event]) -> _Facts:
    facts = _Facts(kind, creation)
    by_kind: dict[str, list[Event]] = {}
    for event in sorted(events, key=_order):
        by_kind.setdefault(event.kind, []).append(event)
    made_id = id_of(creation.object)
    if kind is PaymentKind.CHECKOUT_SESSION:
        facts.stripe_checkout_session_id = made_id
        facts.sessions = [e for e in by_kind.get("checkout.session", ()) if e.object.get("id") == made_id]
    else:
        facts.stripe_payment_intent_id = made_id
    _gather_subscription(facts, by_kind)
    _gather_intents(facts, by_kind.get("payment_intent", []))
    if facts.stripe_payment_intent_id:
        _gather_money(facts, by_kind)
    return facts


def _gather_subscription(facts: _Facts, by_kind: Mapping[str, list[Event]]) -> None:
    """Find the subscription, its first invoice and that one's intent; renewals are none of the payment's business."""
    facts.stripe_subscription_id = _first_id(facts.sessions, "subscription")
    if facts.stripe_subscription_id is None:
        return
    invoices = by_kind.get("invoice", [])
    first = [
        e for e in invoices if is_first_invoice(e.object) and subscription_of(e.object) == facts.stripe_subscription_id
    ]
    facts.stripe_invoice_id = _first_id(facts.sessions, "invoice") or _first_id(first, "id")
    facts.invoices = [e for e in invoices if e.object.get("id") == facts.stripe_invoice_id]
    facts.foreign += [e for e in invoices if e not in first and e not in facts.invoices]
    payments = [
        e for e in by_kind.get("invoice_payment", ()) if id_of(e.object.get("invoice")) == facts.stripe_invoice_id
    ]
    facts.stripe_payment_intent_id = _first_id(facts.invoices, "payment_intent") or next(
        filter(None, (id_of(dig(e.object, "payment", "payment_intent")) for e in payments)), None
    )


def _gather_intents(facts: _Facts, intents: list[Event]) -> None:
    facts.stripe_payment_intent_id = _first_id(facts.sessions, "payment_intent") or facts.stripe_payment_intent_id
    if facts.stripe_payment_intent_id:
        facts.intents = [e for e in intents if e.object.get("id") == facts.stripe_payment_intent_id]
        facts.foreign += [e for e in intents if e.object.get("id") != facts.stripe_payment_intent_id]
    else:
        # Nobody but the session can tell which intent is its own; until it does, one that carries the payment's
        # metadata and asks for the same money may show a failed try, and never more than that.
        asked = facts.creation.object
        facts.unconfirmed_intents = [
            e
            for e in intents
            if e.object.get("amount") == asked.get("amount_total") and e.object.get("currency") == asked.get("currency")
        ]


def _gather_money(facts: _Facts, by_kind: Mapping[str, list[Event]]) -> None:
    intent_id = facts.stripe_payment_intent_id
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
    by_intent = max((_cents(event.object.get("amount_received")) for event in facts.intents), default=0)
    by_invoice = max((_cents(event.object.get("amount_paid")) for event in facts.invoices), default=0)
    session = _paid_session(facts)
    return by_intent or by_invoice or (_cents(session.object.get("amount_total")) if session else 0)


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
    never_captured = max(_cents(event.object.get("amount")) for event in snapshots) - captured

    def shown(event: Event) -> int:
        undone = sum(amount for made, ended, amount in failed if made <= event.created <= ended)
        return _cents(event.object.get("amount_refunded")) - never_captured - undone

    return max(0, *(shown(event) for event in snapshots))


def _failed_refunds(facts: _Facts) -> list[tuple[int, int, int]]:
    """Of each refund that failed: when it was made, when that was told first, and its amount."""
    failed: dict[str | None, tuple[int, int, int]] = {}
    for event, refund in facts.refunds:
        if REFUND_RANK.get(text_of(refund.get("status")) or "", 0) == REFUND_RANK["failed"]:
            made, refund_id = refund.get("created"), id_of(refund.get("id"))
            told = (made if isinstance(made, int) else 0, event.created, _cents(refund.get("amount")))
            failed[refund_id] = min(failed.get(refund_id, told), told, key=lambda row: row[1:])
    return list(failed.values())


def _captured(charge: Mapping[str, Any]) -> int:
    """What was captured of a charge; the amount of that is shown since 2020."""
    if "amount_captured" in charge:
        return _cents(charge["amount_captured"])
    return 0 if charge.get("captured") is False else _cents(charge.get("amount"))


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
    return max(_unfinished(facts))[3]


def _unfinished(facts: _Facts) -> Iterable[tuple[int, int, str, str]]:
    """What isn't final, as (created, rank, event id, status): the greatest is the latest."""
    if facts.kind is PaymentKind.CHECKOUT_SESSION:
        yield facts.creation.created, CREATED_RANK, facts.creation.id, PaymentStatus.CHECKOUT_CREATED
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
            id=facts.stripe_payment_intent_id or str(facts.stripe_checkout_session_id),
            stripe_payment_intent_id=facts.stripe_payment_intent_id,
            stripe_charge_id=charge_id,
            amount_in_cents=_received(facts),
            currency=currency_of(event.object.get("currency")),
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
                tries[event.id] = _failure(event, error, facts.stripe_payment_intent_id)
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
        "amount_in_cents": _cents(reversal.get("amount")),
        "currency": currency_of(reversal.get("currency")),
        "reason": text_of(reversal.get("reason")),
        "status": text_of(reversal.get("status")),
        "created_at": _time(created if isinstance(created, int) else event.created),
    }


def _customer(facts: _Facts) -> str | None:
    events = facts.sessions or facts.intents
    named = _last([event for event in events if id_of(event.object.get("customer"))])
    return id_of(named.object.get("customer")) if named else None


def _cents(value: object) -> int:
    return cents_of(value) or 0


def _first_id(events: Iterable[Event], key: str) -> str | None:
    return next(filter(None, (id_of(event.object.get(key)) for event in events)), None)


def _order(event: Event) -> tuple[int, str]:
    return event.created, event.id


def _last(events: Iterable[Event]) -> Event | None:
    return max(events, key=_order, default=None)


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(min(max(seconds, 0), LAST_SECOND), UTC)
