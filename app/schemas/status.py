"""What has become of a payment."""

from marshmallow.fields import AwareDateTime, Dict, Integer, List, Nested, String
from marshmallow.validate import OneOf, Range

from app.models import ActionState, CaptureMethod, PaymentOrigin, PaymentStatus, TrackingState
from app.schemas.base import NO_CONTROL, CamelCaseSchema, OptionalAppQuerySchema, Text

UTC_TIME = {"description": "ISO 8601 in UTC."}
CENTS = {"description": "In the currency's smallest unit.", "example": 2000}
RUN_ID = "5253807e-6926-45d8-9773-75714f40cade"


class TrackingSchema(CamelCaseSchema):
    """Whether runs-service knows of the payment and its cost."""

    is_flat = True

    state = String(
        required=True,
        attribute="tracking_state",
        validate=OneOf([str(state) for state in TrackingState]),
        metadata={"example": str(TrackingState.COMPLETE)},
    )
    error = String(required=True, allow_none=True, attribute="tracking_error")


class PaymentSchema(CamelCaseSchema):
    """A payment."""

    id = String(required=True, metadata={"format": "uuid"})
    origin = String(
        required=True,
        validate=OneOf([str(origin) for origin in PaymentOrigin]),
        metadata={"example": str(PaymentOrigin.CHECKOUT)},
    )
    org_id = String(required=True, allow_none=True, metadata={"example": "org_1"})
    run_id = String(
        required=True, allow_none=True, metadata={"description": "The run that its cost is on.", "example": RUN_ID}
    )
    parent_run_id = String(required=True, allow_none=True, metadata={"description": "The run that the caller named."})
    brand_id = String(required=True, allow_none=True, metadata={"example": "brand_1"})
    app_id = String(required=True, metadata={"example": "shop"})
    campaign_id = String(required=True, allow_none=True, metadata={"example": "campaign_1"})
    stripe_payment_intent_id = String(required=True, allow_none=True, metadata={"example": "pi_3a1b2"})
    stripe_checkout_session_id = String(required=True, allow_none=True, metadata={"example": "cs_test_a1b2"})
    stripe_subscription_id = String(required=True, allow_none=True)
    subscription_status = String(
        required=True,
        allow_none=True,
        metadata={
            "description": "What the subscription that it began, or that it renews, is by now, in Stripe's words."
        },
    )
    stripe_invoice_id = String(required=True, allow_none=True)
    stripe_customer_id = String(required=True, allow_none=True)
    amount_in_cents = Integer(required=True, allow_none=True, metadata=CENTS)
    currency = String(required=True, allow_none=True, metadata={"example": "usd"})
    status = String(
        required=True,
        validate=OneOf([str(status) for status in PaymentStatus]),
        metadata={"example": str(PaymentStatus.DISPUTED)},
    )
    description = String(required=True, allow_none=True)
    metadata = Dict(keys=String(), values=String(), required=True, metadata={"example": {"orderId": "1042"}})
    amount_received_in_cents = Integer(required=True, metadata=CENTS)
    amount_refunded_in_cents = Integer(required=True, metadata={**CENTS, "example": 500})
    amount_returned_in_cents = Integer(
        required=True,
        metadata={"description": "Refunds that succeeded, and disputes that were lost.", "example": 500},
    )
    capture_method = String(
        required=True,
        validate=OneOf([str(method) for method in CaptureMethod]),
        metadata={"example": str(CaptureMethod.AUTOMATIC)},
    )
    created_at = AwareDateTime(required=True, metadata=UTC_TIME)
    updated_at = AwareDateTime(required=True, metadata=UTC_TIME)
    tracking = Nested(TrackingSchema, required=True)


class SuccessSchema(CamelCaseSchema):
    """A payment intent that succeeded."""

    id = String(required=True, metadata={"example": "pi_3a1b2"})
    stripe_payment_intent_id = String(required=True, allow_none=True, metadata={"example": "pi_3a1b2"})
    stripe_charge_id = String(required=True, allow_none=True, metadata={"example": "ch_3a1b2"})
    amount_in_cents = Integer(required=True, allow_none=True, metadata=CENTS)
    currency = String(required=True, allow_none=True, metadata={"example": "usd"})
    receipt_url = String(required=True, allow_none=True, metadata={"example": "https://pay.stripe.com/receipts/a1b2"})
    created_at = AwareDateTime(required=True, metadata=UTC_TIME)


class FailureSchema(CamelCaseSchema):
    """A try to pay that failed."""

    id = String(required=True, metadata={"example": "ch_1a1b2"})
    stripe_payment_intent_id = String(required=True, allow_none=True, metadata={"example": "pi_3a1b2"})
    failure_code = String(required=True, allow_none=True, metadata={"example": "card_declined"})
    failure_message = String(required=True, allow_none=True, metadata={"example": "Your card was declined."})
    created_at = AwareDateTime(required=True, metadata=UTC_TIME)


class _ReversalSchema(CamelCaseSchema):
    id = String(required=True, metadata={"example": "re_3a1b2"})
    stripe_payment_intent_id = String(required=True, allow_none=True, metadata={"example": "pi_3a1b2"})
    stripe_charge_id = String(required=True, allow_none=True, metadata={"example": "ch_3a1b2"})
    amount_in_cents = Integer(required=True, metadata={**CENTS, "example": 500})
    currency = String(required=True, allow_none=True, metadata={"example": "usd"})
    reason = String(required=True, allow_none=True, metadata={"example": "requested_by_customer"})
    status = String(required=True, allow_none=True, metadata={"example": "succeeded"})
    created_at = AwareDateTime(required=True, metadata=UTC_TIME)


class RefundSchema(_ReversalSchema):
    """Money given back."""

    stripe_refund_id = String(required=True, metadata={"example": "re_3a1b2"})


class DisputeSchema(_ReversalSchema):
    """Money that the customer's bank asks back."""

    id = String(required=True, metadata={"example": "dp_1a1b2"})
    reason = String(required=True, allow_none=True, metadata={"example": "product_not_received"})
    status = String(required=True, allow_none=True, metadata={"example": "needs_response"})
    stripe_dispute_id = String(required=True, metadata={"example": "dp_1a1b2"})


class PaymentEventsSchema(CamelCaseSchema):
    """What happened to a payment: each entry once, in its latest state."""

    successes = List(Nested(SuccessSchema), required=True)
    failures = List(Nested(FailureSchema), required=True)
    refunds = List(Nested(RefundSchema), required=True)
    disputes = List(Nested(DisputeSchema), required=True)


class ActionSchema(CamelCaseSchema):
    """Something that a caller wanted done with a payment, in its latest state."""

    id = String(required=True, metadata={"format": "uuid"})
    kind = String(required=True, validate=OneOf(["refund", "capture", "cancel"]), metadata={"example": "refund"})
    amount_in_cents = Integer(required=True, allow_none=True, metadata={**CENTS, "example": 500})
    refund_id = String(required=True, allow_none=True, metadata={"example": "re_3a1b2"})
    reason = String(required=True, allow_none=True, metadata={"example": "requested_by_customer"})
    metadata = Dict(keys=String(), values=String(), required=True, metadata={"example": {"ticket": "7"}})
    state = String(
        required=True,
        validate=OneOf([str(state) for state in ActionState]),
        metadata={"example": str(ActionState.DONE)},
    )
    error = String(required=True, allow_none=True, metadata={"description": "Why it was refused, or is not done yet."})
    created_at = AwareDateTime(required=True, metadata=UTC_TIME)


class PaymentDetailsSchema(CamelCaseSchema):
    """A payment and what happened to it."""

    payment = Nested(PaymentSchema, required=True)
    events = Nested(PaymentEventsSchema, required=True)
    actions = List(Nested(ActionSchema), required=True)


class PageQuerySchema(OptionalAppQuerySchema):
    """Which page of a list, and what of it."""

    identity = ("org_id",)

    org_id = Text(max_length=200, min_length=1, pattern=NO_CONTROL, metadata={"description": "Lists no other's."})
    limit = Integer(load_default=100, validate=Range(min=1, max=500))
    cursor = Text(max_length=200, metadata={"description": "The `nextCursor` of the page before."})


class PaymentPageSchema(CamelCaseSchema):
    """A page of payments, newest first."""

    payments = List(Nested(PaymentSchema), required=True)
    next_cursor = String(required=True, allow_none=True, metadata={"description": "Null on the last page."})
