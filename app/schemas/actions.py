"""Doing something with a payment: the bodies of the three routes and their answers."""

from typing import ClassVar

from marshmallow.fields import Boolean, Integer, String
from marshmallow.validate import OneOf, Range

from app.schemas.base import MAX_ID_LENGTH, AppId, CreatedSchema, RequestSchema, Text
from app.schemas.payments import MAX_AMOUNT_IN_CENTS, Metadata

REFUND_REASONS = ("duplicate", "fraudulent", "requested_by_customer")
CANCEL_REASONS = ("abandoned", *REFUND_REASONS)


class _Amount(Integer):
    """An amount of the payment's currency."""

    def __init__(self, *, default: str) -> None:
        super().__init__(
            strict=True,
            validate=Range(min=1, max=MAX_AMOUNT_IN_CENTS),
            metadata={"description": f"In the currency's smallest unit; {default}.", "example": 500},
        )


class RefundCreateSchema(RequestSchema):
    """A refund to make."""

    document: ClassVar = {"example": {"appId": "shop", "amountInCents": 500, "reason": "requested_by_customer"}}

    app_id = AppId(required=True)
    amount_in_cents = _Amount(default="all that remains, where it is left out")
    payment_intent_id = Text(
        min_length=1,
        max_length=MAX_ID_LENGTH,
        metadata={"description": "Which intent's money is given back, where the payment has several."},
    )
    reason = String(validate=OneOf(REFUND_REASONS))
    metadata = Metadata()


class CaptureSchema(RequestSchema):
    """Money that is held, to be taken."""

    document: ClassVar = {"example": {"appId": "shop"}}

    app_id = AppId(required=True)
    amount_in_cents = _Amount(default="all, where it is left out; what is left is released")


class CancelSchema(RequestSchema):
    """A payment to call off before it is paid."""

    document: ClassVar = {"example": {"appId": "shop"}}

    app_id = AppId(required=True)
    reason = String(validate=OneOf(CANCEL_REASONS))


class RefundCreatedSchema(CreatedSchema):
    """A refund that Stripe has taken."""

    success = Boolean(required=True)
    payment_id = String(required=True, metadata={"format": "uuid"})
    refund_id = String(required=True, metadata={"example": "re_3a1b2"})
    amount_in_cents = Integer(required=True, metadata={"example": 500})
    currency = String(required=True, metadata={"example": "usd"})
    status = String(
        required=True,
        metadata={
            "description": "`pending`, `requires_action`, `succeeded`, `failed` or `canceled`.",
            "example": "succeeded",
        },
    )


class CapturedSchema(CreatedSchema):
    """A payment whose money was taken."""

    success = Boolean(required=True)
    payment_id = String(required=True, metadata={"format": "uuid"})
    status = String(required=True, metadata={"example": "succeeded"})
    amount_received_in_cents = Integer(required=True, metadata={"example": 2000})


class CanceledSchema(CreatedSchema):
    """A payment that was called off."""

    success = Boolean(required=True)
    payment_id = String(required=True, metadata={"format": "uuid"})
    status = String(required=True, validate=OneOf(["canceled", "expired"]))
