"""Creating a payment: what both routes take, and the body and the answer of a payment intent."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from marshmallow import ValidationError, validates_schema
from marshmallow.fields import Boolean, Dict, Integer, String
from marshmallow.validate import OneOf, Range, Validator

from app.models import CaptureMethod
from app.schemas.base import (
    MAX_ID_LENGTH,
    NO_CONTROL,
    AppId,
    Bounded,
    CamelCaseSchema,
    CreatedSchema,
    Flag,
    RequestSchema,
    Text,
    WholeMatch,
)

MAX_AMOUNT_IN_CENTS = 99_999_999
MAX_METADATA_KEYS = 46

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

    def deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        # Once it is known to be three letters: there are others whose lower case is one of them.
        code = super().deserialize(value, *args, **kwargs)
        return code.lower() if isinstance(code, str) else code


class Email(Text):
    """Something@something.something, without white space."""

    def __init__(self, **kwargs: Any) -> None:
        pattern = rf"^([^@{_SPACE}]+@[^@{_SPACE}.]+(\.[^@{_SPACE}.]+)+)?$"
        super().__init__(max_length=512, pattern=WholeMatch(pattern, error="Must be an e-mail address."), **kwargs)


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


class TrackedSchema(RequestSchema):
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
    customer_id = Text(
        max_length=MAX_ID_LENGTH,
        metadata={"description": "A Stripe customer of the app; the organisation's own where it is left out."},
    )
    save_for_later = Flag(
        metadata={
            "default": False,
            "description": "Saves what the customer pays with for charges without him (offSession). Needs an orgId, "
            "whose customer is made where there is none.",
        }
    )
    metadata = Metadata()
    capture_method = String(
        validate=OneOf([str(method) for method in CaptureMethod]),
        metadata={
            "default": "automatic",
            "description": "With `manual` the money is held until `/payments/{paymentId}/capture`, for some days.",
        },
    )

    @validates_schema
    def _require_organisation(self, data: dict[str, Any], **_: Any) -> None:
        if not data.get("org_id") and (data.get("save_for_later") or data.get("off_session")):
            raise ValidationError("Is needed with saveForLater and offSession.", "orgId")


class PaymentIntentCreateSchema(TrackedSchema):
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
    receipt_email = Email(metadata={"description": "Stripe sends a receipt there.", "example": "a@b.example"})
    statement_descriptor_suffix = Text(
        min_length=1,
        max_length=22,
        pattern=WholeMatch(r"""^[^<>\\'"*\x00]*$""", error="Must not contain any of <>\\'\"* or a NUL character."),
        metadata={"description": "What the customer's card statement says after the account's own words."},
    )
    off_session = Flag(
        metadata={
            "default": False,
            "description": "Charges a saved card or Link at once, while the customer isn't there. Needs an orgId, an "
            "Idempotency-Key, and of an app's key the scope `money`.",
        }
    )
    payment_method_id = Text(
        max_length=MAX_ID_LENGTH,
        metadata={
            "description": "With offSession: what is charged. Left out: the customer's default where it is a card or "
            "Link, else the newest card, else the newest Link.",
            "example": "pm_1a2b3",
        },
    )
    invoice = Flag(
        metadata={
            "default": False,
            "description": "With offSession: whether the charge leaves a paid invoice. Needs a description.",
        }
    )

    @validates_schema
    def _check_together(self, data: dict[str, Any], **_: Any) -> None:
        if broken := dict(_broken_rules_of_charge(data)):
            raise ValidationError({name: [sentence] for name, sentence in broken.items()})


def _broken_rules_of_charge(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Which fields don't go with each other: each by its name on the wire, with a sentence."""
    is_charge, has_invoice = data.get("off_session"), data.get("invoice")
    if is_charge and data.get("save_for_later"):
        yield "saveForLater", "Can't go with offSession: what is charged is saved already."
    if not is_charge and data.get("payment_method_id"):
        yield "paymentMethodId", "Is for offSession."
    if not is_charge and has_invoice:
        yield "invoice", "Is for offSession."
    if has_invoice and not data.get("description"):
        yield "description", "Is needed with invoice."
    if has_invoice and data.get("capture_method") == CaptureMethod.MANUAL:
        yield "captureMethod", "Can't be manual with invoice: an invoice is paid at once."


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
    status = String(
        required=True,
        metadata={
            "description": "With offSession: `succeeded`, `processing`, or with captureMethod `manual` "
            "`requires_capture`.",
            "example": "requires_payment_method",
        },
    )
    invoice_id = String(metadata={"description": "With invoice.", "example": "in_1a2b3"})
    hosted_invoice_url = String(
        allow_none=True,
        metadata={
            "description": "With invoice: Stripe's page of it.",
            "example": "https://invoice.stripe.com/i/acct_1/test_1a2b3",
        },
    )
    invoice_pdf = String(
        allow_none=True,
        metadata={
            "description": "With invoice: where it can be downloaded.",
            "example": "https://pay.stripe.com/invoice/acct_1/test_1a2b3/pdf",
        },
    )
