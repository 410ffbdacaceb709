"""The routes: each takes its input, makes one call, and answers."""

from collections.abc import Mapping
from typing import Any, NoReturn

import orjson
from flask import Request
from flask_smorest import Blueprint as SmorestBlueprint
from marshmallow import Schema, ValidationError
from webargs.core import missing
from webargs.flaskparser import FlaskParser, is_json_request
from werkzeug.exceptions import UnsupportedMediaType

from app.errors import InvalidRequest
from app.openapi import REQUEST_ID, RETRY_AFTER
from app.schemas.errors import ErrorSchema


class RequestParser(FlaskParser):
    """Reads request bodies strictly, and says what is wrong with them in the shape of the contract."""

    DEFAULT_VALIDATION_STATUS = 400

    def load_json(self, req: Request, schema: Schema) -> Any:
        """The body's JSON.

        :raises UnsupportedMediaType: when the body is said to be something else.
        :raises InvalidRequest: when it is no JSON, or too deep to parse.
        """
        body = req.get_data(cache=True)
        if not is_json_request(req):
            if body or req.content_type:
                raise UnsupportedMediaType
            return missing
        try:
            return orjson.loads(body) if body else missing
        except orjson.JSONDecodeError:
            raise InvalidRequest(form_errors=["The body is not readable as JSON."]) from None

    def handle_error(self, error: ValidationError, *_: Any, **__: Any) -> NoReturn:
        """Say which fields are wrong.

        :raises InvalidRequest: always.
        """
        field_errors: dict[str, list[str]] = {}
        form_errors: list[str] = []
        for messages in error.normalized_messages().values():  # type: ignore[no-untyped-call]
            for name, found in messages.items():
                if name == "_schema":
                    form_errors += found
                else:
                    field_errors.setdefault(str(name), []).extend(_sentences(found))
        raise InvalidRequest(field_errors, form_errors)


def _sentences(found: Any, where: str = "") -> list[str]:
    """Flatten marshmallow's nested messages: `{0: {"priceId": ["Missing."]}}` becomes `["0.priceId: Missing."]`."""
    if isinstance(found, dict):
        return [
            sentence
            for name, inner in found.items()
            for sentence in _sentences(inner, where if name in ("key", "value", "_schema") else f"{where}.{name}")
        ]
    prefix = f"{where.lstrip('.')}: " if where else ""
    return [f"{prefix}{sentence}" for sentence in found]


ERROR_DESCRIPTIONS = {
    400: "The request breaks a rule, the app has no Stripe key, or Stripe calls the request invalid.",
    401: "No API key.",
    402: "The card was declined.",
    403: "A wrong API key.",
    404: "There is no such thing.",
    409: "A request with the same Idempotency-Key is being worked on.",
    413: "The body is over 1 MiB.",
    415: "The body is not JSON.",
    422: "The Idempotency-Key was used with another request.",
    429: "Stripe is rate limiting the app.",
    502: "An upstream answered nonsense or refused us.",
    503: "An upstream or the database is down or overloaded.",
    504: "An upstream took too long.",
}
RETRIED_ERRORS = (409, 429, 503)


class Blueprint(SmorestBlueprint):  # type: ignore[misc]
    """A flask-smorest blueprint with our parser and our errors."""

    ARGUMENTS_PARSER = RequestParser()

    def arguments(self, schema: type[Schema], **kwargs: Any) -> Any:
        """Document and read what a view takes; the schema is put together once, and not for each request."""
        return super().arguments(schema(), **kwargs)

    def response(self, *args: Any, headers: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
        """Document and serialize what a view answers; like every answer, it carries the request's id."""
        return super().response(*args, headers={REQUEST_ID: REQUEST_ID, **(headers or {})}, **kwargs)

    def alt_response(self, *args: Any, headers: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
        """Document what else a view answers; like every answer, it carries the request's id."""
        return super().alt_response(*args, headers={REQUEST_ID: REQUEST_ID, **(headers or {})}, **kwargs)

    def errors(self, *statuses: int) -> Any:
        """Document that a view answers these errors; what is called stays the view itself."""

        def decorate(view: Any) -> Any:
            described = view
            for status in statuses:
                described = self._error(status)(described)
            view._apidoc = described._apidoc
            return view

        return decorate

    def _error(self, status: int) -> Any:
        headers = {RETRY_AFTER: RETRY_AFTER} if status in RETRIED_ERRORS else None
        description = ERROR_DESCRIPTIONS[status]
        return self.alt_response(status, schema=ErrorSchema, description=description, headers=headers)
