"""Object events: where Stripe lists the events no more, its objects are read and turned into events.

The id of such an event is made of what the object says, so that a second look at an unchanged object stores nothing.
"""

import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import Uuid, bindparam, select, text, tuple_
from sqlalchemy.dialects.postgresql import TIMESTAMP

from app.database import Batch
from app.errors import StripeRefusal
from app.models import OPEN_PAYMENTS, Payment
from app.services import Services
from app.services.events.stripe_event import OBJECT_PREFIX, Event, read_event
from app.services.events.stripe_object import dig, id_of
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import Resource

log = logging.getLogger(__name__)

BATCH = 200

# A refund or a dispute may still move that long after it was made.
REVERSALS_MOVE_FOR = timedelta(days=180)

# Objects are stored as Stripe shows them.
CHECKOUT_SESSIONS = Resource[dict[str, Any]]("/v1/checkout/sessions", "checkout.session", dict)
PAYMENT_INTENTS = Resource[dict[str, Any]]("/v1/payment_intents", "payment_intent", dict)
INVOICES = Resource[dict[str, Any]]("/v1/invoices", "invoice", dict)
INVOICE_PAYMENTS = Resource[dict[str, Any]]("/v1/invoice_payments", "invoice_payment", dict)
CHARGES = Resource[dict[str, Any]]("/v1/charges", "charge", dict)
REFUNDS = Resource[dict[str, Any]]("/v1/refunds", "refund", dict)
DISPUTES = Resource[dict[str, Any]]("/v1/disputes", "dispute", dict)

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

_INTENT_EVENTS = {
    "succeeded": "payment_intent.succeeded",
    "canceled": "payment_intent.canceled",
    "processing": "payment_intent.processing",
    "requires_action": "payment_intent.requires_action",
    "requires_capture": "payment_intent.amount_capturable_updated",
}
_SESSION_EVENTS = {"complete": "checkout.session.completed", "expired": "checkout.session.expired"}


def read_object_events(
    app_id: str, *, since: datetime, services: Services, new_context: Callable[[], CallContext]
) -> Iterator[Event]:
    """What Stripe shows of an app's payments that are not at an end, and of refunds and disputes.

    :param since: from when on events may have been missed
    :raises UpstreamError: when Stripe or key-service doesn't answer as it should
    """
    # Stamped earlier than anything is read: what really happens from now on counts as later.
    reader = _Reader(app_id, services, new_context, int(time.time()))
    for payment in _open_payments(app_id, services):
        try:
            yield from reader.payment(payment)
        except StripeRefusal as refusal:
            log.warning("payment %s can't be read at Stripe: %s", payment.id, refusal)
    made = {"created": {"gte": int((since - REVERSALS_MOVE_FOR).timestamp())}}
    for resource, kind in ((REFUNDS, "refund.updated"), (DISPUTES, "charge.dispute.updated")):
        for reversal in reader.list(resource, made):
            yield _object_event(kind, reversal, created=reader.read_at)


def _open_payments(app_id: str, services: Services) -> Iterator[Any]:
    after: dict[str, Any] = {"after": datetime.min.replace(tzinfo=UTC), "after_id": uuid.UUID(int=0)}
    while True:
        payments = services.database.run(_OPEN, app_id=app_id, **after)
        yield from payments
        if len(payments) < BATCH:
            return
        after = {"after": payments[-1].created_at, "after_id": payments[-1].id}


@dataclass(frozen=True)
class _Reader:
    """Reads one app's objects."""

    app_id: str
    services: Services
    new_context: Callable[[], CallContext]
    read_at: int

    def list(self, resource: Resource[dict[str, Any]], filters: dict[str, Any]) -> Iterator[dict[str, Any]]:
        return self.services.stripe.list(resource, self.app_id, filters, new_context=self.new_context)

    def retrieve(self, resource: Resource[dict[str, Any]], object_id: str) -> dict[str, Any]:
        return self.services.stripe.retrieve(resource, self.app_id, object_id, self.new_context())

    def payment(self, payment: Any) -> Iterator[Event]:
        intent_id, session = payment.stripe_payment_intent_id, None
        if payment.stripe_checkout_session_id:
            session = self.retrieve(CHECKOUT_SESSIONS, payment.stripe_checkout_session_id)
            intent_id = id_of(session.get("payment_intent")) or intent_id
            if invoice_id := id_of(session.get("invoice")):
                invoice_events = list(self.invoice(invoice_id))
                yield from invoice_events
                intent_id = next(filter(None, map(_intent_of_invoice, invoice_events)), intent_id)
        intent = self.retrieve(PAYMENT_INTENTS, intent_id) if intent_id else None
        if intent is not None:
            yield from self.intent(intent)
        if session is not None and session.get("status") in ("complete", "expired"):
            yield _object_event(_session_event(session, intent), session, created=self.read_at)

    def invoice(self, invoice_id: str) -> Iterator[Event]:
        invoice = self.retrieve(INVOICES, invoice_id)
        if invoice.get("status") == "paid":
            yield _object_event("invoice.paid", invoice, created=self.read_at)
        elif invoice.get("attempted"):
            yield _object_event("invoice.payment_failed", invoice, created=self.read_at)
        for paid in self.list(INVOICE_PAYMENTS, {"invoice": invoice_id}):
            if paid.get("status") == "paid":
                yield _object_event("invoice_payment.paid", paid, created=self.read_at)

    def intent(self, intent: dict[str, Any]) -> Iterator[Event]:
        """The intent as it is, with a failed try for each of its failed charges."""
        charges = {charge["id"]: charge for charge in self.list(CHARGES, {"payment_intent": intent["id"]})}
        for charge in charges.values():
            if charge.get("status") == "failed":
                error = {"code": charge.get("failure_code"), "message": charge.get("failure_message")}
                failed = {**intent, "last_payment_error": {**error, "charge": charge["id"]}}
                yield _object_event("payment_intent.payment_failed", failed, created=charge["created"])
            else:
                yield _object_event("charge.updated", charge, created=charge["created"])
        if kind := _INTENT_EVENTS.get(str(intent.get("status"))):
            latest = charges.get(str(id_of(intent.get("latest_charge"))), {})
            paid_at = latest.get("created") if kind.endswith("succeeded") else None
            yield _object_event(kind, intent, created=paid_at or self.read_at)


def _session_event(session: dict[str, Any], intent: dict[str, Any] | None) -> str:
    """A completed session whose delayed payment came to nothing is still shown as complete and unpaid."""
    has_failed = intent is not None and intent.get("status") in ("requires_payment_method", "canceled")
    if session["status"] == "complete" and session.get("payment_status") == "unpaid" and has_failed:
        return "checkout.session.async_payment_failed"
    return _SESSION_EVENTS[session["status"]]


def _intent_of_invoice(event: Event) -> str | None:
    return id_of(event.object.get("payment_intent")) or id_of(dig(event.object, "payment", "payment_intent"))


def _object_event(kind: str, stripe_object: dict[str, Any], *, created: int) -> Event:
    said = orjson.dumps([kind, stripe_object], option=orjson.OPT_SORT_KEYS)
    return read_event(
        {
            "id": f"{OBJECT_PREFIX}{hashlib.sha256(said).hexdigest()}",
            "type": kind,
            "created": created,
            "data": {"object": stripe_object},
        }
    )
