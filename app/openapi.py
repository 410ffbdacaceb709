"""How the OpenAPI document is headed; all else in it comes from the schemas and the routes."""

import re
from typing import Any

from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from flask import Response
from flask_smorest import Api
from flask_smorest.spec.plugins import FlaskPlugin
from marshmallow.fields import Dict, Field
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule

from app.errors import answer_error
from app.schemas.errors import ErrorSchema
from app.wire import camel_case

_ROUTE_VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")


def route_template(rule: str) -> str:
    """A route as the contract writes it: `/status/<payment_id>` becomes `/status/{paymentId}`."""
    return _ROUTE_VARIABLE.sub(lambda match: f"{{{camel_case(match[1])}}}", rule)


API_KEY_SCHEME = "ApiKey"
REQUEST_ID = "X-Request-ID"
RETRY_AFTER = "Retry-After"

API_CONFIG = {
    "MAX_CONTENT_LENGTH": 1024 * 1024,
    "API_TITLE": "Stripe Service",
    "API_VERSION": "1",
    "OPENAPI_VERSION": "3.1.0",
    "API_SPEC_OPTIONS": {
        "info": {"description": "Through this service the apps of a platform take payments with Stripe."},
        "components": {
            "securitySchemes": {
                API_KEY_SCHEME: {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-API-Key",
                    "description": "One of the service's API keys.",
                }
            },
            "headers": {
                REQUEST_ID: {
                    "description": "The caller's, when it is sane, or one made for the request.",
                    "required": True,
                    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
                },
                RETRY_AFTER: {
                    "description": "In seconds.",
                    "required": True,
                    "schema": {"type": "integer", "minimum": 1},
                },
            },
        },
        "security": [{API_KEY_SCHEME: []}],
    },
}


class CamelCasePlugin(FlaskPlugin):  # type: ignore[misc]
    """Names the variables of a path as the contract does."""

    @staticmethod
    def flaskpath2openapi(path: str) -> str:
        return route_template(path)

    def rule_to_params(self, rule: Rule) -> list[dict[str, Any]]:
        return [{**parameter, "name": camel_case(parameter["name"])} for parameter in super().rule_to_params(rule)]


class RulesConverter(OpenAPIConverter):
    """Writes down what apispec leaves out: the rules of a map's keys, and what a schema says of itself as a whole."""

    def init_attribute_functions(self) -> None:
        super().init_attribute_functions()
        self.add_attribute_function(type(self).key_rules)

    def schema2jsonschema(self, schema: Any) -> dict[str, Any]:
        return {**super().schema2jsonschema(schema), **getattr(schema, "document", {})}

    def key_rules(self, field: Field[Any], **_: Any) -> dict[str, Any]:
        keys = field.key_field if isinstance(field, Dict) else None
        return {"propertyNames": self.field2property(keys)} if keys and keys.validators else {}


class RulesPlugin(MarshmallowPlugin):
    """apispec's plugin for marshmallow, with what it leaves out."""

    Converter = RulesConverter


class ContractApi(Api):  # type: ignore[misc]
    """flask-smorest with our errors, in the document and on the wire."""

    ERROR_SCHEMA = ErrorSchema
    # Every operation lists all that it answers: with a default, whatever it answers would be as documented.
    DEFAULT_ERROR_RESPONSE_NAME = None

    def handle_http_exception(self, error: HTTPException) -> Response:
        return answer_error(error)
