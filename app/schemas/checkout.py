"""Creating a checkout: its body and its answer."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from marshmallow import RAISE, ValidationError, post_load, pre_load, validates_schema
from marshmallow.fields import Boolean, Integer, Nested, String
from marshmallow.validate import OneOf, Range

from app.models import CaptureMethod
from app.schemas.base import (
    MAX_ID_LENGTH,
    BoundedList,
    CreatedSchema,
    Flag,
    RequestSchema,
    Text,
    Time,
    Url,
    camel_case,
)
from app.schemas.catalog import MAX_PRODUCT_NAME_LENGTH, Cents, RecurringSchema
from app.schemas.payments import Currency, Email, TrackedSchema

MAX_DISCOUNTS = 20
MAX_QUANTITY = 999_999
DEFAULT_MAX_QUANTITY = 99
MAX_CUSTOM_TEXT_LENGTH = 1_200
MAX_REFERENCE_LENGTH = 200
MAX_TRIAL_DAYS = 730
# https://docs.stripe.com/api/checkout/sessions/create#create_checkout_session-locale
LOCALES = (
    "auto", "bg", "cs", "da", "de", "el", "en", "en-GB", "es", "es-419", "et", "fi", "fil", "fr", "fr-CA", "hi-IN",
    "hr", "hu", "id", "it", "ja", "ko", "lt", "lv", "ms", "mt", "nb", "nl", "pl", "pt", "pt-BR", "ro", "ru", "sk", "sl",
    "sv", "th", "tr", "vi", "zh", "zh-HK", "zh-TW",
)  # fmt: skip


class PriceDataSchema(RequestSchema):
    """A price for this checkout alone, and the name of what it is for."""

    currency = Currency(required=True)
    unit_amount_in_cents = Cents(required=True)
    product_name = Text(
        required=True,
        min_length=1,
        max_length=MAX_PRODUCT_NAME_LENGTH,
        metadata={"description": "What customers see.", "example": "T-shirt"},
    )
    recurring = Nested(RecurringSchema, metadata={"description": "With mode subscription: how often it is paid."})


class AdjustableQuantitySchema(RequestSchema):
    """Between which quantities the customer may choose on the page."""

    min = Integer(strict=True, validate=Range(min=0, max=MAX_QUANTITY), metadata={"default": 0})
    max = Integer(strict=True, validate=Range(min=1, max=MAX_QUANTITY), metadata={"default": DEFAULT_MAX_QUANTITY})

    @validates_schema
    def _require_order(self, data: dict[str, Any], **_: Any) -> None:
        if data.get("min", 0) > data.get("max", DEFAULT_MAX_QUANTITY):
            raise ValidationError("Must not be above max.", "min")


class LineItemSchema(RequestSchema):
    """What is bought, at a price of the app's or at one that is given, and how many."""

    price_id = Text(
        min_length=1,
        max_length=MAX_ID_LENGTH,
        metadata={"description": "A Stripe price of the app. Either this or priceData.", "example": "price_sandbox"},
    )
    price_data = Nested(PriceDataSchema)
    quantity = Integer(required=True, strict=True, validate=Range(min=1, max=MAX_QUANTITY), metadata={"example": 1})
    adjustable_quantity = Nested(AdjustableQuantitySchema)

    @validates_schema
    def _require_one_price(self, data: dict[str, Any], **_: Any) -> None:
        if ("price_id" in data) == ("price_data" in data):
            raise ValidationError("Exactly one of priceId and priceData must be given.")


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


class CustomTextSchema(RequestSchema):
    """What the page says beside its button, and after it."""

    submit = Text(max_length=MAX_CUSTOM_TEXT_LENGTH)
    after_submit = Text(max_length=MAX_CUSTOM_TEXT_LENGTH)


class CheckoutCreateSchema(TrackedSchema):
    """A checkout to create."""

    document: ClassVar = {
        "example": {
            "appId": "shop",
            "orgId": "org_1",
            "lineItems": [{"priceId": "price_sandbox", "quantity": 1}],
            "successUrl": "http://localhost:3000/ok?session={CHECKOUT_SESSION_ID}",
            "cancelUrl": "http://localhost:3000/cart",
        },
    }

    line_items = BoundedList(Nested(LineItemSchema), required=True, min_items=1, max_items=100)
    ui_mode = String(
        validate=OneOf(["hosted", "embedded"]),
        metadata={
            "default": "hosted",
            "description": "A page of Stripe's, or one that the app shows inside of its own by the clientSecret.",
        },
    )
    success_url = Url(
        metadata={
            "description": "Where Stripe sends the customer after paying; `{CHECKOUT_SESSION_ID}` is filled in. Needed "
            "for a hosted page, and only for that.",
            "example": "http://localhost:3000/ok?session={CHECKOUT_SESSION_ID}",
        }
    )
    cancel_url = Url(
        metadata={
            "description": "Where the customer goes to turn back. Needed for a hosted page, and only for that.",
            "example": "http://localhost:3000/cart",
        }
    )
    return_url = Url(
        metadata={
            "description": "Where the customer comes to from an embedded page; `{CHECKOUT_SESSION_ID}` is filled in. "
            "Needed for that, unless redirectOnCompletion is `never`.",
            "example": "http://localhost:3000/ok?session={CHECKOUT_SESSION_ID}",
        }
    )
    redirect_on_completion = String(
        validate=OneOf(["always", "if_required", "never"]),
        metadata={"default": "always", "description": "Whether the customer leaves an embedded page."},
    )
    mode = String(validate=OneOf(["payment", "subscription"]), metadata={"default": "payment"})
    customer_email = Email(
        metadata={"description": "Prefills the page; not used when a customer is given.", "example": "a@b.example"}
    )
    customer_creation = String(
        validate=OneOf(["always"]),
        metadata={"description": "Has Stripe make a customer. With mode payment, and without a customer."},
    )
    discounts = BoundedList(Nested(DiscountSchema), max_items=MAX_DISCOUNTS)
    allow_promotion_codes = Flag(
        metadata={"default": False, "description": "Whether the page takes promotion codes; not with discounts."}
    )
    automatic_tax = Flag(metadata={"default": False, "description": "Whether Stripe adds the taxes."})
    invoice_creation = Flag(
        metadata={"default": False, "description": "Whether the payment leaves an invoice. With mode payment."}
    )
    trial_days = Integer(
        strict=True,
        validate=Range(min=1, max=MAX_TRIAL_DAYS),
        metadata={"description": "With mode subscription: for how long nothing is paid."},
    )
    expires_at = Time(
        metadata={
            "description": "When the page closes, 30 minutes to 24 hours ahead; the latter where it is left out. "
            "ISO 8601; without an offset, in UTC."
        }
    )
    locale = String(
        validate=OneOf(LOCALES),
        metadata={"default": "auto", "description": "The page's language; `auto` asks the browser."},
    )
    custom_text = Nested(CustomTextSchema)
    client_reference_id = Text(
        max_length=MAX_REFERENCE_LENGTH,
        metadata={"description": "Kept at Stripe with the session, such as a cart's id."},
    )

    @validates_schema
    def _check_together(self, data: dict[str, Any], **_: Any) -> None:
        if broken := dict((*broken_rules_of_page(data), *_broken_rules_of_mode(data))):
            raise ValidationError({name: [sentence] for name, sentence in broken.items()})

    @post_load
    def _drop_what_is_empty(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {key: value for key, value in data.items() if key not in ("discounts", "custom_text") or value}

    @post_load
    def _count_seconds(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        """A request is stored as JSON, and Stripe's times are whole seconds."""
        return {**data, "expires_at": int(data["expires_at"].timestamp())} if "expires_at" in data else data


def broken_rules_of_page(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Which fields don't go with the kind of page: each by its name on the wire, with a sentence."""
    is_embedded = data.get("ui_mode") == "embedded"
    returns = is_embedded and data.get("redirect_on_completion") != "never"
    for name, is_needed in {
        "success_url": not is_embedded,
        "cancel_url": not is_embedded,
        "return_url": returns,
    }.items():
        if is_needed and name not in data:
            yield camel_case(name), "Missing data for required field."
        elif name in data and not is_needed:
            yield camel_case(name), "Is for another kind of page: see uiMode and redirectOnCompletion."
    if "redirect_on_completion" in data and not is_embedded:
        yield "redirectOnCompletion", "Is for uiMode embedded."


def _broken_rules_of_mode(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Which fields don't go with the mode, or with each other."""
    is_subscription = data.get("mode") == "subscription"
    if is_subscription and data.get("capture_method") == CaptureMethod.MANUAL:
        yield "captureMethod", "Is for mode payment: a subscription's money can't be held."
    if is_subscription and data.get("invoice_creation"):
        yield "invoiceCreation", "Is for mode payment: a subscription has invoices anyway."
    if "trial_days" in data and not is_subscription:
        yield "trialDays", "Is for mode subscription."
    if "customer_creation" in data and (is_subscription or data.get("customer_id")):
        yield "customerCreation", "Is for mode payment without a customer."
    if data.get("allow_promotion_codes") and data.get("discounts"):
        yield "allowPromotionCodes", "Can't go with discounts."


class CheckoutCreatedSchema(CreatedSchema):
    """A checkout that was created."""

    success = Boolean(required=True)
    payment_id = String(required=True, metadata={"format": "uuid"})
    session_id = String(required=True, metadata={"example": "cs_test_a1b2"})
    url = String(
        required=True,
        allow_none=True,
        metadata={
            "description": "Stripe's page, to send the customer to; null for an embedded one.",
            "example": "https://checkout.stripe.com/c/pay/cs_test_a1b2",
        },
    )
    client_secret = String(
        metadata={
            "description": "For an embedded page, and for the customer's browser only; the service doesn't keep it.",
            "example": "cs_test_a1b2_secret_c3d4",
        }
    )
