"""Receiving Stripe's events: each is stored once, joined to its payment, and folded into what that has become.

An event and the payment that it is about may become known in either order. Whatever joins them looks after its own
commit: an event that found no payment looks once more, and a payment that learned an id looks for events that wait
for it. Of two that happen at once, the one that commits last sees the other.
"""

import logging
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    ColumnElement,
    Row,
    ScalarSelect,
    Select,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal,
    not_,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.engine.interfaces import DBAPICursor

from app.database import Message, borrow_cursor, send
from app.errors import ServiceError
from app.metrics import count_event, count_status
from app.models import Payment, PaymentKind, PaymentStatus, Step, StripeEvent
from app.services import Services
from app.services.events.projection import (
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
            key.replace(_UNSTORABLE, _REPLACEMENT): _storable(inner)
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
_app: BindParameter[str | None] = bindparam("of_app", type_=Text)


def _knows(refs: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a payment knows one of these ids as an object of its own."""
    return or_(*(column == any_(refs) for column in _OWN_IDS))


# What a payment is looked for by, written once in the statement, however often it is used there.
_told = select(
    _refs.label("refs"),
    bindparam("claimed_id", type_=Uuid).label("payment_id"),
    bindparam("claim", type_=Text).label("claim"),
    _app.label("app_id"),
).subquery("told")
_is_known_by_id = _knows(_told.c.refs)
_is_claimed = and_(
    Payment.id == _told.c.payment_id,
    case(
        (_told.c.claim == _Claim.INTENT, Payment.stripe_payment_intent_id),
        (_told.c.claim == _Claim.SESSION, Payment.stripe_checkout_session_id),
        else_=Payment.stripe_subscription_id,
    ).is_(None),
    or_(Payment.kind == PaymentKind.CHECKOUT_SESSION, _told.c.claim == _Claim.INTENT),
)

# The lock that makes concurrent events of a payment wait for each other. What the fold needs is read by a later
# statement, which sees what the transaction that was waited for has committed.
_FIND_AND_LOCK = (
    select(Payment.id, Payment.app_id)
    .join(_told, or_(_is_known_by_id, _is_claimed) & or_(_told.c.app_id.is_(None), Payment.app_id == _told.c.app_id))
    .order_by(case((_is_known_by_id, 0), else_=1), Payment.id)
    .limit(1)
    .with_for_update(of=Payment)
)
_found = _FIND_AND_LOCK.cte("found")

_NEW = insert(StripeEvent).from_select(
    ["app_id", "id", "payment_id", "type", "created", "object", "refs"],
    select(
        func.coalesce(_found.c.app_id, _told.c.app_id, ""),
        bindparam("event_id", type_=Text),
        _found.c.id,
        bindparam("type", type_=Text),
        bindparam("created", type_=BigInteger),
        bindparam("object", type_=JSONB),
        _told.c.refs,
    ).select_from(_told.outerjoin(_found, true())),
)
# An event is stored once. One that was stored before its payment was known is joined when it is delivered again.
_stored = (
    _NEW.on_conflict_do_update(
        index_elements=[StripeEvent.app_id, StripeEvent.id],
        set_={"payment_id": _NEW.excluded.payment_id},
        where=StripeEvent.payment_id.is_(None) & _NEW.excluded.payment_id.is_not(None),
    )
    .returning(StripeEvent.id)
    .cte("stored")
)
_outcome = select(exists(select(_stored.c.id)).label("is_new")).subquery("outcome")

# What is found and stored is left where the rest of the transaction, and nothing after it, can read it.
_IS_NEW, _FOUND = "stripe_service.is_new", "stripe_service.found"
_FIND_LOCK_AND_STORE = select(
    func.set_config(_IS_NEW, cast(_outcome.c.is_new, Text), true()),
    func.set_config(_FOUND, func.coalesce(cast(_found.c.id, Text), ""), true()),
).select_from(_outcome.outerjoin(_found, true()))
_is_new = cast(func.current_setting(_IS_NEW), Boolean)
_found_id = cast(func.nullif(func.current_setting(_FOUND), ""), Uuid)


def _events_of(payment_id: ColumnElement[Any]) -> Select[Any]:
    columns = (StripeEvent.id, StripeEvent.type, StripeEvent.created, StripeEvent.object)
    return select(*columns).where(StripeEvent.payment_id == payment_id).limit(MAX_EVENTS_OF_PAYMENT)


READ_EVENTS = _events_of(bindparam("payment_id"))


def as_json(events: Select[Any]) -> ScalarSelect[str]:
    """The rows of `READ_EVENTS` or its like as one text, for `events_from`."""
    rows = events.subquery()
    return select(cast(func.json_agg(func.json_build_array(*rows.c)), Text)).scalar_subquery()


def events_from(text: str | None) -> list[Event]:
    """The events in what `as_json` selects."""
    return [Event(*event) for event in orjson.loads(text or "[]")]


_others = _events_of(_found_id).where(StripeEvent.id != bindparam("event_id"))
_STORE = Message(
    "BEGIN",
    _FIND_LOCK_AND_STORE,
    select(_is_new.label("is_new"), *_ROW, case((_is_new, as_json(_others))).label("others")).select_from(
        select(literal(1)).subquery().outerjoin(Payment, Payment.id == _found_id)
    ),
)

_FIND_BY_ID = Message(select(Payment.id).where(_knows(_refs)))
_LOOK_AGAIN = Message(_FIND_AND_LOCK)
_HOLDER_OF_INTENT = Message(select(Payment.id).where(Payment.stripe_payment_intent_id == bindparam("intent_id")))

_LOCK = Message("BEGIN", select(*_ROW).where(Payment.id == bindparam("payment_id")).with_for_update())

_waits = and_(StripeEvent.payment_id.is_(None), StripeEvent.refs.overlap(_refs), StripeEvent.app_id.in_(["", _app]))
_other = StripeEvent.__table__.alias("other")
_JOIN_WAITING = (
    update(StripeEvent)
    .where(_waits)
    .values(
        payment_id=bindparam("payment_id"),
        # It takes its payment's app, unless the app's own path has brought it as well.
        app_id=case(
            (exists().where(_other.c.app_id == _app, _other.c.id == StripeEvent.id), StripeEvent.app_id), else_=_app
        ),
    )
)

# What was joined by its metadata, and turns out to be about another intent or session than the payment's own.
_kind = StripeEvent.object["object"].astext
_is_foreign = and_(
    StripeEvent.payment_id == bindparam("payment_id"),
    not_(StripeEvent.refs.overlap(_refs)),
    exists().where(
        Payment.id == StripeEvent.payment_id,
        or_(
            or_(_kind == "payment_intent", _kind == "charge") & Payment.stripe_payment_intent_id.is_not(None),
            (_kind == "checkout.session") & Payment.stripe_checkout_session_id.is_not(None),
        ),
    ),
)
_LET_GO = update(StripeEvent).where(_is_foreign).values(payment_id=null())

_ADOPT = Message(_LET_GO, _JOIN_WAITING, READ_EVENTS)


def _is_any(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether an event waits by its ids: counted, for which the index on them is read.

    For EXISTS, which ends with the first, all that waits would be read where the planner expects to find one soon.
    """
    return select(func.count()).select_from(StripeEvent).where(*conditions).scalar_subquery() > 0


_HAS_EARLY = Message(
    select(
        or_(
            exists().where(StripeEvent.payment_id == bindparam("payment_id")),
            _is_any(StripeEvent.payment_id.is_(None), StripeEvent.refs.overlap(_refs)),
        ).label("is_any")
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

# What waits for a payment, or is foreign to it, is looked for after the commit of what the payment knows.
_WRITE_AND_COMMIT = Message(_WRITE, "COMMIT", select(or_(_is_any(_waits), exists().where(_is_foreign)).label("is_any")))
_COMMIT = Message("COMMIT")


def receive_event(event: Event, *, app_id: str | None, services: Services) -> Receipt:
    """Store an event and fold it into its payment. When this returns, both are committed.

    :param app_id: the app whose path or reconciliation brought it; None where only Stripe knows
    """
    keys = _keys_of(event, app_id)
    with borrow_cursor(services.database) as cursor:
        found = _store(cursor, event, keys)
        folds = found.is_new and is_taken(found)
        columns = _fold(cursor, found, [event, *events_from(found.others)]) if folds else {}
        has_more = _commit(cursor, found, columns)
    if has_more:
        adopt_events(found.id, services=services)
    payment_id = found.id or _look_again(keys, services)
    count_event(is_new=found.is_new, has_payment=payment_id is not None)
    return Receipt(Outcome.STORED if found.is_new else Outcome.DUPLICATE, payment_id)


def join_waiting_events(refs: list[str], *, services: Services) -> int:
    """Fold the payments that know any of these ids, which stored events wait with; return how many they are."""
    found = send(services.database, _FIND_BY_ID, {"any_ref": refs})
    for payment in found:
        adopt_events(payment.id, services=services)
    return len(found)


def adopt_events(payment_id: uuid.UUID, *, services: Services) -> None:
    """Join the events that waited for what a payment knows by now, and fold them; until none is left."""
    has_more = True
    while has_more:
        with borrow_cursor(services.database) as cursor:
            (payment,) = _LOCK.send(cursor, {"payment_id": payment_id})
            known = {"payment_id": payment_id, "of_app": payment.app_id, "any_ref": _own_ids(payment._asdict())}
            events = [Event(*event) for event in _ADOPT.send(cursor, known)]
            has_more = _commit(cursor, payment, _fold(cursor, payment, events) if is_taken(payment) else {})


def adopt_early_events(payment_id: uuid.UUID, own_ids: list[str], *, services: Services) -> None:
    """Fold the events that came before Stripe's answer did; mostly there are none, and this is one small query.

    :param own_ids: the ids of what Stripe made
    """
    (early,) = send(services.database, _HAS_EARLY, {"payment_id": payment_id, "any_ref": own_ids})
    if early.is_any:
        adopt_events(payment_id, services=services)


def _keys_of(event: Event, app_id: str | None) -> dict[str, Any]:
    """What the payment of an event is looked for by."""
    claimed_id, claim = _claim(event.object)
    return {"any_ref": references(event.object), "claimed_id": claimed_id, "claim": claim, "of_app": app_id}


def _look_again(keys: Mapping[str, Any], services: Services) -> uuid.UUID | None:
    """Find the payment of an event that was committed without one: it may have learned the event's id meanwhile."""
    found = send(services.database, _LOOK_AGAIN, keys) if keys["any_ref"] else []
    for payment in found:
        adopt_events(payment.id, services=services)
    return found[0].id if found else None


def _own_ids(columns: Mapping[str, Any]) -> list[str]:
    return [own_id for column in _OWN_IDS if (own_id := columns[column.key])]


def _store(cursor: DBAPICursor, event: Event, keys: Mapping[str, Any]) -> Any:
    """Store an event and lock its payment.

    The row is that of the payment, if there is one; it says whether the event `is_new`, and shows the `others` then.
    """
    facts = {"event_id": event.id, "type": event.type, "created": event.created, "object": event.object}
    (found,) = _STORE.send(cursor, {**keys, **facts})
    return found


def is_taken(payment: Row[Any]) -> bool:
    """Whether Stripe has made what the payment's events are about: before that there is nothing to fold."""
    return payment.step in (Step.TAKEN, Step.FINISHED) and payment.status != PaymentStatus.REJECTED


def _fold(cursor: DBAPICursor, payment: Row[Any], events: Iterable[Event]) -> dict[str, Any]:
    """What the payment has become, by column; nothing where that is what it was."""
    columns = _columns(project(creation_of(payment), events))
    if _is_taken_by_another(cursor, payment, columns["stripe_payment_intent_id"]):
        log.warning("payment %s is told of an intent that is another payment's", payment.id)
        columns["stripe_payment_intent_id"] = payment.stripe_payment_intent_id
    if payment.status != columns["status"]:
        count_status(columns["status"])
    return columns if any(getattr(payment, name) != value for name, value in columns.items()) else {}


def _commit(cursor: DBAPICursor, payment: Row[Any], columns: Mapping[str, Any]) -> bool:
    """Write and commit; True when by what the payment knows now, other events are to be joined to it or let go."""
    if not columns:
        _COMMIT.send(cursor, {})
        return False
    known = {"payment_id": payment.id, "of_app": payment.app_id, "any_ref": _own_ids({**payment._asdict(), **columns})}
    new = {f"new_{name}": value for name, value in columns.items()}
    (left,) = _WRITE_AND_COMMIT.send(cursor, {**known, **new})
    return bool(left.is_any)


def _is_taken_by_another(cursor: DBAPICursor, payment: Row[Any], intent_id: str | None) -> bool:
    """Whether a newly told intent is known to be another payment's: one invoice can be paid with the intent of two."""
    if intent_id in (None, payment.stripe_payment_intent_id):
        return False
    return any(holder.id != payment.id for holder in _HOLDER_OF_INTENT.send(cursor, {"intent_id": intent_id}))


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
