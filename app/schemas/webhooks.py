"""What Stripe sends. The schemas describe it; the signature, over the raw bytes, is what checks it."""

from marshmallow.fields import Boolean, Dict, Integer, String
from marshmallow.validate import Length

from app.schemas.base import CamelCaseSchema


class SignatureSchema(CamelCaseSchema):
    """How Stripe signs."""

    stripe_signature = String(data_key="Stripe-Signature", metadata={"example": "t=1700000000,v1=5257a8..."})


class EventSchema(CamelCaseSchema):
    """A Stripe event. https://docs.stripe.com/api/events/object"""

    id = String(required=True, validate=Length(min=1, max=255))
    type = String(required=True, validate=Length(min=1, max=255))
    created = Integer(required=True, metadata={"description": "In seconds since 1970."})
    data = Dict(required=True, metadata={"description": "The object as it was then, under `object`."})


class ReceivedSchema(CamelCaseSchema):
    """The event is stored."""

    received = Boolean(required=True)
