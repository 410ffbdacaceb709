"""What a payment has become: a pure function of the set of its events, whatever order they came in and how often.

Everything here joins facts by OR, by MAX or by the id of what they are about, so that it can't matter which event
came first. `created` is in whole seconds at Stripe, and event ids aren't ordered: where two events of one second
disagree, a rank decides, and the id only where that is equal.
"""

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from app.models import DIGEST_LENGTH, MovementKind, PaymentKind, PaymentStatus
from app.services.events.facts import Facts, Shown, gather, last, order
from app.services.events.stripe_event import Event
from app.services.events.stripe_object import cents_of, currency_of, dig, id_of, references, text_of

INTENT_SUCCEEDED = "payment_intent.succeeded"
CALLED_OFF = ("payment_intent.canceled", "invoice.voided")
FAILED_TRY = ("payment_intent.payment_failed", "checkout.session.async_payment_failed", "invoice.payment_failed")

PAID_SESSION = ("paid", "no_payment_required")
KNOWN_SESSIONS = (*PAID_SESSION, "unpaid")

# https://docs.stripe.com/api/disputes/object#dispute_object-status; `charge_refunded` is of older API versions.
DISPUTE_CLOSED = ("won", "lost", "warning_closed", "prevented", "charge_refunded")
DISPUTE_OPEN = ("needs_response", "under_review", "warning_needs_response", "warning_under_review")
KNOWN_DISPUTES = (*DISPUTE_OPEN, *DISPUTE_CLOSED)

# A refund only moves to the right; one that had succeeded can still fail, when the customer's bank sends it back.
# https://docs.stripe.com/refunds#failed-refunds
REFUND_RANK = {"pending": 0, "requires_action": 0, "succeeded": 1, "failed": 2, "canceled": 2}

ENDED_RANK = REFUND_RANK["failed"]

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

# What an intent can be when it is first seen. One that is found again after a crash may have ended by then; Stripe's
# event of the end comes as well, and outweighs this.
FIRST_SEEN = {*STATUS_RANK, PaymentStatus.SUCCEEDED, PaymentStatus.CANCELED}

STATUS_OF_INTENT_EVENT = {
    "payment_intent.created": PaymentStatus.REQUIRES_PAYMENT_METHOD,
    "payment_intent.requires_action": PaymentStatus.REQUIRES_ACTION,
    "payment_intent.processing": PaymentStatus.PROCESSING,
    "payment_intent.amount_capturable_updated": PaymentStatus.REQUIRES_CAPTURE,
}

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

    @property
    def has_come_back(self) -> bool:
        """Whether the money is the app's again."""
        return REFUND_RANK.get(self.status or "") == ENDED_RANK


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
    def is_open(self) -> bool:
        """Whether its end is still to come. A status that we don't know is no end."""
        return self.status not in DISPUTE_CLOSED

    @property
    def holds_money(self) -> bool:
        """Whether Stripe holds the money or has taken it for good: for an inquiry nothing is withdrawn."""
        is_inquiry = self.status is not None and self.status.startswith("warning_")
        return self.status == "lost" or (self.is_open and not is_inquiry)


@dataclass(frozen=True, order=True)
class Movement:
    """Money that came in, went back, or is held or lost by a dispute: when, and how much of the payment's currency."""

    occurred_at: datetime
    kind: MovementKind
    amount_in_cents: int


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
    amount_lost_in_cents: int
    success_count: int
    failure_count: int
    refund_count: int
    dispute_count: int
    # Tells without a look at the rows of its movements whether they are others now; None where there are none.
    movements_digest: str | None
    refund_statuses: dict[str, str]
    dispute_statuses: dict[str, str]


STATE_COLUMNS = tuple(column.name for column in fields(PaymentState))
# The ids by which later events are about the payment; many payments are one customer's.
ID_COLUMNS = tuple(name for name in STATE_COLUMNS if name.startswith("stripe_") and name != "stripe_customer_id")


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A payment's state, what happened to it, how its money moved, its own ids of Stripe's, and what isn't about it.

    Foreign are events that were joined by their metadata, and are about another intent or subscription than its own.
    """

    state: PaymentState
    successes: tuple[Success, ...]
    failures: tuple[Failure, ...]
    refunds: tuple[Refund, ...]
    disputes: tuple[Dispute, ...]
    # Of each kind they add up to what the state says.
    movements: tuple[Movement, ...]
    own_ids: frozenset[str]
    foreign_event_ids: frozenset[str]
    # By field, what Stripe said there that we don't know.
    unknown_values: frozenset[tuple[str, str]]


def project(payment_id: uuid.UUID, kind: PaymentKind, events: Iterable[Event]) -> Projection | None:
    """Fold events into what the payment has become; None before Stripe has made anything for it.

    The same event id counts once.
    """
    facts = gather(payment_id, kind, events)
    return None if facts is None else _project(facts)


def _project(facts: Facts) -> Projection:
    successes = _successes(facts)
    failures = _failures(facts)
    refunds = _refunds(facts)
    disputes = _disputes(facts)
    received = _received(facts)
    given_back = list(_up_to(received, _given_back(facts, refunds)))
    refunded = sum(movement.amount_in_cents for movement in given_back)
    movements = tuple(sorted((*_receipts(facts, successes, received), *given_back, *_held(disputes))))
    asked_for = _asked_for(facts)
    state = PaymentState(
        status=_status(facts, received=received, refunded=refunded, disputes=disputes),
        **asked_for,
        stripe_payment_intent_id=facts.stripe_payment_intent_id,
        stripe_checkout_session_id=facts.stripe_checkout_session_id,
        stripe_subscription_id=facts.stripe_subscription_id,
        stripe_invoice_id=facts.stripe_invoice_id,
        stripe_charge_id=next((success.stripe_charge_id for success in successes if success.stripe_charge_id), None),
        stripe_customer_id=_customer(facts),
        amount_received_in_cents=received,
        amount_refunded_in_cents=refunded,
        amount_disputed_in_cents=sum(dispute.amount_in_cents for dispute in disputes if dispute.holds_money),
        amount_lost_in_cents=sum(dispute.amount_in_cents for dispute in disputes if dispute.status == "lost"),
        success_count=len(successes),
        failure_count=len(failures),
        refund_count=len(refunds),
        dispute_count=len(disputes),
        movements_digest=_digest(movements, asked_for["currency"]),
        refund_statuses={refund.id: refund.status or "" for refund in refunds},
        dispute_statuses={dispute.id: dispute.status or "" for dispute in disputes},
    )
    own_ids = _own_ids(facts, state)
    return Projection(
        state=state,
        successes=successes,
        failures=failures,
        refunds=refunds,
        disputes=disputes,
        movements=movements,
        own_ids=own_ids,
        # What was joined by an id that is the payment's own stays, whatever else it is about.
        foreign_event_ids=frozenset(e.id for e in facts.foreign if own_ids.isdisjoint(references(e.object))),
        unknown_values=_unknown_values(facts),
    )


def _own_ids(facts: Facts, state: PaymentState) -> frozenset[str]:
    """The ids by which later events are about this payment."""
    ids = (*facts.stripe_payment_intent_ids, *(getattr(state, name) for name in ID_COLUMNS))
    return frozenset(own_id for own_id in ids if own_id)


def _asked_for(facts: Facts) -> dict[str, Any]:
    """The amount and the currency: the checkout's or the invoice's latest word, or what the intent was made with."""
    made = facts.creation.object
    if facts.kind is PaymentKind.RENEWAL:
        invoice = (last(facts.invoices) or facts.creation).object
        return {
            "amount_in_cents": cents_of(invoice.get("amount_due")),
            "currency": currency_of(invoice.get("currency")),
        }
    told = [e for e in facts.sessions if isinstance(e.object.get("amount_total"), int) and e is not facts.creation]
    if session := last(told) or (facts.creation if facts.sessions else None):
        return {
            "amount_in_cents": cents_of(session.object.get("amount_total")),
            "currency": currency_of(session.object.get("currency")) or currency_of(made.get("currency")),
        }
    return {"amount_in_cents": cents_of(made.get("amount")), "currency": currency_of(made.get("currency"))}


# Received.


def _paid_intents(facts: Facts) -> dict[str, list[Event]]:
    """The events of each intent of which money was received, or that Stripe says has succeeded."""
    by_intent: dict[str, list[Event]] = {}
    for event in facts.intents:
        by_intent.setdefault(str(id_of(event.object)), []).append(event)
    return {
        intent_id: events
        for intent_id, events in by_intent.items()
        if _received_by_intent(events) or any(event.type == INTENT_SUCCEEDED for event in events)
    }


def _received_by_intent(events: Iterable[Event]) -> int:
    """What an intent has received: the most that it ever said."""
    return max((_cents(event.object.get("amount_received")) for event in events), default=0)


def _paid_invoices(facts: Facts) -> list[Event]:
    return [event for event in facts.invoices if event.type == "invoice.paid"]


def _paid_session(facts: Facts) -> Event | None:
    return last(
        event
        for event in facts.sessions
        if event.type == "checkout.session.async_payment_succeeded"
        or (event.type == "checkout.session.completed" and event.object.get("payment_status") in PAID_SESSION)
    )


def _is_paid(facts: Facts) -> bool:
    return bool(_paid_intents(facts) or _paid_invoices(facts) or _paid_session(facts))


def _received(facts: Facts) -> int:
    """What came in by all intents, or by the invoice where that is more; until they tell, by a session that is paid."""
    by_intents = sum(map(_received_by_intent, _paid_intents(facts).values()))
    invoices = _paid_invoices(facts)
    by_invoice = max((_cents(event.object.get("amount_paid")) for event in invoices), default=0)
    if by_intents or invoices:
        return max(by_intents, by_invoice)
    return _asked_for(facts)["amount_in_cents"] or 0 if _paid_session(facts) else 0


def _receipts(facts: Facts, successes: Iterable[Success], received: int) -> Iterator[Movement]:
    """When what was received came in: with each success, or with what says that it was paid with more."""
    left = received
    for success in successes:
        if success.amount_in_cents:
            yield Movement(success.created_at, MovementKind.RECEIVED, success.amount_in_cents)
            left -= success.amount_in_cents
    if left and (paid := last(_paid_invoices(facts)) or _paid_session(facts)):
        yield Movement(_time(paid.created), MovementKind.RECEIVED, left)


def _successes(facts: Facts) -> tuple[Success, ...]:
    """One for each intent that was paid, or one for what was paid without any."""
    by_intent = [_intent_success(facts, intent_id, events) for intent_id, events in _paid_intents(facts).items()]
    if by_intent:
        return tuple(sorted(by_intent, key=lambda success: (success.created_at, success.id)))
    paid = _paid_session(facts) or last(_paid_invoices(facts))
    return (_other_success(facts, paid),) if paid else ()


def _intent_success(facts: Facts, intent_id: str, events: list[Event]) -> Success:
    succeeded = [event for event in events if event.type == INTENT_SUCCEEDED]
    # Ours may be dated by when we looked.
    told = last(event for event in succeeded if not event.is_ours) or last(succeeded) or max(events, key=order)
    charge_id = id_of(told.object.get("latest_charge")) or _succeeded_charge(facts, intent_id)
    return Success(
        id=intent_id,
        stripe_payment_intent_id=intent_id,
        stripe_charge_id=charge_id,
        amount_in_cents=_received_by_intent(events),
        currency=currency_of(told.object.get("currency")),
        receipt_url=_receipt(facts, charge_id),
        created_at=_time(told.created),
    )


def _other_success(facts: Facts, paid: Event) -> Success:
    """A session or an invoice that was paid, as far as no intent tells of it: a free one never has any."""
    intent_id = id_of(paid.object.get("payment_intent"))
    charge_id = _succeeded_charge(facts, intent_id) if intent_id else None
    return Success(
        id=intent_id or str(facts.stripe_checkout_session_id or facts.stripe_invoice_id),
        stripe_payment_intent_id=intent_id,
        stripe_charge_id=charge_id,
        amount_in_cents=_received(facts),
        currency=currency_of(paid.object.get("currency")),
        receipt_url=_receipt(facts, charge_id),
        created_at=_time(paid.created),
    )


def _succeeded_charge(facts: Facts, intent_id: str | None) -> str | None:
    found = [
        (*order(event), id_of(charge))
        for event, charge in facts.charges
        if charge.get("status") == "succeeded" and _intent_of(event, charge) == intent_id
    ]
    return max(found)[2] if found else None


def _intent_of(event: Event, charge: Mapping[str, Any]) -> str | None:
    """The intent of a charge: in old shapes a charge that an intent carries need not name it."""
    return id_of(charge.get("payment_intent")) or (id_of(event.object) if event.kind == "payment_intent" else None)


def _receipt(facts: Facts, charge_id: str | None) -> str | None:
    told = [
        (*order(event), receipt)
        for event, charge in facts.charges
        if charge_id and id_of(charge) == charge_id and (receipt := text_of(charge.get("receipt_url")))
    ]
    return max(told)[2] if told else None


# Refunded.


def _given_back(facts: Facts, refunds: Iterable[Refund]) -> list[Movement]:
    """What went back, by charge: its refunds that haven't come back, or what the charge says where that is more.

    A pending one counts: the charge shows it as refunded from the beginning.
    """
    by_charge: dict[str | None, list[Refund]] = {}
    for refund in refunds:
        charge_id = refund.stripe_charge_id or _succeeded_charge(facts, refund.stripe_payment_intent_id)
        by_charge.setdefault(charge_id, []).append(refund)
    charges: dict[str | None, list[Shown]] = {}
    for event, charge in facts.charges:
        charges.setdefault(id_of(charge), []).append((event, charge))
    failed = _failed_refunds(facts)
    return [
        movement
        for charge_id in by_charge.keys() | charges
        for movement in max(
            _named_refunds(by_charge.get(charge_id, [])),
            _shown_refunds(charges.get(charge_id, []), by_charge.get(charge_id, []), failed),
            key=lambda movements: sum(movement.amount_in_cents for movement in movements),
        )
    ]


def _named_refunds(refunds: list[Refund]) -> list[Movement]:
    return [
        Movement(refund.created_at, MovementKind.REFUNDED, refund.amount_in_cents)
        for refund in refunds
        if not refund.has_come_back
    ]


def _shown_refunds(snapshots: list[Shown], refunds: list[Refund], failed: list[tuple[int, int, int]]) -> list[Movement]:
    """What a charge showed as refunded, without releases, and without refunds that failed: each time that it was more.

    Whether it goes on showing those isn't documented. Where the refunds that we know are all that it shows, they tell.
    """
    if not snapshots:
        return []
    released = _released([charge for _, charge in snapshots])

    def shown(event: Event, charge: Mapping[str, Any]) -> int:
        refunded = _cents(charge.get("amount_refunded")) - released
        made = [refund for refund in refunds if refund.created_at <= _time(event.created)]
        kept = sum(refund.amount_in_cents for refund in made if not refund.has_come_back)
        if refunded in (kept, sum(refund.amount_in_cents for refund in made)):
            return kept
        return refunded - sum(amount for made_at, known, amount in failed if made_at <= event.created <= known)

    movements, most = [], 0
    for event, charge in sorted(snapshots, key=lambda each: order(each[0])):
        if (now := shown(event, charge)) > most:
            movements.append(Movement(_time(event.created), MovementKind.REFUNDED, now - most))
            most = now
    return movements


def _up_to(most: int, movements: Iterable[Movement]) -> Iterator[Movement]:
    """Movements in the order of time, as far as they add up to no more."""
    for movement in sorted(movements):
        if amount := min(movement.amount_in_cents, most):
            yield replace(movement, amount_in_cents=amount)
            most -= amount


def _released(snapshots: Iterable[Mapping[str, Any]]) -> int:
    """What of a charge was authorised and never captured. More may be captured than was authorised first."""
    authorised = max(_cents(charge.get("amount")) for charge in snapshots)
    return max(0, authorised - max(_captured(charge) for charge in snapshots))


def _captured(charge: Mapping[str, Any]) -> int:
    """What was captured of a charge; the amount of that is shown since 2020."""
    if "amount_captured" in charge:
        return _cents(charge["amount_captured"])
    return 0 if charge.get("captured") is False else _cents(charge.get("amount"))


def _is_release(refund: Mapping[str, Any]) -> bool:
    """Whether a Refund object tells that an authorisation was released: it moved no money, so it has no transaction."""
    return refund.get("status") == "succeeded" and refund.get("balance_transaction", "") is None


def _failed_refunds(facts: Facts) -> list[tuple[int, int, int]]:
    """Of each refund that failed: when it was made, when that was told first, and its amount."""
    failed: dict[str | None, tuple[int, int, int]] = {}
    for event, refund in facts.refunds:
        if REFUND_RANK.get(text_of(refund.get("status")) or "", 0) == ENDED_RANK:
            made, refund_id = refund.get("created"), id_of(refund)
            told = (made if isinstance(made, int) else 0, event.created, _cents(refund.get("amount")))
            failed[refund_id] = min(failed.get(refund_id, told), told, key=lambda row: row[1:])
    return list(failed.values())


def _refunds(facts: Facts) -> tuple[Refund, ...]:
    furthest: dict[str, tuple[tuple[int, int, str], Mapping[str, Any], Event]] = {}
    for event, refund in facts.refunds:
        refund_id = id_of(refund)
        place = (REFUND_RANK.get(str(refund.get("status")), 0), event.created, event.id)
        if refund_id and (refund_id not in furthest or furthest[refund_id][0] < place):
            furthest[refund_id] = (place, refund, event)
    refunds = [
        Refund(id=refund_id, stripe_refund_id=refund_id, **_reversal(refund, event))
        for refund_id, (_, refund, event) in furthest.items()
        if not _is_release(refund)
    ]
    return tuple(sorted(refunds, key=lambda refund: (refund.created_at, refund.id)))


def _disputes(facts: Facts) -> tuple[Dispute, ...]:
    latest: dict[str, tuple[tuple[int, bool, str], Event]] = {}
    for event in facts.disputes:
        dispute_id = id_of(event.object)
        place = (event.created, text_of(event.object.get("status")) in DISPUTE_CLOSED, event.id)
        if dispute_id and (dispute_id not in latest or latest[dispute_id][0] < place):
            latest[dispute_id] = (place, event)
    disputes = [
        Dispute(id=dispute_id, stripe_dispute_id=dispute_id, **_reversal(event.object, event))
        for dispute_id, (_, event) in latest.items()
    ]
    return tuple(sorted(disputes, key=lambda dispute: (dispute.created_at, dispute.id)))


def _held(disputes: Iterable[Dispute]) -> Iterator[Movement]:
    """What disputes hold or have taken, from when they began."""
    for dispute in disputes:
        if dispute.holds_money and dispute.amount_in_cents:
            yield Movement(dispute.created_at, MovementKind.DISPUTED, dispute.amount_in_cents)


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


# The status.


def _status(facts: Facts, *, received: int, refunded: int, disputes: Iterable[Dispute]) -> str:
    if any(dispute.is_open or dispute.status == "lost" for dispute in disputes):
        return PaymentStatus.DISPUTED
    if refunded > 0:
        return PaymentStatus.REFUNDED if refunded >= received else PaymentStatus.PARTIALLY_REFUNDED
    if _is_paid(facts):
        return PaymentStatus.SUCCEEDED
    if any(event.type in CALLED_OFF for event in (*facts.intents, *facts.invoices)):
        return PaymentStatus.CANCELED
    if any(event.type == "checkout.session.expired" for event in facts.sessions):
        return PaymentStatus.EXPIRED
    return max(_unfinished(facts))[3]


def _unfinished(facts: Facts) -> Iterable[tuple[int, int, str, str]]:
    """What isn't final, as (created, rank, event id, status): the greatest is the latest."""
    if facts.kind is PaymentKind.CHECKOUT_SESSION:
        yield facts.creation.created, CREATED_RANK, facts.creation.id, PaymentStatus.CHECKOUT_CREATED
    for event in facts.intents:
        yield from _unfinished_intent(event)
    for event in (*facts.intents, *facts.sessions, *facts.invoices, *facts.unconfirmed):
        if event.type in FAILED_TRY:
            yield event.created, STATUS_RANK[PaymentStatus.FAILED], event.id, PaymentStatus.FAILED
        elif event.type == "invoice.payment_action_required" and facts.kind is PaymentKind.RENEWAL:
            status = PaymentStatus.REQUIRES_ACTION
            yield event.created, STATUS_RANK[status], event.id, status
        elif event.type == "checkout.session.completed" and event.object.get("payment_status") not in PAID_SESSION:
            yield event.created, STATUS_RANK[PaymentStatus.PENDING], event.id, PaymentStatus.PENDING


def _unfinished_intent(event: Event) -> Iterable[tuple[int, int, str, str]]:
    if event.type == "payment_intent.created":
        shown = text_of(event.object.get("status"))
        status = shown if shown in FIRST_SEEN else PaymentStatus.REQUIRES_PAYMENT_METHOD
        yield event.created, CREATED_RANK, event.id, str(status)
    elif event.type in STATUS_OF_INTENT_EVENT:
        status = STATUS_OF_INTENT_EVENT[event.type]
        yield event.created, STATUS_RANK[status], event.id, status


# Failures.


def _failures(facts: Facts) -> tuple[Failure, ...]:
    """One for each try: the intent and its charges tell them apart; before they do, the invoice or the session does."""
    by_intent = _failures_of_intents(facts)
    tries = by_intent or _failures_of_invoices(facts) or _failures_of_sessions(facts)
    return tuple(sorted(tries, key=lambda failure: (failure.created_at, failure.id)))


def _failures_of_intents(facts: Facts) -> list[Failure]:
    """A try is known by its charge; one that came to no charge by its intent, its second and its error.

    What is ours can't tell that second, so it adds a try only when no other has its error.
    """
    tries: dict[object, Failure] = {}
    without_charge: set[tuple[str | None, str | None]] = set()
    for event in sorted((*facts.intents, *facts.unconfirmed), key=lambda event: (event.is_ours, order(event))):
        if event.type == "payment_intent.payment_failed":
            error, intent_id = event.object.get("last_payment_error"), id_of(event.object)
            failure = _failure(event, error, intent_id)
            try_without_charge = (intent_id, failure.failure_code)
            if charge_id := id_of(dig(error, "charge")):
                tries.setdefault(charge_id, failure)
            elif not (event.is_ours and try_without_charge in without_charge):
                without_charge.add(try_without_charge)
                tries.setdefault((*try_without_charge, event.created), failure)
    for event, charge in sorted(facts.charges, key=lambda shown: order(shown[0])):
        charge_id = id_of(charge)
        if charge.get("status") == "failed" and charge_id and charge_id not in tries:
            error = {"code": charge.get("failure_code"), "message": charge.get("failure_message")}
            tries[charge_id] = replace(_failure(event, error, _intent_of(event, charge)), id=charge_id)
    return list(tries.values())


def _failures_of_invoices(facts: Facts) -> list[Failure]:
    """An invoice counts its tries."""
    tries: dict[object, Failure] = {}
    for event in sorted((*facts.invoices, *facts.unconfirmed), key=order):
        if event.type == "invoice.payment_failed":
            error = event.object.get("last_finalization_error")
            attempt = event.object.get("attempt_count")
            key = (id_of(event.object), attempt if isinstance(attempt, int) else event.created)
            tries.setdefault(key, _failure(event, error, facts.stripe_payment_intent_id))
    return list(tries.values())


def _failures_of_sessions(facts: Facts) -> list[Failure]:
    """A session fails once: what took days came to nothing."""
    failed = [event for event in facts.sessions if event.type == "checkout.session.async_payment_failed"]
    return [_failure(event, None, facts.stripe_payment_intent_id) for event in failed[:1]]


def _failure(event: Event, error: object, payment_intent_id: str | None) -> Failure:
    return Failure(
        id=event.id,
        stripe_payment_intent_id=payment_intent_id,
        failure_code=text_of(dig(error, "code")),
        failure_message=text_of(dig(error, "message")),
        created_at=_time(event.created),
    )


# What else.


def _digest(movements: tuple[Movement, ...], currency: str | None) -> str | None:
    told = [f"{each.occurred_at.isoformat()} {each.kind} {each.amount_in_cents} {currency}" for each in movements]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:DIGEST_LENGTH] if told else None


def _customer(facts: Facts) -> str | None:
    events = facts.sessions or facts.invoices or facts.intents
    named = last(event for event in events if id_of(event.object.get("customer")))
    return id_of(named.object.get("customer")) if named else None


def _unknown_values(facts: Facts) -> frozenset[tuple[str, str]]:
    """Values that we don't know, by field: Stripe may add to each, and an old API version may have had more."""
    told = [
        *(("refund.status", refund.get("status"), REFUND_RANK.keys()) for _, refund in facts.refunds),
        *(("dispute.status", event.object.get("status"), KNOWN_DISPUTES) for event in facts.disputes),
        *(("session.payment_status", event.object.get("payment_status"), KNOWN_SESSIONS) for event in facts.sessions),
    ]
    return frozenset((name, value) for name, value, known in told if isinstance(value, str) and value not in known)


def _cents(value: object) -> int:
    return cents_of(value) or 0


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(min(max(seconds, 0), LAST_SECOND), UTC)
