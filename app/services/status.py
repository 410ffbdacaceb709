"""Asking what has become of payments, one by one and in pages."""

import base64
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, bindparam, select, tuple_, union
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.types import Uuid

from app.errors import InvalidRequest, NotFound
from app.models import Payment, PaymentStatus, Step
from app.services import Services
from app.services.events import READ_EVENTS, creation_of
from app.services.projection import Event, project

_PAYMENT_COLUMNS = (
    Payment.id,
    Payment.org_id,
    Payment.run_id,
    Payment.parent_run_id,
    Payment.brand_id,
    Payment.app_id,
    Payment.campaign_id,
    Payment.stripe_payment_intent_id,
    Payment.stripe_checkout_session_id,
    Payment.stripe_subscription_id,
    Payment.stripe_customer_id,
    Payment.amount_in_cents,
    Payment.currency,
    Payment.status,
    Payment.description,
    Payment.payment_metadata.label("metadata"),
    Payment.amount_received_in_cents,
    Payment.amount_refunded_in_cents,
    Payment.created_at,
    Payment.updated_at,
    Payment.tracking_state,
    Payment.tracking_error,
)

_FIND = select(*_PAYMENT_COLUMNS, Payment.kind, Payment.step, Payment.created_as).where(
    Payment.id == bindparam("payment_id")
)

_position = tuple_(Payment.created_at, Payment.id)
_before = tuple_(bindparam("created_at", type_=TIMESTAMP(timezone=True)), bindparam("id", type_=Uuid))


def _page(of: ColumnElement[bool]) -> Select[uuid.UUID, datetime]:
    """The ids of a page, newest first: read from an index on what is asked for and on the position."""
    return (
        select(Payment.id, Payment.created_at)
        .where(of, Payment.status != PaymentStatus.REJECTED)
        .order_by(Payment.created_at.desc(), Payment.id.desc())
        .limit(bindparam("limit"))
    )


def _pages(*of: ColumnElement[bool]) -> tuple[Select[Any], Select[Any]]:
    """The statement for the first page, and the one for a page before a position.

    What is asked for in several columns is read from the index of each, and merged.
    """
    first = [_page(condition).subquery() for condition in of]
    later = [_page(condition).where(_position < _before).subquery() for condition in of]
    return _whole_rows(first), _whole_rows(later)


def _whole_rows(pages: Sequence[Any]) -> Select[Any]:
    ids = union(*(select(page.c.id) for page in pages)).subquery()
    return (
        select(*_PAYMENT_COLUMNS)
        .join(ids, ids.c.id == Payment.id)
        .order_by(Payment.created_at.desc(), Payment.id.desc())
        .limit(bindparam("limit"))
    )


_OF_ORG = _pages(Payment.org_id == bindparam("key"))
_OF_RUN = _pages(Payment.run_id == bindparam("key"), Payment.parent_run_id == bindparam("key"))


@dataclass(frozen=True)
class Position:
    """A place in a list: after the payment that was made then and has this id."""

    created_at: datetime
    id: uuid.UUID

    @classmethod
    def of(cls, cursor: str) -> "Position":
        """Read a cursor that an earlier page gave.

        :raises InvalidRequest: when it is none.
        """
        try:
            created_at, _, payment_id = base64.urlsafe_b64decode(cursor.encode()).decode().partition("/")
            # A forged one may name a time that exists in no other zone.
            position = cls(datetime.fromisoformat(created_at).astimezone(UTC), uuid.UUID(payment_id))
        except (OverflowError, ValueError):
            raise InvalidRequest({"cursor": ["Is not one that a page gave."]}) from None
        return position

    @property
    def cursor(self) -> str:
        return base64.urlsafe_b64encode(f"{self.created_at.isoformat()}/{self.id}".encode()).decode()


def find_payment(payment_id: str, *, services: Services) -> dict[str, Any]:
    """A payment and what happened to it, in the shape of `PaymentStatusSchema`.

    :raises NotFound: when there is no such payment.
    """
    try:
        key = {"payment_id": uuid.UUID(payment_id)}
    except ValueError:
        raise NotFound("Payment not found") from None
    with services.database.connect() as connection:
        row = connection.execute(_FIND, key).one_or_none()
        if row is None:
            raise NotFound("Payment not found")
        events = connection.execute(READ_EVENTS, key).all()
    return {"payment": _payment(row), "events": _happenings(row, events)}


def list_payments_of_org(org_id: str, *, limit: int, cursor: str | None = None, services: Services) -> dict[str, Any]:
    """A page of an organisation's payments, newest first.

    :raises InvalidRequest: when the cursor is none of ours.
    """
    return _list(_OF_ORG, org_id, limit=limit, cursor=cursor, services=services)


def list_payments_of_run(run_id: str, *, limit: int, cursor: str | None = None, services: Services) -> dict[str, Any]:
    """A page of the payments whose own run, or the caller's, is this one; newest first.

    :raises InvalidRequest: when the cursor is none of ours.
    """
    return _list(_OF_RUN, run_id, limit=limit, cursor=cursor, services=services)


def _list(
    pages: tuple[Select[Any], Select[Any]], key: str, *, limit: int, cursor: str | None, services: Services
) -> dict[str, Any]:
    first, later = pages
    # One more than asked for tells whether there is a next page.
    values: dict[str, Any] = {"key": key, "limit": limit + 1}
    if cursor:
        position = Position.of(cursor)
        values |= {"created_at": position.created_at, "id": position.id}
    # PostgreSQL knows no NUL, so no payment has one.
    if "\x00" in key:
        return {"payments": (), "next_cursor": None}
    with services.database.connect() as connection:
        rows = connection.execute(later if cursor else first, values).all()
    next_cursor = Position(rows[limit - 1].created_at, rows[limit - 1].id).cursor if len(rows) > limit else None
    return {"payments": [_payment(row) for row in rows[:limit]], "next_cursor": next_cursor}


def _happenings(row: Row[Any], events: Sequence[Row[Any]]) -> dict[str, Any]:
    if row.step not in (Step.TAKEN, Step.FINISHED) or row.status == PaymentStatus.REJECTED:
        return {"successes": (), "failures": (), "refunds": (), "disputes": ()}
    projection = project(
        creation_of(row), (Event(event.id, event.type, event.created, event.object) for event in events)
    )
    return {
        "successes": projection.successes,
        "failures": projection.failures,
        "refunds": projection.refunds,
        "disputes": projection.disputes,
    }


def _payment(row: Row[Any]) -> dict[str, Any]:
    payment = dict(row._mapping)
    tracking = {"state": payment.pop("tracking_state"), "error": payment.pop("tracking_error")}
    return {**payment, "tracking": tracking}
