"""A payment's facts by what they are about: its own session, invoice, intents, charges, refunds and disputes.

Everything here is a set or is ordered by `created` and id, so that it can't matter in which order events came. Old API
versions show inside of other objects what newer ones tell by events of their own; both are read.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.models import PaymentKind
from app.services.events.stripe_event import Event, answer_event_prefix
from app.services.events.stripe_object import dig, id_of, is_first_invoice, subscription_of

# By these a later invoice of a subscription becomes a payment.
BEGINS_RENEWAL = ("invoice.paid", "invoice.payment_failed", "invoice.payment_action_required")

Object = Mapping[str, Any]
# An object as an event showed it.
Shown = tuple[Event, Object]


@dataclass
class Facts:
    """The events of a payment; those about something else are left out.

    `unconfirmed` may show a failed try and nothing else: nobody but the session can tell which intent, or which
    subscription, is its own. `foreign` turned out to be about another one.
    """

    kind: PaymentKind
    # What Stripe answered when it made the object that the payment began with, or told first of a renewal's invoice.
    creation: Event
    sessions: list[Event] = field(default_factory=list)
    invoices: list[Event] = field(default_factory=list)
    intents: list[Event] = field(default_factory=list)
    charges: list[Shown] = field(default_factory=list)
    refunds: list[Shown] = field(default_factory=list)
    disputes: list[Event] = field(default_factory=list)
    unconfirmed: list[Event] = field(default_factory=list)
    foreign: list[Event] = field(default_factory=list)
    stripe_checkout_session_id: str | None = None
    stripe_subscription_id: str | None = None
    stripe_invoice_id: str | None = None
    # All intents that pay for it, the first one first.
    stripe_payment_intent_ids: tuple[str, ...] = ()

    @property
    def stripe_payment_intent_id(self) -> str | None:
        """The intent that is shown as the payment's."""
        return next(iter(self.stripe_payment_intent_ids), None)


def gather(payment_id: uuid.UUID, kind: PaymentKind, events: Iterable[Event]) -> Facts | None:
    """The facts of a payment; None before Stripe has made anything for it. The same event id counts once."""
    by_id = {event.id: event for event in events}
    creation = _creation_of(payment_id, kind, by_id)
    if creation is None:
        return None
    by_object: dict[str, list[Event]] = {}
    for event in sorted(by_id.values(), key=order):
        by_object.setdefault(event.kind, []).append(event)
    facts = Facts(kind, creation)
    if kind is PaymentKind.CHECKOUT_SESSION:
        _gather_checkout(facts, by_object)
    elif kind is PaymentKind.RENEWAL:
        _gather_renewal(facts, by_object)
    else:
        _gather_intent(facts, by_object)
    _gather_intents(facts, by_object.get("payment_intent", []))
    _gather_charges(facts, by_object.get("charge", []))
    _gather_reversals(facts, by_object)
    return facts


def _creation_of(payment_id: uuid.UUID, kind: PaymentKind, by_id: Mapping[str, Event]) -> Event | None:
    if kind is PaymentKind.RENEWAL:
        began = (e for e in by_id.values() if e.kind == "invoice" and e.type in BEGINS_RENEWAL)
        return min(began, key=order, default=None)
    prefix = answer_event_prefix(payment_id)
    return next((event for event_id, event in by_id.items() if event_id.startswith(prefix)), None)


def _gather_intent(facts: Facts, by_object: Mapping[str, list[Event]]) -> None:
    """Find the intent, and what else pays for the invoice that a charge has left."""
    facts.stripe_invoice_id = id_of(facts.creation.object.get("invoice"))
    _gather_invoice(facts, by_object)
    own = filter(None, (id_of(facts.creation.object),))
    facts.stripe_payment_intent_ids = tuple(dict.fromkeys((*own, *facts.stripe_payment_intent_ids)))


def _gather_renewal(facts: Facts, by_object: Mapping[str, list[Event]]) -> None:
    """Find what pays for the invoice that the payment began with."""
    facts.stripe_invoice_id = id_of(facts.creation.object)
    facts.stripe_subscription_id = subscription_of(facts.creation.object)
    _gather_invoice(facts, by_object)


def _gather_checkout(facts: Facts, by_object: Mapping[str, list[Event]]) -> None:
    """Find the session, its subscription, the first invoice of that, and the intents that pay for it.

    Renewals are none of the payment's business.
    """
    facts.stripe_checkout_session_id = id_of(facts.creation.object)
    sessions = by_object.get("checkout.session", [])
    facts.sessions = [e for e in sessions if id_of(e.object) == facts.stripe_checkout_session_id]
    facts.stripe_subscription_id = next(_ids(facts.sessions, "subscription"), None)
    invoices = by_object.get("invoice", [])
    first = [e for e in invoices if is_first_invoice(e.object) and _is_of(facts, subscription_of(e.object))]
    facts.stripe_invoice_id = next(_ids(facts.sessions, "invoice"), None) or next(_ids(first, "id"), None)
    _gather_invoice(facts, by_object)
    others = [e for e in invoices if e not in facts.invoices and e not in first]
    if facts.stripe_subscription_id:
        facts.foreign += others
    else:
        facts.unconfirmed += [e for e in others if is_first_invoice(e.object)]


def _gather_invoice(facts: Facts, by_object: Mapping[str, list[Event]]) -> None:
    """Find what tells of the payment's own invoice, and the intents that pay for it."""
    invoices = by_object.get("invoice", [])
    facts.invoices = [e for e in invoices if facts.stripe_invoice_id and id_of(e.object) == facts.stripe_invoice_id]
    paid = [e for e in by_object.get("invoice_payment", []) if _is_of_invoice(facts, e)]
    of_invoice = [e for e in by_object.get("payment_intent", []) if _is_of_invoice(facts, e)]
    named = (*_ids(facts.sessions, "payment_intent"), *_ids(facts.invoices, "payment_intent"))
    facts.stripe_payment_intent_ids = tuple(dict.fromkeys((*named, *_paying(paid), *_ids(of_invoice, "id"))))


def _is_of(facts: Facts, subscription_id: str | None) -> bool:
    return subscription_id is not None and subscription_id == facts.stripe_subscription_id


def _is_of_invoice(facts: Facts, paid: Event) -> bool:
    invoice_id = id_of(paid.object.get("invoice"))
    return invoice_id is not None and invoice_id == facts.stripe_invoice_id


def _paying(invoice_payments: Iterable[Event]) -> Iterator[str]:
    """The intents of an invoice's payments. https://docs.stripe.com/api/invoice-payment/object"""
    return filter(None, (id_of(dig(event.object, "payment", "payment_intent")) for event in invoice_payments))


def _gather_intents(facts: Facts, intents: list[Event]) -> None:
    own = facts.stripe_payment_intent_ids
    if own:
        facts.intents = [e for e in intents if id_of(e.object) in own]
        facts.foreign += [e for e in intents if id_of(e.object) not in own]
    elif facts.sessions:
        asked = facts.creation.object
        facts.unconfirmed += [
            e
            for e in intents
            if e.object.get("amount") == asked.get("amount_total") and e.object.get("currency") == asked.get("currency")
        ]


def _gather_charges(facts: Facts, charges: list[Event]) -> None:
    shown: list[Shown] = [(e, e.object) for e in charges]
    for event in facts.intents:
        # Until 2022-11-15 an intent carried its charges; afterwards it names the latest, which may be expanded.
        shown += [(event, charge) for charge in _listed(event.object, "charges")]
        if isinstance(latest := event.object.get("latest_charge"), Mapping):
            shown.append((event, latest))
    own = facts.stripe_payment_intent_ids
    facts.charges = [
        (event, charge)
        for event, charge in shown
        if id_of(charge.get("payment_intent")) in own or (charge is not event.object and event in facts.intents)
    ]


def _gather_reversals(facts: Facts, by_object: Mapping[str, list[Event]]) -> None:
    own_charges = {id_of(charge) for _, charge in facts.charges} | set(_ids(facts.intents, "latest_charge"))

    def is_own(reversal: Object) -> bool:
        intent_id, charge_id = id_of(reversal.get("payment_intent")), id_of(reversal.get("charge"))
        if intent_id is not None:
            return intent_id in facts.stripe_payment_intent_ids
        return charge_id is not None and charge_id in own_charges

    facts.refunds = [(e, e.object) for e in by_object.get("refund", []) if is_own(e.object)]
    for event, charge in facts.charges:
        # Until 2022-11-15 a charge carried its refunds. https://docs.stripe.com/changelog
        facts.refunds += [(event, refund) for refund in _listed(charge, "refunds")]
    facts.disputes = [e for e in by_object.get("dispute", []) if is_own(e.object)]


def _listed(of: Object, name: str) -> list[Object]:
    listed = dig(of, name, "data")
    return [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []


def _ids(events: Iterable[Event], key: str) -> Iterator[str]:
    return filter(None, (id_of(event.object.get(key)) for event in events))


def order(event: Event) -> tuple[int, str]:
    """Which event is the later one: `created` is in whole seconds, and ids aren't ordered."""
    return event.created, event.id


def last(events: Iterable[Event]) -> Event | None:
    """The latest event."""
    return max(events, key=order, default=None)
