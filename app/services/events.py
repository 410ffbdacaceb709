"""Receiving Stripe's events: each is stored once, joined to its payment, and folded into what that has become.

An event and the payment that it is about may become known in either order. Whatever joins them looks after its own
commit: an event that found no payment looks once more, and a payment that learned an id looks for events that wait
for it. Of two that happen at once, the one that commits last sees the other.
"""

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson
from sqlalchemy import (
    BindParameter,
    Connection,
    Row,
    Text,
    and_,
    any_,
    bindparam,
    case,
    exists,
    func,
    not_,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert

from app.errors import ServiceError
from app.metrics import count_event, count_status
from app.models import Payment, PaymentKind, PaymentStatus, Step, StripeEvent
from app.services import Services
from app.services.projection import (
    Creation,
    Event,
    Projection,
    dig,
    id_of,
    is_first_invoice,
    project,
    subscription_of,
    text_of,
)

log = logging.getLogger(__name__)

# Far more than the events of one payment: a bound for the query, not a rule.
MAX_EVENTS_OF_PAYMENT = 2_000

_UNSTORABLE = "\x00"
_REPLACEMENT = "\ufffd"


class NotAnEvent(ServiceError):
    """A signed body that is no Stripe event."""

    status = 400
    code = "not_a_stripe_event"

    def __init__(self) -> None:
        super().__init__("The body is not a Stripe event")


class Outcome(StrEnum):
    """What became of an event that was received."""

    STORED = "stored"
    DUPLICATE = "duplicate"


@dataclass(frozen=True)
class Receipt:
    """What became of an event, and the payment that it was joined to."""

    outcome: Outcome
    payment_id: uuid.UUID | None


def parse_event(body: bytes) -> Event:
    """Read an event, as Stripe sent it or lists it; the object comes out without secrets.

    :raises NotAnEvent: when it isn't one.
    """
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise NotAnEvent from None
    return read_event(event)


def read_event(event: object) -> Event:
    """The same for an event whose JSON is read already.

    :raises NotAnEvent: when it isn't one.
    """
    if not isinstance(event, Mapping):
        raise NotAnEvent
    event_id, event_type, created = event.get("id"), event.get("type"), event.get("created")
    stripe_object = dig(event, "data", "object")
    genuine = (
        _is_name(event_id)
        and _is_name(event_type)
        and isinstance(created, int)
        and not isinstance(created, bool)
        and abs(created) < 2**63
        and isinstance(stripe_object, dict)
        # The object of a `balance.available` has no id.
        and isinstance(stripe_object.get("id", ""), str)
    )
    if not genuine:
        raise NotAnEvent
    try:
        return Event(str(event_id), str(event_type), int(created or 0), _storable(stripe_object))
    except RecursionError:
        raise NotAnEvent from None


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 255 and _UNSTORABLE not in value


def _storable(value: Any) -> Any:
    """A copy without client secrets, and without what jsonb refuses."""
    if isinstance(value, dict):
        return {
            _storable(key): _storable(inner)
            for key, inner in value.items()
            if key not in ("client_secret", "next_action")
        }
    if isinstance(value, list):
        return [_storable(inner) for inner in value]
    return value.replace(_UNSTORABLE, _REPLACEMENT) if isinstance(value, str) else value


def references(stripe_object: Mapping[str, Any]) -> list[str]:
    """The ids by which a payment may know an object: its own, and of what it belongs to."""
    of = stripe_object.get
    match of("object"):
        case "payment_intent":
            found = [of("id"), of("invoice")]
        case "checkout.session":
            found = [of("id"), of("payment_intent"), of("subscription"), of("invoice")]
        case "charge":
            found = [of("id"), of("payment_intent")]
        case "refund" | "dispute":
            found = [of("charge"), of("payment_intent")]
        case "invoice":
            # A renewal is none of the payment's business, so that it isn't found by the subscription.
            subscription = subscription_of(stripe_object) if is_first_invoice(stripe_object) else None
            found = [of("id"), of("payment_intent"), subscription]
        case "invoice_payment":
            found = [of("invoice"), dig(of("payment"), "payment_intent")]
        case _:
            found = []
    return sorted({found_id for reference in found if (found_id := id_of(reference))})


class _Claim(StrEnum):
    """Which object of its own a payment must not know yet, for an event to be joined by its metadata."""

    INTENT = "intent"
    SESSION = "session"
    SUBSCRIPTION = "subscription"


def _claim(stripe_object: Mapping[str, Any]) -> tuple[uuid.UUID | None, _Claim | None]:
    """The payment that an object's metadata names. Anyone with the app's key can write metadata: it is a hint."""
    metadata, claim = stripe_object.get("metadata"), None
    match stripe_object.get("object"):
        case "payment_intent" | "charge":
            claim = _Claim.INTENT
        case "checkout.session":
            claim = _Claim.SESSION
        case "invoice":
            claim = _Claim.SUBSCRIPTION
            metadata = dig(stripe_object, "parent", "subscription_details", "metadata") or dig(
                stripe_object, "subscription_details", "metadata"
            )
    try:
        return uuid.UUID(text_of(dig(metadata, "paymentId"))), claim
    except (TypeError, ValueError, AttributeError):
        return None, None


_ROW = (
    Payment.id,
    Payment.app_id,
    Payment.kind,
    Payment.step,
    Payment.status,
    Payment.created_as,
    Payment.amount_in_cents,
    Payment.currency,
    Payment.stripe_payment_intent_id,
    Payment.stripe_checkout_session_id,
    Payment.stripe_subscription_id,
    Payment.stripe_invoice_id,
    Payment.stripe_charge_id,
    Payment.stripe_customer_id,
    Payment.amount_received_in_cents,
    Payment.amount_refunded_in_cents,
    Payment.amount_disputed_in_cents,
    Payment.success_count,
    Payment.failure_count,
    Payment.refund_count,
    Payment.dispute_count,
)
_OWN_IDS = (
    Payment.stripe_payment_intent_id,
    Payment.stripe_checkout_session_id,
    Payment.stripe_subscription_id,
    Payment.stripe_invoice_id,
    Payment.stripe_charge_id,
)

_refs = bindparam("any_ref", type_=ARRAY(Text))
_app: BindParameter[str | None] = bindparam("of_app")
_known_by_id = or_(*(column == any_(_refs) for column in _OWN_IDS))
_claimed = and_(
    Payment.id == bindparam("claimed_id"),
    case(
        (bindparam("claim") == _Claim.INTENT, Payment.stripe_payment_intent_id),
        (bindparam("claim") == _Claim.SESSION, Payment.stripe_checkout_session_id),
        else_=Payment.stripe_subscription_id,
    ).is_(None),
    or_(Payment.kind == PaymentKind.CHECKOUT_SESSION, bindparam("claim") == _Claim.INTENT),
)

# The lock that makes concurrent events of a payment wait for each other. It is a statement of its own: what the fold
# needs is read by the next one, which sees what the transaction that was waited for has committed.
_FIND_AND_LOCK = (
    select(*_ROW)
    .where(or_(_known_by_id, _claimed), or_(_app.is_(None), Payment.app_id == _app))
    .order_by(case((_known_by_id, 0), else_=1), Payment.id)
    .limit(1)
    .with_for_update()
)
_FIND_BY_ID = select(Payment.id).where(_known_by_id)
_HOLDER_OF_INTENT = select(Payment.id).where(Payment.stripe_payment_intent_id == bindparam("intent_id"))
_LOCK = select(*_ROW).where(Payment.id == bindparam("payment_id")).with_for_update()

_NEW = insert(StripeEvent).values(
    app_id=bindparam("event_app_id"),
    id=bindparam("event_id"),
    payment_id=bindparam("payment_id"),
    type=bindparam("type"),
    created=bindparam("created"),
    object=bindparam("object"),
    refs=_refs,
)
# An event is stored once. One that was stored before its payment was known is joined when it is delivered again.
_INSERT = _NEW.on_conflict_do_update(
    index_elements=[StripeEvent.app_id, StripeEvent.id],
    set_={"payment_id": _NEW.excluded.payment_id},
    where=StripeEvent.payment_id.is_(None) & _NEW.excluded.payment_id.is_not(None),
).returning(StripeEvent.id)

READ_EVENTS = (
    select(StripeEvent.id, StripeEvent.type, StripeEvent.created, StripeEvent.object)
    .where(StripeEvent.payment_id == bindparam("payment_id"))
    .limit(MAX_EVENTS_OF_PAYMENT)
)

_other = StripeEvent.__table__.alias("other")
_JOIN_WAITING = (
    update(StripeEvent)
    .where(
        StripeEvent.payment_id.is_(None),
        StripeEvent.refs.overlap(_refs),
        StripeEvent.app_id.in_(["", _app]),
    )
    .values(
        payment_id=bindparam("of_payment"),
        # It takes its payment's app, unless the app's own path has brought it as well.
        app_id=case(
            (exists().where(_other.c.app_id == _app, _other.c.id == StripeEvent.id), StripeEvent.app_id), else_=_app
        ),
    )
)

# What was joined by its metadata, and turns out to be about another intent or session than the payment's own.
_LET_GO = (
    update(StripeEvent)
    .where(
        StripeEvent.payment_id == bindparam("of_payment"),
        not_(StripeEvent.refs.overlap(_refs)),
        exists().where(
            Payment.id == StripeEvent.payment_id,
            or_(
                StripeEvent.object["object"].astext.in_(["payment_intent", "charge"])
                & Payment.stripe_payment_intent_id.is_not(None),
                (StripeEvent.object["object"].astext == "checkout.session")
                & Payment.stripe_checkout_session_id.is_not(None),
            ),
        ),
    )
    .values(payment_id=null())
)

_HAS_EARLY = select(
    or_(
        exists().where(StripeEvent.payment_id == bindparam("of_payment")),
        exists().where(StripeEvent.payment_id.is_(None), StripeEvent.refs.overlap(_refs)),
    )
)

_WRITE = (
    update(Payment)
    .where(Payment.id == bindparam("payment_id"))
    .values(
        status=bindparam("new_status"),
        amount_in_cents=bindparam("new_amount_in_cents"),
        currency=bindparam("new_currency"),
        stripe_payment_intent_id=bindparam("new_stripe_payment_intent_id"),
        stripe_subscription_id=bindparam("new_stripe_subscription_id"),
        stripe_invoice_id=bindparam("new_stripe_invoice_id"),
        stripe_charge_id=bindparam("new_stripe_charge_id"),
        stripe_customer_id=bindparam("new_stripe_customer_id"),
        amount_received_in_cents=bindparam("new_amount_received_in_cents"),
        amount_refunded_in_cents=bindparam("new_amount_refunded_in_cents"),
        amount_disputed_in_cents=bindparam("new_amount_disputed_in_cents"),
        success_count=bindparam("new_success_count"),
        failure_count=bindparam("new_failure_count"),
        refund_count=bindparam("new_refund_count"),
        dispute_count=bindparam("new_dispute_count"),
        updated_at=func.now(),
    )
)


def receive_event(event: Event, *, app_id: str | None, services: Services) -> Receipt:
    """Store an event and fold it into its payment. When this returns, both are committed.

    :param app_id: the app whose path or reconciliation brought it; None where only Stripe knows
    """
    with services.transactions.begin() as connection:
        payment = _find_and_lock(connection, event, app_id)
        stored = _insert(connection, event, payment.app_id if payment else app_id or "", payment)
        learned = payment is not None and stored and _fold(connection, payment)
    if payment is None:
        payment = _look_again(event, app_id, services)
    elif learned:
        adopt_events(payment.id, services=services)
    count_event(is_new=stored, has_payment=payment is not None)
    return Receipt(Outcome.STORED if stored else Outcome.DUPLICATE, payment.id if payment else None)


def join_waiting_events(refs: list[str], *, services: Services) -> int:
    """Fold the payments that know any of these ids, which stored events wait with; return how many they are."""
    with services.database.connect() as connection:
        payment_ids = connection.execute(_FIND_BY_ID, {"any_ref": refs}).scalars().all()
    for payment_id in payment_ids:
        adopt_events(payment_id, services=services)
    return len(payment_ids)


def adopt_events(payment_id: uuid.UUID, *, services: Services) -> None:
    """Join the events that waited for what a payment knows by now, and fold them; until it learns nothing new."""
    learned = True
    while learned:
        with services.transactions.begin() as connection:
            payment = connection.execute(_LOCK, {"payment_id": payment_id}).one()
            known = {"of_payment": payment_id, "of_app": payment.app_id, "any_ref": _own_ids(payment)}
            connection.execute(_LET_GO, known)
            connection.execute(_JOIN_WAITING, known)
            learned = _fold(connection, payment)


def adopt_early_events(payment_id: uuid.UUID, own_ids: list[str], *, services: Services) -> None:
    """Fold the events that came before Stripe's answer did; mostly there are none, and this is one small query.

    :param own_ids: the ids of what Stripe made
    """
    with services.database.connect() as connection:
        early = connection.execute(_HAS_EARLY, {"of_payment": payment_id, "any_ref": own_ids}).scalar_one()
    if early:
        adopt_events(payment_id, services=services)


def _find_and_lock(connection: Connection, event: Event, app_id: str | None) -> Row[Any] | None:
    refs = references(event.object)
    claimed_id, claim = _claim(event.object)
    if not refs and claimed_id is None:
        return None
    return connection.execute(
        _FIND_AND_LOCK, {"any_ref": refs, "claimed_id": claimed_id, "claim": claim, "of_app": app_id}
    ).one_or_none()


def _insert(connection: Connection, event: Event, event_app_id: str, payment: Row[Any] | None) -> bool:
    """Store the event; False when that, with this payment, was done before."""
    inserted = connection.execute(
        _INSERT,
        {
            "event_app_id": event_app_id,
            "event_id": event.id,
            "payment_id": payment and payment.id,
            "type": event.type,
            "created": event.created,
            "object": event.object,
            "any_ref": references(event.object),
        },
    )
    return inserted.one_or_none() is not None


def _look_again(event: Event, app_id: str | None, services: Services) -> Row[Any] | None:
    """Find the payment of an event that was committed without one: it may have learned the event's id meanwhile."""
    if not references(event.object):
        return None
    with services.database.connect() as connection:
        payment = _find_and_lock(connection, event, app_id)
    if payment is not None:
        adopt_events(payment.id, services=services)
    return payment


def _own_ids(payment: Row[Any]) -> list[str]:
    return [own_id for column in _OWN_IDS if (own_id := getattr(payment, column.key))]


def _fold(connection: Connection, payment: Row[Any]) -> bool:
    """Write what the payment has become; True when it learned an id by which other events may know it."""
    if payment.step not in (Step.TAKEN, Step.FINISHED) or payment.status == PaymentStatus.REJECTED:
        return False
    events = connection.execute(READ_EVENTS, {"payment_id": payment.id}).all()
    columns = _columns(project(creation_of(payment), (Event(*event) for event in events)))
    if _is_taken_by_another(connection, payment, columns["stripe_payment_intent_id"]):
        log.warning("payment %s is told of an intent that is another payment's", payment.id)
        columns["stripe_payment_intent_id"] = payment.stripe_payment_intent_id
    if payment.status != columns["status"]:
        count_status(columns["status"])
    if any(getattr(payment, name) != value for name, value in columns.items()):
        connection.execute(
            _WRITE, {"payment_id": payment.id, **{f"new_{name}": value for name, value in columns.items()}}
        )
    return any(columns.get(column.key) not in (None, getattr(payment, column.key)) for column in _OWN_IDS)


def _is_taken_by_another(connection: Connection, payment: Row[Any], intent_id: str | None) -> bool:
    """Whether a newly told intent is known to be another payment's: one invoice can be paid with the intent of two."""
    if intent_id in (None, payment.stripe_payment_intent_id):
        return False
    return connection.execute(_HOLDER_OF_INTENT, {"intent_id": intent_id}).scalar_one_or_none() not in (
        None,
        payment.id,
    )


def creation_of(payment: Row[Any]) -> Creation:
    """What the creation said of a payment that Stripe has taken."""
    return Creation(kind=PaymentKind(payment.kind), **payment.created_as)


def _columns(projection: Projection) -> dict[str, Any]:
    return {
        "status": projection.status,
        "amount_in_cents": projection.amount_in_cents,
        "currency": projection.currency,
        "stripe_payment_intent_id": projection.payment_intent_id,
        "stripe_subscription_id": projection.subscription_id,
        "stripe_invoice_id": projection.invoice_id,
        "stripe_charge_id": projection.charge_id,
        "stripe_customer_id": projection.customer_id,
        "amount_received_in_cents": projection.received_in_cents,
        "amount_refunded_in_cents": projection.refunded_in_cents,
        "amount_disputed_in_cents": projection.disputed_in_cents,
        "success_count": len(projection.successes),
        "failure_count": len(projection.failures),
        "refund_count": len(projection.refunds),
        "dispute_count": len(projection.disputes),
    }
