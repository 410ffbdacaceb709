"""Object events: where Stripe lists the events no more, its objects are read and turned into events.

The id of such an event is made of what the object says, so that a second look at an unchanged object stores nothing.
Only a subscription may come back to what it was: of it, each look is a fact.
"""

import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import Uuid, bindparam, or_, select, text, tuple_
from sqlalchemy.dialects.postgresql import TIMESTAMP

from app.database import Batch
from app.errors import StripeRefusal
from app.models import OPEN_PAYMENTS, Payment, Subscription
from app.services import Services
from app.services.events.projection import INTENT_SUCCEEDED
from app.services.events.stripe_event import OBJECT_PREFIX, Event, NotAnEvent, read_event, type_of_state
from app.services.events.stripe_object import cents_of, dig, id_of, renewal_of
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import Resource, Stripe

log = logging.getLogger(__name__)

BATCH = 200

# A refund or a dispute may still move that long after it was made.
REVERSALS_MOVE_FOR = timedelta(days=180)
# An invoice is tried again for weeks. https://docs.stripe.com/billing/revenue-recovery/smart-retries
INVOICES_MOVE_FOR = timedelta(days=90)

# Objects are stored as Stripe shows them.
CHECKOUT_SESSIONS = Resource[dict[str, Any]]("/v1/checkout/sessions", "checkout.session", dict)
PAYMENT_INTENTS = Resource[dict[str, Any]]("/v1/payment_intents", "payment_intent", dict)
INVOICES = Resource[dict[str, Any]]("/v1/invoices", "invoice", dict)
INVOICE_PAYMENTS = Resource[dict[str, Any]]("/v1/invoice_payments", "invoice_payment", dict)
CHARGES = Resource[dict[str, Any]]("/v1/charges", "charge", dict)
REFUNDS = Resource[dict[str, Any]]("/v1/refunds", "refund", dict)
DISPUTES = Resource[dict[str, Any]]("/v1/disputes", "dispute", dict)
SUBSCRIPTIONS = Resource[dict[str, Any]]("/v1/subscriptions", "subscription", dict)

_OPEN = Batch(
    select(Payment.id, Payment.created_at, Payment.stripe_checkout_session_id, Payment.stripe_payment_intent_id)
    .where(
        Payment.app_id == bindparam("app_id"),
        text(OPEN_PAYMENTS),
        tuple_(Payment.created_at, Payment.id)
        > tuple_(bindparam("after", type_=TIMESTAMP(timezone=True)), bindparam("after_id", type_=Uuid)),
    )
    .order_by(Payment.created_at, Payment.id)
    .limit(BATCH)
)

# Those that had not ended by then: what was paid until an end that has been told since may be missed all the same.
_RUNNING = Batch(
    select(Subscription.id, Subscription.status)
    .where(
        Subscription.app_id == bindparam("app_id"),
        Subscription.id > bindparam("after"),
        or_(
            Subscription.ended_at.is_(None), Subscription.ended_at >= bindparam("since", type_=TIMESTAMP(timezone=True))
        ),
    )
    .order_by(Subscription.id)
    .limit(BATCH)
)


def read_object_events(
    app_id: str, *, since: datetime, services: Services, new_context: Callable[[], CallContext]
) -> Iterator[Event]:
    """What Stripe shows of an app's payments and subscriptions that are not at an end, and of refunds and disputes.

    :param since: from when on events may have been missed
    :raises UpstreamError: when Stripe or key-service doesn't answer as it should
    """
    # Stamped earlier than anything is read: what really happens from now on counts as later.
    reader = ObjectReader(app_id, services.stripe, new_context, int(time.time()))
    for payment in _open_payments(app_id, services):
        try:
            yield from reader.read_payment(
                stripe_checkout_session_id=payment.stripe_checkout_session_id,
                stripe_payment_intent_id=payment.stripe_payment_intent_id,
            )
        except (StripeRefusal, NotAnEvent) as error:
            log.warning("payment %s can't be read at Stripe: %s", payment.id, error)
    for subscription in _running_subscriptions(app_id, since, services):
        try:
            yield from reader.read_subscription(subscription.id)
            yield from reader.read_invoices(subscription.id, since=since if subscription.status else None)
        except (StripeRefusal, NotAnEvent) as error:
            log.warning("subscription %s can't be read at Stripe: %s", subscription.id, error)
    yield from reader.read_reversals(since - REVERSALS_MOVE_FOR)


def _open_payments(app_id: str, services: Services) -> Iterator[Any]:
    after: dict[str, Any] = {"after": datetime.min.replace(tzinfo=UTC), "after_id": uuid.UUID(int=0)}
    while True:
        payments = services.database.run(_OPEN, app_id=app_id, **after)
        yield from payments
        if len(payments) < BATCH:
            return
        after = {"after": payments[-1].created_at, "after_id": payments[-1].id}


def _running_subscriptions(app_id: str, since: datetime, services: Services) -> Iterator[Any]:
    after = ""
    while subscriptions := services.database.run(_RUNNING, app_id=app_id, since=since, after=after):
        yield from subscriptions
        after = subscriptions[-1].id


@dataclass(frozen=True)
class ObjectReader:
    """Reads one app's objects, and tells by events what they show.

    :param read_at: in seconds since 1970; what an object is now is told as of then
    """

    app_id: str
    stripe: Stripe
    new_context: Callable[[], CallContext]
    read_at: int

    def read_payment(
        self, *, stripe_checkout_session_id: str | None, stripe_payment_intent_id: str | None
    ) -> Iterator[Event]:
        """What Stripe shows of a payment: of its session, the invoice of that, and all intents that pay for it.

        :raises StripeRefusal, UpstreamError: when Stripe or key-service doesn't answer as it should
        """
        intent_ids = [stripe_payment_intent_id]
        if stripe_checkout_session_id:
            session = self._retrieve(CHECKOUT_SESSIONS, stripe_checkout_session_id)
            if kind := type_of_state(session):
                yield self._tell(kind, session)
            intent_ids.append(id_of(session.get("payment_intent")))
            if invoice_id := id_of(session.get("invoice")):
                for told in self._read_invoice(invoice_id):
                    yield told
                    intent_ids.append(id_of(dig(told.object, "payment", "payment_intent")))
        for intent_id in dict.fromkeys(filter(None, intent_ids)):
            yield from self._read_intent(intent_id)

    def read_subscription(self, subscription_id: str) -> Iterator[Event]:
        """What Stripe shows of a subscription, dated by Stripe's own clock.

        :raises StripeRefusal, UpstreamError: when Stripe or key-service doesn't answer as it should
        """
        context = self.new_context()
        shown, as_of = self.stripe.retrieve_as_of(SUBSCRIPTIONS, self.app_id, subscription_id, context)
        yield _object_event("customer.subscription.updated", shown, created=as_of, read_again=True)

    def read_invoices(self, subscription_id: str, *, since: datetime | None) -> Iterator[Event]:
        """What Stripe shows of a subscription's later invoices, and of what pays them.

        :param since: from when on; None for all
        :raises StripeRefusal, UpstreamError: when Stripe or key-service doesn't answer as it should
        """
        made = {"created": {"gte": int((since - INVOICES_MOVE_FOR).timestamp())}} if since else {}
        for invoice in self._list(INVOICES, {"subscription": subscription_id, **made}):
            if renewal_of(invoice) and (kind := _type_of_invoice(invoice)):
                yield self._tell(kind, invoice)
                yield from self._read_payments_of(str(invoice["id"]))

    def _read_payments_of(self, invoice_id: str) -> Iterator[Event]:
        intent_ids = []
        for paying in self._list(INVOICE_PAYMENTS, {"invoice": invoice_id}):
            yield self._tell(f"invoice_payment.{paying.get('status')}", paying)
            intent_ids.append(id_of(dig(paying, "payment", "payment_intent")))
        for intent_id in dict.fromkeys(filter(None, intent_ids)):
            yield from self._read_intent(intent_id)

    def read_reversals(self, since: datetime) -> Iterator[Event]:
        """The refunds and disputes made since a time."""
        made = {"created": {"gte": int(since.timestamp())}}
        for resource, kind in ((REFUNDS, "refund.updated"), (DISPUTES, "charge.dispute.updated")):
            for reversal in self._list(resource, made):
                try:
                    yield self._tell(kind, reversal)
                except NotAnEvent as error:
                    log.warning("%r can't be read: %s", id_of(reversal), error)

    def _read_invoice(self, invoice_id: str) -> Iterator[Event]:
        """An invoice that is paid, and what pays for it. Whether a try has failed is for the intents to say.

        https://docs.stripe.com/api/invoice-payment/object
        """
        invoice = self._retrieve(INVOICES, invoice_id)
        if invoice.get("status") == "paid":
            yield self._tell("invoice.paid", invoice)
        for paying in self._list(INVOICE_PAYMENTS, {"invoice": invoice_id}):
            yield self._tell(f"invoice_payment.{paying.get('status')}", paying)

    def _read_intent(self, intent_id: str) -> Iterator[Event]:
        """An intent, the try that failed last, and all its charges: those that failed are told as of then."""
        intent = self._retrieve(PAYMENT_INTENTS, intent_id)
        charges = list(self._list(CHARGES, {"payment_intent": intent_id}))
        for charge in charges:
            failed = charge.get("status") == "failed"
            yield self._tell("charge.failed" if failed else "charge.updated", charge, as_of=charge if failed else None)
        if intent.get("last_payment_error"):
            yield self._tell("payment_intent.payment_failed", intent)
        if kind := type_of_state(intent):
            latest = next((each for each in charges if id_of(each) == id_of(intent.get("latest_charge"))), None)
            yield self._tell(kind, intent, as_of=latest if kind == INTENT_SUCCEEDED else None)

    def _list(self, resource: Resource[dict[str, Any]], filters: dict[str, Any]) -> Iterator[dict[str, Any]]:
        return self.stripe.list(resource, self.app_id, filters, new_context=self.new_context)

    def _retrieve(self, resource: Resource[dict[str, Any]], object_id: str) -> dict[str, Any]:
        return self.stripe.retrieve(resource, self.app_id, object_id, self.new_context())

    def _tell(self, kind: str, stripe_object: dict[str, Any], *, as_of: dict[str, Any] | None = None) -> Event:
        """What an object shows, as of when it was read, or as of when another was made."""
        created = cents_of(as_of.get("created")) if as_of else None
        return _object_event(kind, stripe_object, created=created or self.read_at)


def _type_of_invoice(invoice: Mapping[str, Any]) -> str | None:
    """The type of the event that tells of an invoice's state; None where it waits for a first try."""
    match invoice.get("status"):
        case "paid":
            return "invoice.paid"
        case "void":
            return "invoice.voided"
        case "open" | "uncollectible" if invoice.get("attempted"):
            return "invoice.payment_failed"
    return None


def _object_event(kind: str, stripe_object: dict[str, Any], *, created: int, read_again: bool = False) -> Event:
    """An event that tells what an object shows.

    :param read_again: that it is the same at another time is news
    :raises NotAnEvent: when the object is too deep to be stored
    """
    try:
        said = orjson.dumps([kind, stripe_object, *([created] if read_again else [])], option=orjson.OPT_SORT_KEYS)
    except TypeError:
        raise NotAnEvent from None
    return read_event(
        {
            "id": f"{OBJECT_PREFIX}{hashlib.sha256(said).hexdigest()}",
            "type": kind,
            "created": created,
            "data": {"object": stripe_object},
        }
    )
