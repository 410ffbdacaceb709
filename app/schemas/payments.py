"""Creating a payment: the bodies of the two routes and their answers."""

from typing import Any, ClassVar

from marshmallow import RAISE, ValidationError, post_load, pre_load, validates_schema
from marshmallow.fields import Boolean, Dict, Integer, Nested, String
from marshmallow.validate import OneOf, Range, Validator

from app.models import CaptureMethod
from app.schemas.base import (
    MAX_ID_LENGTH,
    NO_CONTROL,
    AppId,
    Bounded,
    BoundedList,
    CamelCaseSchema,
    CreatedSchema,
    RequestSchema,
    Text,
    Url,
    WholeMatch,
)

MAX_AMOUNT_IN_CENTS = 99_999_999
MAX_METADATA_KEYS = 46
MAX_DISCOUNTS = 20

# White space, and what some languages' `\s` counts as such and others' doesn't: the document is read by all of them.
_SPACE = r"\s\x00\x1c-\x1f\x85\ufeff"


class FewKeys(Validator):
    """An object has at most so many keys."""

    def __init__(self, max_keys: int) -> None:
        self.max_keys = max_keys

    def __call__(self, value: dict[str, Any]) -> dict[str, Any]:
        if len(value) > self.max_keys:
            raise ValidationError(f"Must have at most {self.max_keys} keys.")
        return value


class Metadata(Bounded, Dict):
    """Stripe's metadata less the four keys that are ours. https://docs.stripe.com/api/metadata"""

    sized = dict

    def __init__(self, *, max_keys: int = MAX_METADATA_KEYS, **kwargs: Any) -> None:
        super().__init__(
            length=FewKeys(max_keys),
            keys=Text(
                min_length=1,
                max_length=40,
                pattern=WholeMatch(r"^[^\[\]\x00]*$", error="Must not contain square brackets or a NUL character."),
            ),
            values=Text(max_length=500),
            metadata={
                "description": "Kept at Stripe with the payment. The keys `paymentId`, `appId`, `runId` and `orgId` "
                "are set by the service.",
                "maxProperties": MAX_METADATA_KEYS,
                "example": {"orderId": "1042"},
            },
            **kwargs,
        )


class Currency(Text):
    """An ISO 4217 code, in either case.

    :param default: what the service takes where the caller sends none, and the schema adds none
    """

    def __init__(self, *, default: str | None = None, **kwargs: Any) -> None:
        super().__init__(
            min_length=3,
            max_length=3,
            pattern=WholeMatch(r"^[A-Za-z]{3}$", error="Must be three letters."),
            metadata={
                "description": "ISO 4217, lower-cased by the service.",
                "example": "usd",
                **({} if default is None else {"default": default}),
            },
            **kwargs,
        )


class IdempotencyKeySchema(CamelCaseSchema):
    """The header that makes a create repeatable."""

    idempotency_key = Text(
        data_key="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=WholeMatch(r"^[\x21-\x7e]+$", error="Must be 1 to 255 visible ASCII characters."),
        metadata={
            # No example: the docs page would send it with everything that is tried out there.
            "description": "Repeats of a request with the same key and body give the first answer again and never pay "
            "twice. Scoped to the app; `order-1042`, say.",
        },
    )


class _TrackedSchema(RequestSchema):
    """Whom a payment is for, and which run it belongs to."""

    identity = ("org_id", "run_id", "brand_id", "campaign_id")

    app_id = AppId(required=True)
    org_id = Text(
        max_length=200,
        pattern=NO_CONTROL,
        metadata={"description": "The organisation; with it the payment gets a run of its own.", "example": "org_1"},
    )
    run_id = Text(
        max_length=200,
        pattern=NO_CONTROL,
        metadata={"description": "The caller's run: the parent of ours, or without an orgId the one that is charged."},
    )
    brand_id = Text(max_length=200, metadata={"description": "Handed on to runs-service and to the statistics."})
    campaign_id = Text(max_length=200, metadata={"description": "Handed on to runs-service and to the statistics."})
    customer_id = Text(max_length=MAX_ID_LENGTH, metadata={"description": "A Stripe customer of the app."})
    metadata = Metadata()
    capture_method = String(
        validate=OneOf([str(method) for method in CaptureMethod]),
        metadata={
            "default": "automatic",
            "description": "With `manual` the money is held until `/payments/{paymentId}/capture`, for some days.",
        },
    )


class LineItemSchema(RequestSchema):
    """What is bought, and how many."""

    price_id = Text(
        required=True,
        min_length=1,
        max_length=MAX_ID_LENGTH,
        metadata={"description": "A Stripe price of the app.", "example": "price_sandbox"},
    )
    quantity = Integer(required=True, strict=True, validate=Range(min=1, max=999_999), metadata={"example": 1})


class DiscountSchema(RequestSchema):
    """A coupon or a promotion code of the app. A discount that is dropped would charge the full price."""

    document: ClassVar = {"minProperties": 1, "maxProperties": 1}

    class Meta:
        unknown = RAISE

    takes_null = False

    coupon = Text(min_length=1, max_length=MAX_ID_LENGTH)
    promotion_code = Text(min_length=1, max_length=MAX_ID_LENGTH)

    @pre_load
    def _require_one(self, data: Any, **_: Any) -> Any:
        if isinstance(data, dict) and sum(value is not None for value in data.values()) != 1:
            raise ValidationError("Must have exactly one of coupon and promotionCode.")
        return data


class CheckoutCreateSchema(_TrackedSchema):
    """A checkout to create."""

    document: ClassVar = {
        "example": {
            "appId": "shop",
            "orgId": "org_1",
            "lineItems": [{"priceId": "price_sandbox", "quantity": 1}],
            "successUrl": "http://localhost:3000/ok?session={CHECKOUT_SESSION_ID}",
            "cancelUrl": "http://localhost:3000/cart",
        }
    }

    line_items = BoundedList(Nested(LineItemSchema), required=True, min_items=1, max_items=100)
    success_url = Url(
        required=True,
        metadata={
            "description": "Where Stripe sends the customer after paying; `{CHECKOUT_SESSION_ID}` is filled in.",
            "example": "http://localhost:3000/ok?session={CHECKOUT_SESSION_ID}",
        },
    )
    cancel_url = Url(
        required=True,
        metadata={"description": "Where the customer goes to turn back.", "example": "http://localhost:3000/cart"},
    )
    mode = String(validate=OneOf(["payment", "subscription"]), metadata={"default": "payment"})
    customer_email = Text(
        max_length=512,
        pattern=WholeMatch(
            rf"^([^@{_SPACE}]+@[^@{_SPACE}.]+(\.[^@{_SPACE}.]+)+)?$", error="Must be an e-mail address."
        ),
        metadata={"description": "Prefills the page; not used when a customer is given.", "example": "a@b.example"},
    )
    discounts = BoundedList(Nested(DiscountSchema), max_items=MAX_DISCOUNTS)

    @validates_schema
    def _refuse_held_subscription(self, data: dict[str, Any], **_: Any) -> None:
        if data.get("mode") == "subscription" and data.get("capture_method") == CaptureMethod.MANUAL:
            raise ValidationError("Is for mode payment: a subscription's money can't be held.", "capture_method")

    @post_load
    def _drop_empty_list(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {key: value for key, value in data.items() if key != "discounts" or value}


class PaymentIntentCreateSchema(_TrackedSchema):
    """A payment intent to create."""

    document: ClassVar = {
        "example": {"appId": "shop", "orgId": "org_1", "amountInCents": 2000, "currency": "usd"},
    }

    amount_in_cents = Integer(
        required=True,
        strict=True,
        validate=Range(min=1, max=MAX_AMOUNT_IN_CENTS),
        metadata={"description": "In the currency's smallest unit.", "example": 2000},
    )
    currency = Currency(default="usd")
    description = Text(max_length=1_000)

    @post_load
    def _lower_currency(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {**data, "currency": data["currency"].lower()} if "currency" in data else data


class CheckoutCreatedSchema(CreatedSchema):
    """A checkout that was created."""

    success = Boolean(required=True)
    payment_id = String(required=True, metadata={"format": "uuid"})
    session_id = String(required=True, metadata={"example": "cs_test_a1b2"})
    url = String(
        required=True,
        allow_none=True,
        metadata={
            "description": "Stripe's page, to send the customer to.",
            "example": "https://checkout.stripe.com/c/pay/cs_test_a1b2",
        },
    )


class PaymentIntentCreatedSchema(CreatedSchema):
    """A payment intent that was created."""

    success = Boolean(required=True)
    payment_id = String(required=True, metadata={"format": "uuid"})
    payment_intent_id = String(required=True, metadata={"example": "pi_3a1b2"})
    client_secret = String(
        required=True,
        metadata={
            "description": "For the customer's browser only; the service doesn't keep it.",
            "example": "pi_3a1b2_secret_c3d4",
        },
    )
    status = String(required=True, metadata={"example": "requires_payment_method"})
