"""Subscriptions: what they are by now, and what can be done with them."""

from typing import Any, ClassVar

from marshmallow import ValidationError, validates_schema
from marshmallow.fields import AwareDateTime, Boolean, Integer, List, Nested, String
from marshmallow.validate import OneOf, Range

from app.schemas.base import MAX_ID_LENGTH, AppId, CamelCaseSchema, CreatedSchema, RequestSchema, Text
from app.schemas.checkout import MAX_QUANTITY
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


class SubscriptionCancelSchema(RequestSchema):
    """A subscription to end."""

    document: ClassVar = {"example": {"appId": "shop", "atPeriodEnd": True}}

    app_id = AppId(required=True)
    at_period_end = Boolean(
        truthy={True},
        falsy={False},
        metadata={"description": "`false` ends it now; otherwise, it ends with what is paid."},
    )


class SubscriptionResumeSchema(RequestSchema):
    """A subscription to go on with: one that is to end, or is paused."""

    document: ClassVar = {"example": {"appId": "shop"}}

    app_id = AppId(required=True)


def _given(name: str, described: dict[str, Any]) -> dict[str, Any]:
    return {"required": [name], "properties": {name: described}}


class SubscriptionChangeSchema(RequestSchema):
    """Another price or quantity; one of both at least."""

    document: ClassVar = {
        # What the validator below checks.
        "anyOf": [_given("priceId", {"type": "string", "minLength": 1}), _given("quantity", {"type": "integer"})],
        "example": {"appId": "shop", "priceId": "price_sandbox_monthly", "quantity": 2},
    }

    app_id = AppId(required=True)
    price_id = Text(min_length=1, max_length=MAX_ID_LENGTH)
    quantity = Integer(strict=True, validate=Range(min=1, max=MAX_QUANTITY))
    item_id = Text(
        min_length=1, max_length=MAX_ID_LENGTH, metadata={"description": "Which item, where there are several."}
    )
    proration = String(
        validate=OneOf(["create_prorations", "none", "always_invoice"]),
        metadata={
            "description": "What of the running period is due: the difference with the next invoice, where it is left "
            "out; nothing; or the difference at once, and where that is declined, nothing is changed."
        },
    )

    @validates_schema
    def _require_change(self, data: dict[str, Any], **_: Any) -> None:
        if not {"price_id", "quantity"} & data.keys():
            raise ValidationError("Is required, or a quantity.", "price_id")


class SubscriptionChangedSchema(CreatedSchema):
    """What Stripe answered: the subscription as it is now."""

    success = Boolean(required=True)
    subscription = Nested(SubscriptionSchema, required=True)
