"""The one shape of every error."""

from marshmallow.fields import Dict, List, Nested, String

from app.schemas.base import CamelCaseSchema

REQUEST_ID = "8f14e45fceea467a9a36dedd4bea2543"


class ErrorDetailsSchema(CamelCaseSchema):
    """What a program may need of an error: which rules are broken, by field or by header, and what the code says."""

    field_errors = Dict(
        keys=String(),
        values=List(String()),
        metadata={"description": "By the field's name, each with a sentence for each broken rule."},
    )
    form_errors = List(String(), metadata={"description": "What is wrong with the request as a whole."})
    scope = String(metadata={"description": "With `scope_missing`: what the key has to be good for."})
    payment_id = String(metadata={"description": "Of a declined charge: the payment, which shows as failed."})
    payment_intent_id = String(metadata={"description": "Of a declined charge: its payment intent."})
    client_secret = String(
        metadata={"description": "Of a declined charge: for the customer's browser, to confirm the intent with."}
    )
    action = String(
        metadata={
            "description": "Of a declined charge: `confirm_with_customer`, `retry_later` or `new_payment_method`."
        }
    )
    payment_intent_ids = List(
        String(), metadata={"description": "With `several_payment_intents`: those that have money left."}
    )


class ErrorSchema(CamelCaseSchema):
    """Something went wrong; the sentence says what."""

    error = String(required=True, metadata={"description": "A sentence.", "example": "Invalid request"})
    code = String(required=True, metadata={"description": "For programs.", "example": "invalid_request"})
    request_id = String(
        required=True, metadata={"description": "The same as in the header X-Request-ID.", "example": REQUEST_ID}
    )
    details = Nested(ErrorDetailsSchema)
