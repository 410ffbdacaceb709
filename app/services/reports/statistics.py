"""Statistics over payments, computed in the database from what each payment has become."""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Text, any_, bindparam, cast, func, or_, select
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP
from sqlalchemy.orm import InstrumentedAttribute

from app.database import Batch
from app.models import Payment, PaymentStatus
from app.services import Services


def _sum(column: InstrumentedAttribute[Any]) -> ColumnElement[int]:
    # PostgreSQL's own type for it is numeric, which comes as a Decimal.
    return cast(func.coalesce(func.sum(column), 0), BigInteger)


_SUMS: Mapping[str, ColumnElement[Any]] = {
    "payments": func.count(),
    "amount": _sum(Payment.amount_in_cents),
    "success_count": _sum(Payment.success_count),
    "failure_count": _sum(Payment.failure_count),
    "refund_count": _sum(Payment.refund_count),
    "dispute_count": _sum(Payment.dispute_count),
    "received": _sum(Payment.amount_received_in_cents),
    "refunded": _sum(Payment.amount_refunded_in_cents),
    "disputed": _sum(Payment.amount_disputed_in_cents),
}
_app_id: Any = bindparam("app_id", type_=Text)
_before: Any = bindparam("before", type_=TIMESTAMP(timezone=True))

_FILTERS: Mapping[str, ColumnElement[bool]] = {
    "run_ids": or_(
        Payment.run_id == any_(bindparam("run_ids", type_=ARRAY(Text))),
        Payment.parent_run_id == any_(bindparam("run_ids", type_=ARRAY(Text))),
    ),
    "org_id": Payment.org_id == bindparam("org_id"),
    "brand_id": Payment.brand_id == bindparam("brand_id"),
    "app_id": Payment.app_id == bindparam("app_id"),
    "campaign_id": Payment.campaign_id == bindparam("campaign_id"),
}


def compute_statistics(filters: Mapping[str, Any], *, services: Services) -> dict[str, Any]:
    """Counts and sums over the payments that match every filter given, as `StatsSchema` describes them.

    :param filters: any of `run_ids`, `org_id`, `brand_id`, `app_id`, `campaign_id`
    :raises Overloaded: when as many are computed as may be at once, and none ends soon.
    """
    with services.statistics_limit.hold():
        groups = services.database.run(_sums_by_currency(frozenset(filters)), **filters)

    def total(name: str) -> int:
        return sum(getattr(group, name) for group in groups)

    return {
        "total_payments": total("payments"),
        "total_amount_in_cents": total("amount"),
        "success_count": total("success_count"),
        "failure_count": total("failure_count"),
        "refund_count": total("refund_count"),
        "dispute_count": total("dispute_count"),
        # A checkout that Stripe has not taken yet has no currency, and no money to show.
        "currencies": [_money(group) for group in groups if group.currency is not None],
    }


# Of one organisation: its payments are found by an index of theirs.
_SUMMARY = Batch(
    select(
        Payment.currency,
        *(_SUMS[name].label(name) for name in ("payments", "received", "refunded", "disputed")),
        _sum(Payment.amount_lost_in_cents).label("lost"),
    )
    .where(
        Payment.org_id == bindparam("org_id"),
        or_(_app_id.is_(None), Payment.app_id == _app_id),
        or_(_before.is_(None), Payment.created_at < _before),
        Payment.status != PaymentStatus.REJECTED,
        Payment.currency.is_not(None),
    )
    .group_by(Payment.currency)
    .order_by(Payment.currency)
)


def summarize_organisation(
    org_id: str, *, app_id: str | None = None, before: datetime | None = None, services: Services
) -> dict[str, Any]:
    """What an organisation has paid in each currency, as `SummarySchema` describes it.

    :param before: only payments that were made before this time
    :raises Overloaded: when as many statistics are computed as may be at once, and none ends soon.
    """
    # PostgreSQL knows no NUL, so no organisation has one.
    if "\x00" in org_id:
        return {"org_id": org_id, "totals": []}
    with services.statistics_limit.hold():
        sums = services.database.run(_SUMMARY, org_id=org_id, app_id=app_id, before=before)
    return {"org_id": org_id, "totals": [{**_money(each), "lost_in_cents": each.lost} for each in sums]}


def _money(sums: Any) -> dict[str, Any]:
    """Sums in one currency, as `CurrencyStatsSchema` describes them."""
    return {
        "currency": sums.currency,
        "payments": sums.payments,
        "gross_in_cents": sums.received,
        "refunded_in_cents": sums.refunded,
        "disputed_in_cents": sums.disputed,
        "net_in_cents": sums.received - sums.refunded - sums.disputed,
    }


@cache
def _sums_by_currency(filters: frozenset[str]) -> Batch:
    return Batch(
        select(Payment.currency, *(expression.label(name) for name, expression in _SUMS.items()))
        .where(Payment.status != PaymentStatus.REJECTED, *(_FILTERS[name] for name in filters))
        .group_by(Payment.currency)
        .order_by(Payment.currency)
    )
