"""Asking what has become of payments, one by one and in pages."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, bindparam, case, func, or_, select, tuple_, union
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.types import Uuid

from app.database import Batch
from app.errors import NotFound
from app.models import (
    ActionState,
    Operation,
    OperationKind,
    Payment,
    PaymentKind,
    PaymentOrigin,
    PaymentStatus,
    Step,
    StripeEvent,
    StripeObject,
    Subscription,
    TrackingState,
)
from app.services import Services
from app.services.events.fold import EVENT_COLUMNS, events_of
from app.services.events.projection import Projection, project
from app.services.payment_id import read_payment_id
from app.services.reports.position import Position, cursor_after

OK = 200
# What is done with a payment; what is done with its subscription is no action of it.
ACTIONS = (OperationKind.REFUND, OperationKind.CAPTURE, OperationKind.CANCEL)
NOT_EXECUTED = "It was not executed"


# How callers know the kinds of payment.
ORIGINS = {
    PaymentKind.CHECKOUT_SESSION: PaymentOrigin.CHECKOUT,
    PaymentKind.PAYMENT_INTENT: PaymentOrigin.PAYMENT_INTENT,
    PaymentKind.RENEWAL: PaymentOrigin.RENEWAL,
}

# A payment as it is shown: all of its row, and what became of its tracking. Before Stripe has answered, only the
# operation knows a run of the payment's own.
SHOWN = (
    select(
        *(column for column in Payment.__table__.columns if column.key != "run_id"),
        case(dict(ORIGINS), value=Payment.kind).label("origin"),
        (Payment.amount_refunded_in_cents + Payment.amount_lost_in_cents).label("amount_returned_in_cents"),
        func.coalesce(Payment.run_id, Operation.run_id).label("run_id"),
        func.coalesce(Operation.tracking_state, TrackingState.NONE).label("tracking_state"),
        Operation.tracking_error,
        Subscription.status.label("subscription_status"),
    )
    .outerjoin(Operation, Operation.id == Payment.id)
    .outerjoin(
        Subscription, (Subscription.id == Payment.stripe_subscription_id) & (Subscription.app_id == Payment.app_id)
    )
)

# Of the app that is asked about, where one is.
_app_id: Any = bindparam("app_id", type_=Text)
_org_id: Any = bindparam("org_id", type_=Text)
_is_visible = or_(_app_id.is_(None), Payment.app_id == _app_id)

# With a row for each of its events, less those that tell of its subscription, of which there may be many.
_is_of_payment = (StripeEvent.payment_id == Payment.id) & ~func.starts_with(StripeEvent.type, "customer.subscription.")
_FIND = Batch(
    SHOWN.add_columns(*EVENT_COLUMNS)
    .outerjoin(StripeEvent, _is_of_payment)
    .where(Payment.id == bindparam("payment_id"), _is_visible)
)

# What was asked to be done with a payment, the first first; a bound for the query, and more than any payment has.
MAX_ACTIONS = 1_000
_ACTIONS = Batch(
    select(
        Operation.id,
        Operation.kind,
        Operation.request,
        Operation.step,
        Operation.answer_status,
        Operation.answer,
        Operation.tracking_state,
        Operation.tracking_error,
        Operation.created_at,
    )
    .where(
        Operation.payment_id == bindparam("payment_id"),
        Operation.id != Operation.payment_id,
        or_(*(Operation.kind == kind for kind in ACTIONS)),
    )
    .order_by(Operation.created_at, Operation.id)
    .limit(MAX_ACTIONS)
)

# The ids that events are joined by, or else the own id of what a joined event shows: a refund, a dispute, a charge.
_known_object = select(StripeObject.payment_id).where(StripeObject.id == bindparam("stripe_id"))
_shown_object = select(StripeEvent.payment_id).where(
    StripeEvent.refs[1] == bindparam("stripe_id"), StripeEvent.payment_id.is_not(None)
)
# Each from its own index; with OR between them, PostgreSQL would read all payments.
_knows_object: Any = union(_known_object, _shown_object)
_FIND_BY_STRIPE_ID = Batch(
    select(Payment.id.label("payment_id"))
    .where(Payment.app_id == bindparam("app_id"), Payment.id.in_(_knows_object))
    .limit(1)
)

_position = tuple_(Payment.created_at, Payment.id)
_before = tuple_(bindparam("created_at", type_=TIMESTAMP(timezone=True)), bindparam("id", type_=Uuid))


def _page(of: ColumnElement[bool], *, later: bool) -> Select[Any]:
    """A page, newest first: read from an index on what is asked for and on the position."""
    page = SHOWN.where(
        of,
        Payment.status != PaymentStatus.REJECTED,
        _is_visible,
        or_(_org_id.is_(None), Payment.org_id == _org_id),
    )
    if later:
        page = page.where(_position < _before)
    return page.order_by(Payment.created_at.desc(), Payment.id.desc()).limit(bindparam("limit"))


def _pages(*of: ColumnElement[bool]) -> tuple[Batch, Batch]:
    """The query for the first page, and the one for a page before a position.

    What is asked for in several columns is read from the index of each, and merged.
    """

    def query(*, later: bool) -> Batch:
        first, *others = (_page(condition, later=later) for condition in of)
        if not others:
            return Batch(first)
        merged = union(*(select(page.subquery()) for page in (first, *others))).subquery()
        newest = merged.c.created_at.desc(), merged.c.id.desc()
        return Batch(select(merged).order_by(*newest).limit(bindparam("limit")))

    return query(later=False), query(later=True)


_OF_ORG = _pages(Payment.org_id == bindparam("key"))
_OF_RUN = _pages(Payment.run_id == bindparam("key"), Payment.parent_run_id == bindparam("key"))


def find_payment(payment_id: str, *, app_id: str | None = None, services: Services) -> dict[str, Any]:
    """A payment and what happened to it, as `PaymentDetailsSchema` describes it.

    :raises NotFound: when there is no such payment, or it isn't the app's.
    """
    return _show(read_payment_id(payment_id), app_id, services)


def find_payment_by_stripe_id(stripe_id: str, *, app_id: str, services: Services) -> dict[str, Any]:
    """The app's payment that knows an object of Stripe's, as `find_payment` shows it.

    :raises NotFound: when there is none.
    """
    # PostgreSQL knows no NUL, so nothing of Stripe's is known by one.
    is_possible = "\x00" not in stripe_id
    found = is_possible and services.database.run(_FIND_BY_STRIPE_ID, stripe_id=stripe_id, app_id=app_id)
    if not found:
        raise NotFound("Payment not found")
    return _show(found[0].payment_id, app_id, services)


def _show(payment_id: uuid.UUID, app_id: str | None, services: Services) -> dict[str, Any]:
    rows = services.database.run(_FIND, payment_id=payment_id, app_id=app_id)
    if not rows:
        raise NotFound("Payment not found")
    actions = services.database.run(_ACTIONS, payment_id=payment_id)
    return {"payment": rows[0]._mapping, "events": _happenings(rows), "actions": list(map(_show_action, actions))}


def _show_action(operation: Any) -> dict[str, Any]:
    """An operation about a payment, as `ActionSchema` describes it."""
    answer = operation.answer or {}
    state, error = _state_of(operation, answer)
    return {
        "id": operation.id,
        "kind": operation.kind,
        "amount_in_cents": answer.get("amount_in_cents", operation.request.get("amount_in_cents")),
        "refund_id": answer.get("refund_id"),
        "reason": operation.request.get("reason"),
        "metadata": operation.request.get("metadata", {}),
        "state": state,
        "error": error,
        "created_at": operation.created_at,
    }


def _state_of(operation: Any, answer: Mapping[str, Any]) -> tuple[ActionState, str | None]:
    if operation.answer_status == OK:
        return ActionState.DONE, None
    if operation.answer_status is not None:
        return ActionState.REFUSED, answer["error"]
    if operation.tracking_state == TrackingState.STUCK:
        return ActionState.STUCK, operation.tracking_error
    if operation.step in (Step.TAKEN, Step.FINISHED):
        return ActionState.REFUSED, NOT_EXECUTED
    return ActionState.PENDING, operation.tracking_error


def list_payments_of_org(org_id: str, page: Mapping[str, Any], *, services: Services) -> dict[str, Any]:
    """A page of an organisation's payments, newest first.

    :param page: what `PageQuerySchema` describes
    :raises InvalidRequest: when the cursor is none of ours.
    """
    return _list(_OF_ORG, org_id, services=services, **page)


def list_payments_of_run(run_id: str, page: Mapping[str, Any], *, services: Services) -> dict[str, Any]:
    """A page of the payments whose own run, or the caller's, is this one; newest first.

    :param page: what `PageQuerySchema` describes
    :raises InvalidRequest: when the cursor is none of ours.
    """
    return _list(_OF_RUN, run_id, services=services, **page)


def _list(
    pages: tuple[Batch, Batch],
    key: str,
    *,
    services: Services,
    limit: int,
    cursor: str | None = None,
    app_id: str | None = None,
    org_id: str | None = None,
) -> dict[str, Any]:
    first, later = pages
    # One more than asked for tells whether there is a next page.
    values: dict[str, Any] = {"key": key, "limit": limit + 1, "app_id": app_id, "org_id": org_id}
    if cursor:
        values |= asdict(Position.of(cursor, read_id=lambda text: str(uuid.UUID(text))))
    # PostgreSQL knows no NUL, so no payment has one.
    if "\x00" in key:
        return {"payments": [], "next_cursor": None}
    rows = services.database.run(later if cursor else first, **values)
    next_cursor = cursor_after(rows[limit - 1]) if len(rows) > limit else None
    return {"payments": [row._mapping for row in rows[:limit]], "next_cursor": next_cursor}


def _happenings(rows: Sequence[Any]) -> Projection | dict[str, Any]:
    payment = rows[0]
    projection = project(payment.id, PaymentKind(payment.kind), events_of(rows))
    return projection or {"successes": [], "failures": [], "refunds": [], "disputes": []}
