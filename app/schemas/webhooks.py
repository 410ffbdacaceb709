"""What Stripe sends. The schemas describe it; the signature, over the raw bytes, is what checks it."""

from marshmallow.fields import Boolean, Integer, Nested, String
from marshmallow.validate import Range

from app.schemas.base import MAX_ID_LENGTH, AppId, CamelCaseSchema, Text

# What PostgreSQL can store.
MAX_SECONDS = 2**63 - 1


class SignatureSchema(CamelCaseSchema):
    """How Stripe signs."""

    stripe_signature = String(
        required=True, data_key="Stripe-Signature", metadata={"example": "t=1700000000,v1=5257a8..."}
    )


class AppPathSchema(CamelCaseSchema):
    """Whose event it is."""

    app_id = AppId(required=True)


class EventObjectSchema(CamelCaseSchema):
    """Any object of Stripe's; a balance has no id, and the preview of an invoice may have null."""

    id = String(allow_none=True, metadata={"example": "pi_3a1b2"})


class EventDataSchema(CamelCaseSchema):
    """What the event is about."""

    object = Nested(EventObjectSchema, required=True, metadata={"description": "The object as it was then."})


class EventSchema(CamelCaseSchema):
    """A Stripe event. https://docs.stripe.com/api/events/object

    A thin event (`"object": "v2.core.event"`), which shows no object, is stored as it is.
    """

    id = Text(required=True, min_length=1, max_length=MAX_ID_LENGTH, metadata={"example": "evt_1a2b"})
    type = Text(required=True, min_length=1, max_length=MAX_ID_LENGTH, metadata={"example": "payment_intent.succeeded"})
    created = Integer(
        required=True,
        validate=Range(min=-MAX_SECONDS, max=MAX_SECONDS),
        metadata={"description": "In seconds since 1970.", "example": 1_700_000_000},
    )
    data = Nested(EventDataSchema, required=True)


class ReceivedSchema(CamelCaseSchema):
    """The event is stored."""

    received = Boolean(required=True)
