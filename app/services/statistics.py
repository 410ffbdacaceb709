"""Statistics over payments, computed in the database from what each payment has become."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, bindparam, func, or_, select

from app.models import Payment, PaymentStatus
from app.services import Services

_SUMS: Mapping[str, ColumnElement[Any]] = {
    "payments": func.count(),
    "amount": func.sum(Payment.amount_in_cents),
    "success_count": func.sum(Payment.success_count),
    "failure_count": func.sum(Payment.failure_count),
    "refund_count": func.sum(Payment.refund_count),
    "dispute_count": func.sum(Payment.dispute_count),
    "received": func.sum(Payment.amount_received_in_cents),
    "refunded": func.sum(Payment.amount_refunded_in_cents),
    "disputed": func.sum(Payment.amount_disputed_in_cents),
}
_SUMS_BY_CURRENCY = (
    select(Payment.currency, *(expression.label(name) for name, expression in _SUMS.items()))
    .where(Payment.status != PaymentStatus.REJECTED)
    .group_by(Payment.currency)
    .order_by(Payment.currency)
)
_FILTERS: Mapping[str, ColumnElement[bool]] = {
    "run_ids": or_(
        Payment.run_id.in_(bindparam("run_ids", expanding=True)),
        Payment.parent_run_id.in_(bindparam("run_ids", expanding=True)),
    ),
    "org_id": Payment.org_id == bindparam("org_id"),
    "brand_id": Payment.brand_id == bindparam("brand_id"),
    "app_id": Payment.app_id == bindparam("app_id"),
    "campaign_id": Payment.campaign_id == bindparam("campaign_id"),
}


def compute_statistics(filters: Mapping[str, Any], *, services: Services) -> dict[str, Any]:
    """Counts and sums over the payments that match every filter given, in the shape of `StatsSchema`.

    :param filters: any of `run_ids`, `org_id`, `brand_id`, `app_id`, `campaign_id`
    """
    statement = _SUMS_BY_CURRENCY.where(*(_FILTERS[name] for name in filters))
    with services.database.connect() as connection:
        groups = connection.execute(statement, dict(filters)).all()

    def total(name: str) -> int:
        return sum(int(getattr(group, name) or 0) for group in groups)

    return {
        "total_payments": total("payments"),
        "total_amount_in_cents": total("amount"),
        "success_count": total("success_count"),
        "failure_count": total("failure_count"),
        "refund_count": total("refund_count"),
        "dispute_count": total("dispute_count"),
        # A checkout that Stripe has not taken yet has no currency, and no money to show.
        "currencies": [
            {
                "currency": group.currency,
                "payments": group.payments,
                "gross_in_cents": int(group.received),
                "refunded_in_cents": int(group.refunded),
                "disputed_in_cents": int(group.disputed),
                "net_in_cents": int(group.received - group.refunded - group.disputed),
            }
            for group in groups
            if group.currency is not None
        ],
    }
