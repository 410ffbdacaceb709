"""Asking what has become of payments."""

import uuid
from typing import Any

from sqlalchemy import Row, bindparam, select

from app.errors import NotFound
from app.models import Payment
from app.services import Services

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

_FIND = select(*_PAYMENT_COLUMNS).where(Payment.id == bindparam("payment_id"))


def find_payment(payment_id: str, *, services: Services) -> dict[str, Any]:
    """A payment and what happened to it, in the shape of `PaymentStatusSchema`.

    :raises NotFound: when there is no such payment.
    """
    try:
        key = uuid.UUID(payment_id)
    except ValueError:
        raise NotFound("Payment not found") from None
    with services.database.connect() as connection:
        row = connection.execute(_FIND, {"payment_id": key}).one_or_none()
    if row is None:
        raise NotFound("Payment not found")
    return {
        "payment": _payment(row),
        "events": {"successes": [], "failures": [], "refunds": [], "disputes": []},
    }


def _payment(row: Row[Any]) -> dict[str, Any]:
    payment = dict(row._mapping)
    tracking = {"state": payment.pop("tracking_state"), "error": payment.pop("tracking_error")}
    return {**payment, "tracking": tracking}
