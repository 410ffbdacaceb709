"""Statistics over payments, computed in the database from what each payment has become."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import groupby
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    Text,
    any_,
    bindparam,
    cast,
    func,
    literal_column,
    or_,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP
from sqlalchemy.orm import InstrumentedAttribute

from app.database import Batch
from app.models import MoneyMovement, MovementKind, Payment, PaymentStatus
from app.services import Services


def _sum(column: ColumnElement[Any] | InstrumentedAttribute[Any]) -> ColumnElement[int]:
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
_since: Any = bindparam("since", type_=TIMESTAMP(timezone=True))
_until: Any = bindparam("until", type_=TIMESTAMP(timezone=True))

_FILTERS: Mapping[str, ColumnElement[bool]] = {
    "run_ids": or_(
        Payment.run_id == any_(bindparam("run_ids", type_=ARRAY(Text))),
        Payment.parent_run_id == any_(bindparam("run_ids", type_=ARRAY(Text))),
    ),
    "org_id": Payment.org_id == bindparam("org_id"),
    "brand_id": Payment.brand_id == bindparam("brand_id"),
    "app_id": Payment.app_id == bindparam("app_id"),
    "campaign_id": Payment.campaign_id == bindparam("campaign_id"),
    "since": Payment.created_at >= _since,
    "until": Payment.created_at < _until,
}
# What a movement tells by itself; for other filters its payment is looked at.
_FILTERS_OF_MOVEMENTS: Mapping[str, ColumnElement[bool]] = {
    "org_id": MoneyMovement.org_id == bindparam("org_id"),
    "app_id": MoneyMovement.app_id == bindparam("app_id"),
    "since": MoneyMovement.occurred_at >= _since,
    "until": MoneyMovement.occurred_at < _until,
}


def compute_statistics(asked: Mapping[str, Any], *, services: Services) -> dict[str, Any]:
    """Counts and sums over the payments that match every filter given, as `StatsSchema` describes them.

    :param asked: the filters, any of `run_ids`, `org_id`, `brand_id`, `app_id`, `campaign_id`, `since`, `until`; and in
        `group_by` the `day`, `week` or `month` by which money is to be summed besides
    :raises Overloaded: when as many are computed as may be at once, and none ends soon.
    """
    filters = {name: value for name, value in asked.items() if name != "group_by"}
    given, is_grouped = frozenset(filters), "group_by" in asked
    with services.statistics_limit.hold():
        groups = services.database.run(_sums_by_currency(given), **filters)
        in_periods = services.database.run(_sums_by_period(given), **asked) if is_grouped else []

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
        **({"periods": _by_start(in_periods)} if is_grouped else {}),
    }


def _by_start(sums: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {"start": start, "currencies": list(map(_money, in_period))}
        for start, in_period in groupby(sums, key=lambda each: each.start)
    ]


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


# Of movements: what came in, went back, or is held or lost by disputes.
_SUMS_OF_KINDS: Mapping[str, ColumnElement[Any]] = {
    str(kind): func.sum(MoneyMovement.amount_in_cents).filter(MoneyMovement.kind == str(kind)) for kind in MovementKind
}
_NOTHING: ColumnElement[Any] = literal_column("0")


@cache
def _sums_by_period(filters: frozenset[str]) -> Batch:
    """Of each period, the payments that were made in it and the money that moved in it, whichever payment's it was."""
    made = _by_period(
        Payment.created_at, Payment.currency, {"payments": func.count(), **dict.fromkeys(_SUMS_OF_KINDS, _NOTHING)}
    ).where(Payment.status != PaymentStatus.REJECTED, *(_FILTERS[name] for name in filters))
    moved = _by_period(
        MoneyMovement.occurred_at, MoneyMovement.currency, {"payments": _NOTHING, **_SUMS_OF_KINDS}
    ).where(*_conditions_of_movements(filters))
    both = union_all(made, moved).subquery().c
    return Batch(
        select(both.start, both.currency, *(_sum(both[name]).label(name) for name in ("payments", *_SUMS_OF_KINDS)))
        .where(both.currency.is_not(None))
        .group_by(both.start, both.currency)
        .order_by(both.start, both.currency)
    )


def _by_period(
    time: InstrumentedAttribute[Any], currency: InstrumentedAttribute[Any], sums: Mapping[str, ColumnElement[Any]]
) -> Select[Any]:
    start = func.date_trunc(bindparam("group_by", type_=Text), time, literal_column("'UTC'"))
    columns: Any = (start.label("start"), currency, *(expression.label(name) for name, expression in sums.items()))
    return select(*columns).group_by(start, currency)


def _conditions_of_movements(filters: frozenset[str]) -> Iterator[ColumnElement[bool]]:
    yield from (_FILTERS_OF_MOVEMENTS[name] for name in filters & _FILTERS_OF_MOVEMENTS.keys())
    if others := filters - _FILTERS_OF_MOVEMENTS.keys():
        yield MoneyMovement.payment_id.in_(select(Payment.id).where(*(_FILTERS[name] for name in others)))
