"""Asking what has become of payments, one by one and in pages."""

import base64
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import orjson
from orjson import Fragment
from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    bindparam,
    cast,
    func,
    literal_column,
    select,
    tuple_,
    union,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.types import Uuid

from app.database import Message, send
from app.errors import InvalidRequest, NotFound
from app.models import Payment, PaymentStatus
from app.schemas.base import camel_case
from app.services import Services
from app.services.events.projection import project
from app.services.events.receive import READ_EVENTS, as_json, creation_of, events_from, is_taken

# In UTC, whatever time zone the server is in.
_ISO_8601: ColumnElement[str] = literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'""")
_UTC: ColumnElement[str] = literal_column("'UTC'")


def _json(*columns: InstrumentedAttribute[Any] | ColumnElement[Any]) -> ColumnElement[Any]:
    """A JSON object that holds these columns, by their names on the wire."""
    names: Iterable[ColumnElement[str]] = (literal_column(f"'{camel_case(column.key)}'") for column in columns)
    return func.json_build_object(*chain.from_iterable(zip(names, columns, strict=True)))


def _time(column: InstrumentedAttribute[datetime]) -> ColumnElement[str]:
    return func.to_char(func.timezone(_UTC, column), _ISO_8601).label(column.key)


# What `PaymentSchema` describes, as PostgreSQL writes it: it makes text of every column anyway.
_PAYMENT = cast(
    _json(
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
        _time(Payment.created_at),
        _time(Payment.updated_at),
        _json(Payment.tracking_state.label("state"), Payment.tracking_error.label("error")).label("tracking"),
    ),
    Text,
).label("payment")

_FIND = Message(
    select(
        _PAYMENT, Payment.kind, Payment.step, Payment.status, Payment.created_as, as_json(READ_EVENTS).label("events")
    ).where(Payment.id == bindparam("payment_id"))
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


def _pages(*of: ColumnElement[bool]) -> tuple[Message, Message]:
    """The query for the first page, and the one for a page before a position.

    What is asked for in several columns is read from the index of each, and merged.
    """
    first = [_page(condition).subquery() for condition in of]
    later = [_page(condition).where(_position < _before).subquery() for condition in of]
    return _whole_rows(first), _whole_rows(later)


def _whole_rows(pages: Sequence[Any]) -> Message:
    ids = union(*(select(page.c.id) for page in pages)).subquery()
    return Message(
        select(_PAYMENT)
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
    id: str

    @classmethod
    def of(cls, cursor: str) -> "Position":
        """Read a cursor that an earlier page gave.

        :raises InvalidRequest: when it is none.
        """
        try:
            created_at, _, payment_id = base64.urlsafe_b64decode(cursor.encode()).decode().partition("/")
            # A forged one may name a time that exists in no other zone.
            position = cls(datetime.fromisoformat(created_at).astimezone(UTC), str(uuid.UUID(payment_id)))
        except (OverflowError, ValueError):
            raise InvalidRequest({"cursor": ["Is not one that a page gave."]}) from None
        return position


def find_payment(payment_id: str, *, services: Services) -> dict[str, Any]:
    """A payment and what happened to it, as `PaymentStatusSchema` describes it.

    :raises NotFound: when there is no such payment.
    """
    try:
        key = {"payment_id": uuid.UUID(payment_id)}
    except ValueError:
        raise NotFound("Payment not found") from None
    rows = send(services.database, _FIND, key)
    if not rows:
        raise NotFound("Payment not found")
    return {"payment": Fragment(rows[0].payment), "events": _happenings(rows[0])}


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
    pages: tuple[Message, Message], key: str, *, limit: int, cursor: str | None, services: Services
) -> dict[str, Any]:
    first, later = pages
    # One more than asked for tells whether there is a next page.
    values: dict[str, Any] = {"key": key, "limit": limit + 1}
    if cursor:
        values |= asdict(Position.of(cursor))
    # PostgreSQL knows no NUL, so no payment has one.
    if "\x00" in key:
        return {"payments": (), "nextCursor": None}
    payments = [row.payment for row in send(services.database, later if cursor else first, values)]
    next_cursor = _cursor_after(payments[limit - 1]) if len(payments) > limit else None
    return {"payments": list(map(Fragment, payments[:limit])), "nextCursor": next_cursor}


def _cursor_after(payment: str) -> str:
    shown = orjson.loads(payment)
    return base64.urlsafe_b64encode(f"{shown['createdAt']}/{shown['id']}".encode()).decode()


def _happenings(payment: Any) -> dict[str, Any]:
    if not is_taken(payment):
        return {"successes": (), "failures": (), "refunds": (), "disputes": ()}
    projection = project(creation_of(payment), events_from(payment.events))
    return {
        "successes": projection.successes,
        "failures": projection.failures,
        "refunds": projection.refunds,
        "disputes": projection.disputes,
    }
