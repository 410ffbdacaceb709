"""What apps are told: the bodies of events, the endpoints that are told, and what was told."""

from typing import ClassVar

from marshmallow.fields import AwareDateTime, Boolean, Integer, List, Nested, String
from marshmallow.validate import OneOf, Range

from app.models import AppEventType, DeliveryState
from app.schemas.base import AppId, AppQuerySchema, BoundedList, CamelCaseSchema, RequestSchema, Text, Url
from app.schemas.status import CENTS, UTC_TIME, PaymentSchema
from app.schemas.subscriptions import SubscribedItemSchema, SubscriptionSchema

ID = {"format": "uuid"}
ANY_TYPE = [str(each) for each in AppEventType]
TYPES = [each for each in ANY_TYPE if each != AppEventType.PING]
ENDPOINT_STATES = ["enabled", "disabled"]
SECRET = {
    "description": "Verifies what the endpoint is sent, by any library of Standard Webhooks. Shown once.",
    "example": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
}


class PreviousSchema(CamelCaseSchema):
    """What of the payment or the subscription was another before; what is left out was the same."""

    status = String(metadata={"example": "requires_payment_method"})
    amount_in_cents = Integer(allow_none=True, metadata=CENTS)
    currency = String(allow_none=True)
    stripe_payment_intent_id = String(allow_none=True)
    stripe_checkout_session_id = String(allow_none=True)
    stripe_subscription_id = String(allow_none=True)
    stripe_invoice_id = String(allow_none=True)
    stripe_customer_id = String(allow_none=True)
    amount_received_in_cents = Integer(metadata={**CENTS, "example": 0})
    amount_refunded_in_cents = Integer(metadata=CENTS)
    amount_returned_in_cents = Integer(metadata=CENTS)
    items = List(Nested(SubscribedItemSchema), allow_none=True)
    current_period_start = AwareDateTime(allow_none=True)
    current_period_end = AwareDateTime(allow_none=True)
    cancel_at = AwareDateTime(allow_none=True)
    cancel_at_period_end = Boolean(allow_none=True)
    canceled_at = AwareDateTime(allow_none=True)
    ended_at = AwareDateTime(allow_none=True)
    trial_end = AwareDateTime(allow_none=True)


class ChangedPaymentMethodSchema(CamelCaseSchema):
    """A payment method that an organisation's customer has saved, or that is gone from it."""

    payment_method_id = String(required=True, metadata={"example": "pm_3a1b2"})
    type = String(required=True, allow_none=True, metadata={"example": "card"})
    customer_id = String(required=True, metadata={"example": "cus_3a1b2"})
    app_id = String(required=True, metadata={"example": "shop"})
    org_id = String(required=True, metadata={"example": "org_1"})


class AppEventDataSchema(CamelCaseSchema):
    """What has changed: a payment, a subscription or a payment method. A `ping` tells of nothing."""

    payment = Nested(PaymentSchema, metadata={"description": "As `/status` shows it, in the state that is told."})
    previous = Nested(PreviousSchema)
    subscription = Nested(
        SubscriptionSchema, metadata={"description": "As `/subscriptions` shows it, in the state that is told."}
    )
    payment_method = Nested(ChangedPaymentMethodSchema)


class EventBodySchema(CamelCaseSchema):
    """What an endpoint is sent."""

    id = String(required=True, attribute="event_id", metadata=ID)
    type = String(required=True, validate=OneOf(ANY_TYPE))
    timestamp = AwareDateTime(required=True, attribute="created_at", metadata=UTC_TIME)
    data = Nested(AppEventDataSchema, required=True)


class EndpointCreateSchema(RequestSchema):
    """An endpoint to tell."""

    document: ClassVar = {"example": {"appId": "shop", "url": "https://example.com/events"}}

    app_id = AppId(required=True, metadata={"description": "The app whose payments it is told of."})
    url = Url(
        required=True,
        metadata={
            "description": "https, with the name of a host whose every address is public.",
            "example": "https://example.com/events",
        },
    )
    types = BoundedList(
        String(validate=OneOf(TYPES)),
        min_items=1,
        max_items=len(TYPES),
        metadata={"description": "Of what it is told; of all, where they are left out."},
    )


class EndpointCreatedSchema(CamelCaseSchema):
    """An endpoint that is told from now on."""

    success = Boolean(required=True)
    endpoint_id = String(required=True, metadata=ID)
    secret = String(required=True, metadata=SECRET)


class EndpointActionSchema(RequestSchema):
    """Whose endpoint it is."""

    document: ClassVar = {"example": {"appId": "shop"}}

    app_id = AppId(required=True, metadata={"description": "The app whose endpoint it is."})


class RedeliverDeadSchema(EndpointActionSchema):
    """What to send an endpoint again."""

    document: ClassVar = {"example": {"appId": "shop", "since": "2026-11-25T00:00:00+00:00"}}

    since = AwareDateTime(
        metadata={"description": "What was given up since then; all of it, where this is left out. ISO 8601."}
    )


class DoneSchema(CamelCaseSchema):
    """It was done."""

    success = Boolean(required=True)


class SecretRotatedSchema(CamelCaseSchema):
    """The secret that signs from now on; the one before signs as well, for a day."""

    success = Boolean(required=True)
    secret = String(required=True, metadata=SECRET)


class EndpointSchema(CamelCaseSchema):
    """An endpoint."""

    endpoint_id = String(required=True, metadata=ID)
    url = String(required=True, metadata={"example": "https://example.com/events"})
    types = List(String(validate=OneOf(TYPES)), required=True, metadata={"example": ["payment.succeeded"]})
    state = String(
        required=True,
        validate=OneOf(ENDPOINT_STATES),
        metadata={"description": "Disabled: it has answered 410, or has taken nothing for five days."},
    )
    failing_since = AwareDateTime(required=True, allow_none=True, metadata=UTC_TIME)
    created_at = AwareDateTime(required=True, metadata=UTC_TIME)


class EndpointListSchema(CamelCaseSchema):
    """The endpoints of an app, the first first."""

    endpoints = List(Nested(EndpointSchema), required=True)


class DeliverySchema(CamelCaseSchema):
    """An event on its way to an endpoint."""

    endpoint_id = String(required=True, metadata=ID)
    state = String(required=True, validate=OneOf([str(each) for each in DeliveryState]))
    attempts = Integer(required=True, metadata={"example": 1})
    last_status = Integer(required=True, allow_none=True, metadata={"example": 200})
    last_error = String(required=True, allow_none=True)
    next_attempt_at = AwareDateTime(required=True, allow_none=True, metadata=UTC_TIME)


class AppEventSchema(CamelCaseSchema):
    """What an app was told, and how far it is on its way."""

    event_id = String(required=True, metadata=ID)
    type = String(required=True, validate=OneOf(ANY_TYPE), metadata={"example": "payment.succeeded"})
    created_at = AwareDateTime(required=True, metadata=UTC_TIME)
    data = Nested(AppEventDataSchema, required=True)
    deliveries = List(Nested(DeliverySchema), required=True)


class EventQuerySchema(AppQuerySchema):
    """Which events to list."""

    type = String(validate=OneOf(ANY_TYPE))
    payment_id = Text(max_length=36, metadata={"description": "Lists no other payment's."})
    limit = Integer(load_default=100, validate=Range(min=1, max=500))
    cursor = Text(max_length=200, metadata={"description": "The `nextCursor` of the page before."})


class AppEventPageSchema(CamelCaseSchema):
    """A page of events, newest first."""

    events = List(Nested(AppEventSchema), required=True)
    next_cursor = String(required=True, allow_none=True, metadata={"description": "Null on the last page."})
