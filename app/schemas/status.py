"""What has become of a payment."""

from marshmallow.fields import AwareDateTime, Dict, Integer, List, Nested, String
from marshmallow.validate import OneOf, Range

from app.models import ActionState, CaptureMethod, PaymentOrigin, PaymentStatus, TrackingState
from app.schemas.base import AppId, CamelCaseSchema, RequestSchema, Text

UTC_TIME = {"description": "ISO 8601 in UTC."}
CENTS = {"description": "In the currency's smallest unit."}


class TrackingSchema(CamelCaseSchema):
    """Whether runs-service knows of the payment and its cost."""

    is_flat = True

    state = String(required=True, attribute="tracking_state", validate=OneOf([str(state) for state in TrackingState]))
    error = String(required=True, allow_none=True, attribute="tracking_error")


class PaymentSchema(CamelCaseSchema):
    """A payment."""

    id = String(required=True, metadata={"format": "uuid"})
    origin = String(required=True, validate=OneOf([str(origin) for origin in PaymentOrigin]))
    org_id = String(required=True, allow_none=True)
    run_id = String(required=True, allow_none=True, metadata={"description": "The run that its cost is on."})
    parent_run_id = String(required=True, allow_none=True, metadata={"description": "The run that the caller named."})
    brand_id = String(required=True, allow_none=True)
    app_id = String(required=True)
    campaign_id = String(required=True, allow_none=True)
    stripe_payment_intent_id = String(required=True, allow_none=True)
    stripe_checkout_session_id = String(required=True, allow_none=True)
    stripe_subscription_id = String(required=True, allow_none=True)
    stripe_invoice_id = String(required=True, allow_none=True)
    stripe_customer_id = String(required=True, allow_none=True)
    amount_in_cents = Integer(required=True, allow_none=True, metadata=CENTS)
    currency = String(required=True, allow_none=True)
    status = String(required=True, validate=OneOf([str(status) for status in PaymentStatus]))
    description = String(required=True, allow_none=True)
    metadata = Dict(keys=String(), values=String(), required=True)
    amount_received_in_cents = Integer(required=True, metadata=CENTS)
    amount_refunded_in_cents = Integer(required=True, metadata=CENTS)
    amount_returned_in_cents = Integer(
        required=True,
        metadata={"description": f"Refunds that succeeded, and disputes that were lost. {CENTS['description']}"},
    )
    capture_method = String(required=True, validate=OneOf([str(method) for method in CaptureMethod]))
    created_at = AwareDateTime(required=True, metadata=UTC_TIME)
    updated_at = AwareDateTime(required=True, metadata=UTC_TIME)
    tracking = Nested(TrackingSchema, required=True)


class SuccessSchema(CamelCaseSchema):
    """A payment intent that succeeded."""

    id = String(required=True)
    stripe_payment_intent_id = String(required=True, allow_none=True)
    stripe_charge_id = String(required=True, allow_none=True)
    amount_in_cents = Integer(required=True, allow_none=True, metadata=CENTS)
    currency = String(required=True, allow_none=True)
    receipt_url = String(required=True, allow_none=True)
    created_at = AwareDateTime(required=True, metadata=UTC_TIME)


class FailureSchema(CamelCaseSchema):
    """A try to pay that failed."""

    id = String(required=True)
    stripe_payment_intent_id = String(required=True, allow_none=True)
    failure_code = String(required=True, allow_none=True)
    failure_message = String(required=True, allow_none=True)
    created_at = AwareDateTime(required=True, metadata=UTC_TIME)


class _ReversalSchema(CamelCaseSchema):
    id = String(required=True)
    stripe_payment_intent_id = String(required=True, allow_none=True)
    stripe_charge_id = String(required=True, allow_none=True)
    amount_in_cents = Integer(required=True, metadata=CENTS)
    currency = String(required=True, allow_none=True)
    reason = String(required=True, allow_none=True)
    status = String(required=True, allow_none=True)
    created_at = AwareDateTime(required=True, metadata=UTC_TIME)


class RefundSchema(_ReversalSchema):
    """Money given back."""

    stripe_refund_id = String(required=True)


class DisputeSchema(_ReversalSchema):
    """Money that the customer's bank asks back."""

    stripe_dispute_id = String(required=True)


class PaymentEventsSchema(CamelCaseSchema):
    """What happened to a payment: each entry once, in its latest state."""

    successes = List(Nested(SuccessSchema), required=True)
    failures = List(Nested(FailureSchema), required=True)
    refunds = List(Nested(RefundSchema), required=True)
    disputes = List(Nested(DisputeSchema), required=True)


class ActionSchema(CamelCaseSchema):
    """Something that a caller wanted done with a payment, in its latest state."""

    id = String(required=True, metadata={"format": "uuid"})
    kind = String(required=True, validate=OneOf(["refund", "capture", "cancel"]))
    amount_in_cents = Integer(required=True, allow_none=True, metadata=CENTS)
    refund_id = String(required=True, allow_none=True)
    reason = String(required=True, allow_none=True)
    metadata = Dict(keys=String(), values=String(), required=True)
    state = String(required=True, validate=OneOf([str(state) for state in ActionState]))
    error = String(required=True, allow_none=True, metadata={"description": "Why it was refused, or is not done yet."})
    created_at = AwareDateTime(required=True, metadata=UTC_TIME)


class PaymentStatusSchema(CamelCaseSchema):
    """A payment and what happened to it."""

    payment = Nested(PaymentSchema, required=True)
    events = Nested(PaymentEventsSchema, required=True)
    actions = List(Nested(ActionSchema), required=True)


class AppQuerySchema(RequestSchema):
    """Which app a question is about."""

    takes_null = False

    app_id = AppId(required=True)


class PageQuerySchema(RequestSchema):
    """Which page of a list."""

    takes_null = False

    limit = Integer(load_default=100, validate=Range(min=1, max=500))
    cursor = Text(max_length=200, metadata={"description": "The `nextCursor` of the page before."})


class PaymentPageSchema(CamelCaseSchema):
    """A page of payments, newest first."""

    payments = List(Nested(PaymentSchema), required=True)
    next_cursor = String(required=True, allow_none=True, metadata={"description": "Null on the last page."})
