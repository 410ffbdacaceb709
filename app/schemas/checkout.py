"""Creating a checkout: its body and its answer."""

from typing import Any, ClassVar

from marshmallow import RAISE, ValidationError, post_load, pre_load, validates_schema
from marshmallow.fields import Boolean, Integer, Nested, String
from marshmallow.validate import OneOf, Range

from app.models import CaptureMethod
from app.schemas.base import MAX_ID_LENGTH, BoundedList, CreatedSchema, RequestSchema, Text, Url
from app.schemas.payments import Email, TrackedSchema

MAX_DISCOUNTS = 20


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


class CheckoutCreateSchema(TrackedSchema):
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
    customer_email = Email(
        metadata={"description": "Prefills the page; not used when a customer is given.", "example": "a@b.example"}
    )
    discounts = BoundedList(Nested(DiscountSchema), max_items=MAX_DISCOUNTS)

    @validates_schema
    def _refuse_held_subscription(self, data: dict[str, Any], **_: Any) -> None:
        if data.get("mode") == "subscription" and data.get("capture_method") == CaptureMethod.MANUAL:
            raise ValidationError("Is for mode payment: a subscription's money can't be held.", "capture_method")

    @post_load
    def _drop_empty_list(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {key: value for key, value in data.items() if key != "discounts" or value}


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
