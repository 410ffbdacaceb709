"""How the OpenAPI document is headed; all else in it comes from the schemas and the routes."""

from flask import Response
from flask_smorest import Api
from werkzeug.exceptions import HTTPException

from app.errors import answer_error
from app.schemas.errors import ErrorSchema

API_KEY_SCHEME = "ApiKey"

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
            }
        },
        "security": [{API_KEY_SCHEME: []}],
    },
}


class ContractApi(Api):  # type: ignore[misc]
    """flask-smorest with our errors, in the document and on the wire."""

    ERROR_SCHEMA = ErrorSchema

    def handle_http_exception(self, error: HTTPException) -> Response:
        return answer_error(error)
