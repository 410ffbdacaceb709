"""Keys of apps: the bodies and the answers of their routes."""

from typing import ClassVar

from marshmallow.fields import AwareDateTime, Boolean, Integer, List, Nested, String
from marshmallow.validate import OneOf, Range

from app.models import KeyScope
from app.schemas.base import AppId, CamelCaseSchema, RequestSchema, Text

SCOPES = [str(scope) for scope in KeyScope]
MAX_OVERLAP_HOURS = 24 * 90
KEY_ID = {"format": "uuid"}
UTC_TIME = {"description": "ISO 8601 in UTC."}


class KeyCreateSchema(RequestSchema):
    """A key to make."""

    document: ClassVar = {"example": {"appId": "shop", "name": "billing"}}

    app_id = AppId(required=True, metadata={"description": "The app that the key is for."})
    name = Text(max_length=200, metadata={"description": "For people: who has it.", "example": "billing"})
    scope = String(
        load_default=str(KeyScope.WRITE),
        validate=OneOf(SCOPES),
        metadata={
            "description": "`read`: status and statistics. `write`: also creates. `money`: also refund, capture and "
            "cancel.",
        },
    )


class KeyRotateSchema(RequestSchema):
    """A key to put another in the place of."""

    document: ClassVar = {"example": {"keyId": "83931d55-87f1-4ef4-92ef-2ff99f57485c"}}

    key_id = Text(required=True, min_length=1, max_length=36, metadata=KEY_ID)
    overlap_hours = Integer(
        load_default=24,
        strict=True,
        validate=Range(min=0, max=MAX_OVERLAP_HOURS),
        metadata={"description": "How long the old one is good for besides."},
    )


class KeyRevokeSchema(RequestSchema):
    """A key to refuse from now on."""

    document: ClassVar = {"example": {"keyId": "83931d55-87f1-4ef4-92ef-2ff99f57485c"}}

    key_id = Text(required=True, min_length=1, max_length=36, metadata=KEY_ID)


class KeyCreatedSchema(CamelCaseSchema):
    """A key that was made."""

    success = Boolean(required=True)
    key_id = String(required=True, metadata=KEY_ID)
    key = String(
        required=True,
        metadata={"description": "Shown once; the service keeps a hash of it.", "example": f"ss_{'x' * 43}"},
    )


class KeyRevokedSchema(CamelCaseSchema):
    """A key that is refused from now on, on every replica within 10 seconds."""

    success = Boolean(required=True)


class KeySchema(CamelCaseSchema):
    """A key, as it may be shown."""

    key_id = String(required=True, metadata=KEY_ID)
    app_id = String(required=True, metadata={"example": "shop"})
    name = String(required=True, allow_none=True, metadata={"example": "billing"})
    scope = String(required=True, validate=OneOf(SCOPES))
    hint = String(required=True, metadata={"description": "The key's last four letters.", "example": "x7Qb"})
    created_at = AwareDateTime(required=True, metadata=UTC_TIME)
    last_used_at = AwareDateTime(
        required=True, allow_none=True, metadata={"description": "To the minute. ISO 8601 in UTC."}
    )
    expires_at = AwareDateTime(required=True, allow_none=True, metadata=UTC_TIME)
    revoked_at = AwareDateTime(required=True, allow_none=True, metadata=UTC_TIME)


class KeyListSchema(CamelCaseSchema):
    """Keys, the newest first, also those that are no longer of use."""

    keys = List(Nested(KeySchema), required=True)
