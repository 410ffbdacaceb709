"""Whether the service is there, and whether it can work."""

from marshmallow.fields import Dict, String
from marshmallow.validate import OneOf

from app.schemas.base import CamelCaseSchema
from app.version import VERSION


class HealthSchema(CamelCaseSchema):
    """The process answers."""

    status = String(required=True, validate=OneOf(["ok"]))
    service = String(required=True, validate=OneOf(["stripe-service"]))
    version = String(required=True, metadata={"description": "Of the code that answers.", "example": VERSION})


class ReadinessSchema(CamelCaseSchema):
    """What the service needs, by name, each `ok` or what is wrong."""

    status = String(required=True, validate=OneOf(["ok", "unavailable"]))
    checks = Dict(
        keys=String(), values=String(), required=True, metadata={"example": {"database": "ok", "migrations": "ok"}}
    )
