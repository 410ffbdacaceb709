"""Subscriptions: what they are by now."""

from marshmallow.fields import AwareDateTime, Boolean, Integer, List, Nested, String

from app.schemas.base import CamelCaseSchema
from app.schemas.status import CENTS, UTC_TIME


class _Time(AwareDateTime):
    """A time, or null where there is none."""

    def __init__(self, description: str = UTC_TIME["description"]) -> None:
        super().__init__(required=True, allow_none=True, metadata={"description": description})


class SubscribedItemSchema(CamelCaseSchema):
    """What is subscribed to, how many of it, and for how much each."""

    item_id = String(required=True, allow_none=True, metadata={"example": "si_3a1b2"})
    price_id = String(required=True, allow_none=True, metadata={"example": "price_sandbox_monthly"})
    quantity = Integer(required=True, allow_none=True, metadata={"example": 1})
    unit_amount_in_cents = Integer(required=True, allow_none=True, metadata=CENTS)
    currency = String(required=True, allow_none=True, metadata={"example": "usd"})
    interval = String(
        required=True,
        allow_none=True,
        metadata={"description": "`day`, `week`, `month` or `year`.", "example": "month"},
    )
    interval_count = Integer(required=True, allow_none=True, metadata={"example": 1})


class SubscriptionSchema(CamelCaseSchema):
    """A subscription that began with a checkout."""

    subscription_id = String(required=True, attribute="id", metadata={"example": "sub_3a1b2"})
    payment_id = String(required=True, metadata={"format": "uuid", "description": "The payment that it began with."})
    app_id = String(required=True, metadata={"example": "shop"})
    org_id = String(required=True, allow_none=True, metadata={"example": "org_1"})
    brand_id = String(required=True, allow_none=True, metadata={"example": "brand_1"})
    campaign_id = String(required=True, allow_none=True, metadata={"example": "campaign_1"})
    customer_id = String(required=True, allow_none=True, metadata={"example": "cus_3a1b2"})
    status = String(
        required=True,
        metadata={
            "description": "Stripe's: `incomplete`, `incomplete_expired`, `trialing`, `active`, `past_due`, `unpaid`, "
            "`paused` or `canceled`.",
            "example": "active",
        },
    )
    items = List(Nested(SubscribedItemSchema), required=True)
    current_period_start = _Time()
    current_period_end = _Time()
    cancel_at = _Time("When it is to end, where that is known.")
    cancel_at_period_end = Boolean(required=True)
    canceled_at = _Time("When it was said that it is to end, or ended.")
    ended_at = _Time()
    trial_end = _Time()
    created_at = AwareDateTime(required=True, metadata=UTC_TIME)


class FoundSubscriptionSchema(CamelCaseSchema):
    """One subscription."""

    subscription = Nested(SubscriptionSchema, required=True)


class SubscriptionPageSchema(CamelCaseSchema):
    """A page of subscriptions, newest first."""

    subscriptions = List(Nested(SubscriptionSchema), required=True)
    next_cursor = String(required=True, allow_none=True, metadata={"description": "Null on the last page."})
