"""The catalog: the bodies and the answers of its routes."""

import time
from datetime import datetime
from typing import Any, ClassVar

from marshmallow import ValidationError, validates_schema
from marshmallow.fields import Boolean, Float, Integer, List, Nested, String
from marshmallow.validate import OneOf, Range

from app.schemas.base import MAX_ID_LENGTH, AppId, CamelCaseSchema, CreatedSchema, RequestSchema, Text, Time, WholeMatch
from app.schemas.payments import MAX_AMOUNT_IN_CENTS, Currency, Metadata

# What Stripe's own description of its API says. https://github.com/stripe/openapi
MAX_METADATA_KEYS = 50
MAX_PRODUCT_NAME_LENGTH = 5_000
MAX_DESCRIPTION_LENGTH = 40_000
MAX_COUPON_NAME_LENGTH = 40
# Three years, in the shortest of the intervals. https://docs.stripe.com/api/prices/create
MAX_INTERVAL_COUNT = 1_095
MAX_MONTHS = 1_200
MAX_REDEMPTIONS = 2**31 - 1


class CatalogMetadata(Metadata):
    """Stripe's metadata, of which no key is ours here."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_keys=MAX_METADATA_KEYS, **kwargs)
        self.metadata = {
            "description": "Kept at Stripe with the object.",
            "maxProperties": MAX_METADATA_KEYS,
            "example": {"sku": "1042"},
        }


class NewId(Text):
    """An id of the caller's choice. It becomes one segment of a path, so a slash or only dots are refused."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            max_length=MAX_ID_LENGTH,
            pattern=WholeMatch(
                r"^(?!\.+$)[^/\x00]*$", error="Must not contain a slash or a NUL, and must not be made of dots only."
            ),
            **kwargs,
        )


class Cents(Integer):
    """An amount in the currency's smallest unit."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            strict=True,
            validate=Range(min=1, max=MAX_AMOUNT_IN_CENTS),
            metadata={"description": "In the currency's smallest unit.", "example": 2000},
            **kwargs,
        )


class Percentage(Float):
    """A number, and no string that looks like one."""

    def _validated(self, value: Any) -> float:
        if isinstance(value, str):
            raise self.make_error("invalid", input=value)
        return super()._validated(value)


class FutureTime(Time):
    """A time that is still to come."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(validate=_require_future, **kwargs)


def _require_future(moment: datetime) -> None:
    # Stripe's times are whole seconds.
    if int(moment.timestamp()) <= time.time():
        raise ValidationError("Must be in the future.")


class _CreateSchema(RequestSchema):
    """What every new thing of the catalog has."""

    app_id = AppId(required=True)
    metadata = CatalogMetadata()


class ProductCreateSchema(_CreateSchema):
    """A product to create."""

    document: ClassVar = {"example": {"appId": "shop", "name": "T-shirt"}}

    id = NewId(metadata={"description": "If there is one already, it is shown as it is. Stripe chooses one otherwise."})
    name = Text(
        required=True,
        min_length=1,
        max_length=MAX_PRODUCT_NAME_LENGTH,
        metadata={"description": "What customers see.", "example": "T-shirt"},
    )
    description = Text(max_length=MAX_DESCRIPTION_LENGTH, metadata={"description": "What customers see as well."})


class RecurringSchema(RequestSchema):
    """How often a subscription pays."""

    interval = String(required=True, validate=OneOf(["day", "week", "month", "year"]), metadata={"example": "month"})
    interval_count = Integer(
        strict=True,
        load_default=1,
        validate=Range(min=1, max=MAX_INTERVAL_COUNT),
        metadata={"description": "Every so many intervals; three years are Stripe's limit.", "example": 1},
    )


class PriceCreateSchema(_CreateSchema):
    """A price to create."""

    document: ClassVar = {
        "example": {"appId": "shop", "productId": "prod_sandbox", "unitAmountInCents": 2000, "currency": "usd"},
    }

    product_id = Text(
        required=True,
        min_length=1,
        max_length=MAX_ID_LENGTH,
        metadata={"description": "A Stripe product of the app.", "example": "prod_sandbox"},
    )
    unit_amount_in_cents = Cents(required=True)
    currency = Currency(load_default="usd")
    recurring = Nested(RecurringSchema, metadata={"description": "For subscriptions; without it, one pays once."})


_NULL = {"type": "null"}
_PERCENTAGE = {"required": ["percentOff"], "properties": {"percentOff": {"type": "number"}, "amountOffInCents": _NULL}}
_AMOUNT = {
    "required": ["amountOffInCents", "currency"],
    "properties": {
        "amountOffInCents": {"type": "integer"},
        "currency": {"type": "string"},
        "percentOff": _NULL,
    },
}
_REPEATING = {
    "required": ["duration", "durationInMonths"],
    "properties": {"duration": {"enum": ["repeating"]}, "durationInMonths": {"type": "integer"}},
}
_NOT_REPEATING = {"properties": {"duration": {"enum": ["once", "forever", None]}, "durationInMonths": _NULL}}


class CouponCreateSchema(_CreateSchema):
    """A coupon to create: either a percentage or an amount off."""

    document: ClassVar = {
        # What the two validators below check; of each two, no request is both.
        "allOf": [{"anyOf": [_PERCENTAGE, _AMOUNT]}, {"anyOf": [_REPEATING, _NOT_REPEATING]}],
        "example": {"appId": "shop", "percentOff": 12.5},
    }

    id = NewId(metadata={"description": "If there is one already, it is shown as it is. Stripe chooses one otherwise."})
    name = Text(max_length=MAX_COUPON_NAME_LENGTH, metadata={"description": "What customers see."})
    percent_off = Percentage(
        validate=Range(min=1, max=100),
        metadata={"description": "May be a fraction. Either this or amountOffInCents.", "example": 12.5},
    )
    amount_off_in_cents = Cents()
    currency = Currency()
    duration = String(
        validate=OneOf(["once", "repeating", "forever"]),
        load_default="once",
        metadata={"description": "For how much of a subscription."},
    )
    duration_in_months = Integer(
        strict=True,
        validate=Range(min=1, max=MAX_MONTHS),
        metadata={"description": "With the duration `repeating`, and only with it."},
    )
    max_redemptions = Integer(
        strict=True,
        validate=Range(min=1, max=MAX_REDEMPTIONS),
        metadata={"description": "How often it can be used, by all customers together."},
    )
    redeem_by = FutureTime(
        metadata={"description": "ISO 8601; without an offset, in UTC.", "example": "2030-12-31T23:59:59Z"}
    )

    @validates_schema
    def _require_one_discount(self, data: dict[str, Any], **_: Any) -> None:
        if ("percent_off" in data) == ("amount_off_in_cents" in data):
            raise ValidationError("Exactly one of percentOff and amountOffInCents must be given.")
        if "amount_off_in_cents" in data and "currency" not in data:
            raise ValidationError("Is needed with amountOffInCents.", "currency")

    @validates_schema
    def _require_months_of_repeating(self, data: dict[str, Any], **_: Any) -> None:
        if ("duration_in_months" in data) != (data["duration"] == "repeating"):
            raise ValidationError("Is needed with the duration repeating, and only with it.", "durationInMonths")


class _AnswerSchema(CamelCaseSchema):
    success = Boolean(required=True, dump_default=True)


class ProductSchema(_AnswerSchema):
    """A product."""

    product_id = String(required=True, attribute="id", metadata={"example": "prod_sandbox"})
    name = String(required=True, metadata={"example": "T-shirt"})
    description = String(required=True, allow_none=True)


class ProductCreatedSchema(ProductSchema, CreatedSchema):
    """A product that was created, or was there before."""


class _PriceFieldsSchema(CamelCaseSchema):
    price_id = String(required=True, attribute="id", metadata={"example": "price_sandbox"})
    product_id = String(required=True, metadata={"example": "prod_sandbox"})
    unit_amount_in_cents = Integer(
        required=True,
        allow_none=True,
        attribute="unit_amount",
        metadata={"description": "In the currency's smallest unit; null when the price has tiers.", "example": 2000},
    )
    currency = String(required=True, metadata={"example": "usd"})


class ListedPriceSchema(_PriceFieldsSchema):
    """A price in a list."""

    active = Boolean(required=True, metadata={"description": "Whether it can be used for new payments."})


class PriceCreatedSchema(_AnswerSchema, _PriceFieldsSchema, CreatedSchema):
    """A price that was created."""


class PriceSchema(_AnswerSchema, ListedPriceSchema):
    """A price."""


class PriceListSchema(_AnswerSchema):
    """The active prices of a product, newest first."""

    prices = List(Nested(ListedPriceSchema), required=True)


class _CouponFieldsSchema(_AnswerSchema):
    coupon_id = String(required=True, attribute="id", metadata={"example": "SUMMER"})
    name = String(required=True, allow_none=True)
    percent_off = Float(required=True, allow_none=True, metadata={"example": 12.5})
    amount_off_in_cents = Integer(
        required=True,
        allow_none=True,
        attribute="amount_off",
        metadata={"description": "In the currency's smallest unit."},
    )
    currency = String(required=True, allow_none=True, metadata={"description": "Of the amount; null otherwise."})
    duration = String(required=True, metadata={"example": "once"})


class CouponCreatedSchema(_CouponFieldsSchema, CreatedSchema):
    """A coupon that was created, or was there before."""


class CouponSchema(_CouponFieldsSchema):
    """A coupon."""

    valid = Boolean(required=True, metadata={"description": "Whether it can still be redeemed."})
