"""Asking what subscriptions are by now, one by one and in pages."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import String, Text, bindparam, or_, select, tuple_
from sqlalchemy.dialects.postgresql import TIMESTAMP

from app.database import Batch
from app.errors import NotFound
from app.models import Payment, Subscription
from app.services import Services
from app.services.events.stripe_object import required, text_of
from app.services.reports.position import Position, cursor_after

# A subscription as it is shown: its row, and for whom the payment is that it began with.
SHOWN = (
    select(
        *(column for column in Subscription.__table__.columns if column.key != "recheck_at"),
        Payment.brand_id,
        Payment.campaign_id,
    )
    .join(Payment, Payment.id == Subscription.payment_id)
    .where(Subscription.status.is_not(None))
)

_app_id: Any = bindparam("app_id", type_=Text)
_FIND = Batch(SHOWN.where(Subscription.app_id == _app_id, Subscription.id == bindparam("subscription_id")))

_org_id: Any = bindparam("org_id", type_=Text)
_of_org = (
    SHOWN.where(
        Subscription.org_id == bindparam("key"),
        or_(_app_id.is_(None), Subscription.app_id == _app_id),
        or_(_org_id.is_(None), Subscription.org_id == _org_id),
    )
    .order_by(Subscription.created_at.desc(), Subscription.id.desc())
    .limit(bindparam("limit"))
)
_before = tuple_(bindparam("created_at", type_=TIMESTAMP(timezone=True)), bindparam("id", type_=String))
_FIRST_PAGE = Batch(_of_org)
_LATER_PAGE = Batch(_of_org.where(tuple_(Subscription.created_at, Subscription.id) < _before))


def find_subscription(subscription_id: str, *, app_id: str, services: Services) -> dict[str, Any]:
    """An app's subscription as it is by now, as `FoundSubscriptionSchema` describes it.

    :raises NotFound: when the app has none of that id, or Stripe has not said yet what it is.
    """
    # PostgreSQL knows no NUL, so no subscription has one.
    is_possible = "\x00" not in subscription_id
    found = is_possible and services.database.run(_FIND, subscription_id=subscription_id, app_id=app_id)
    if not found:
        raise NotFound("Subscription not found")
    return {"subscription": found[0]._mapping}


def list_subscriptions_of_org(org_id: str, page: Mapping[str, Any], *, services: Services) -> dict[str, Any]:
    """A page of an organisation's subscriptions, newest first.

    :param page: what `PageQuerySchema` describes
    :raises InvalidRequest: when the cursor is none of ours.
    """
    limit, cursor = page["limit"], page.get("cursor")
    # One more than asked for tells whether there is a next page.
    values = {"key": org_id, "limit": limit + 1, "app_id": page.get("app_id"), "org_id": page.get("org_id")}
    if cursor:
        values |= asdict(Position.of(cursor, read_id=lambda text: required(text_of(text))))
    if "\x00" in org_id:
        return {"subscriptions": [], "next_cursor": None}
    rows = services.database.run(_LATER_PAGE if cursor else _FIRST_PAGE, **values)
    next_cursor = cursor_after(rows[limit - 1]) if len(rows) > limit else None
    return {"subscriptions": [row._mapping for row in rows[:limit]], "next_cursor": next_cursor}
