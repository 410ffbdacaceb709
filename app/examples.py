"""The examples in the OpenAPI document: of each request, each answer, and each error by its code.

None is written by hand: a request and an answer are put together from what their schemas say of their fields, and an
error is what its class answers.
"""

import inspect
from collections.abc import Iterator
from typing import Any

from apispec import APISpec, BasePlugin
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, UnsupportedMediaType

from app.errors import ServiceError, StripeRefusal, error_body, http_words
from app.schemas.errors import REQUEST_ID

_OF_FORMATS = {"uuid": "83931d55-87f1-4ef4-92ef-2ff99f57485c", "date-time": "2026-11-23T12:30:25+00:00"}
_OF_TYPES = {"boolean": True, "integer": 1, "number": 1.5, "object": {}}

# Stripe's own codes, of which there are many: the one that is met most of each status.
_STRIPES = (
    StripeRefusal("No such price: 'price_1'", status=400, code="resource_missing"),
    StripeRefusal("Your card was declined.", status=402, code="card_declined"),
)
_OF_HTTP: tuple[HTTPException, ...] = (RequestEntityTooLarge(), UnsupportedMediaType())


class ExamplesPlugin(BasePlugin):
    """Gives every body of the document an example, unless the route brings its own; an error's are named by code."""

    def init_spec(self, spec: APISpec) -> None:
        self.components = spec.components

    def operation_helper(self, path: str | None = None, operations: dict[str, Any] | None = None, **_: Any) -> None:
        """Add the examples; the schemas have become references by now."""
        for operation in (operations or {}).values():
            bodies = [operation["requestBody"]] if "requestBody" in operation else []
            for body in [*bodies, *operation["responses"].values()]:
                for media in body.get("content", {}).values():
                    self._complete(media)

    def _complete(self, media: dict[str, Any]) -> None:
        for code in media.get("examples", ()):
            if code not in self.components.examples:
                self.components.example(code, {"value": find_error(code)[1]})
        if not {"example", "examples"} & set(media):
            media["example"] = self.example_of(media["schema"])

    def example_of(self, schema: dict[str, Any]) -> Any:
        """What a schema describes, put together from what it says of its parts."""
        if "example" in schema:
            return schema["example"]
        if (referred := self._referred(schema)) is not None:
            return self.example_of(referred)
        if "enum" in schema:
            return schema["enum"][0]
        if "properties" in schema:
            return {name: self.example_of(each) for name, each in _shown(schema)}
        if "items" in schema:
            return [self.example_of(schema["items"])]
        return _example_of_plain(schema)

    def _referred(self, schema: dict[str, Any]) -> dict[str, Any] | None:
        for one in [schema, *schema.get("allOf", ()), *schema.get("anyOf", ())]:
            if "$ref" in one:
                return dict(self.components.schemas[one["$ref"].rpartition("/")[2]])
        return None


def _shown(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The fields that are always there: what may be left out is left out."""
    required = schema.get("required", ())
    return ((name, each) for name, each in schema["properties"].items() if name in required)


def _example_of_plain(schema: dict[str, Any]) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        return None
    # A text of which nothing is said gets no example, and a test names it.
    return _OF_FORMATS.get(schema.get("format", "")) or _OF_TYPES.get(kind or "")


def status_of(code: str) -> int:
    """The status that an error with this code is answered with.

    :raises LookupError: when no error has this code.
    """
    return find_error(code)[0]


def find_error(code: str) -> tuple[int, dict[str, Any]]:
    """The status of an error, and the body that a caller is answered with.

    :raises LookupError: when no error has this code.
    """
    for error in _OF_HTTP:
        sentence, its_code = http_words(error)
        if its_code == code:
            return error.code or 500, error_body(sentence, code, REQUEST_ID)
    known = _find_error(code)
    body = error_body(known.sentence, code, REQUEST_ID)
    return known.status, body if known.details is None else {**body, "details": known.details}


def _find_error(code: str) -> ServiceError:
    for refusal in _STRIPES:
        if refusal.code == code:
            return refusal
    for kind in _kinds(ServiceError):
        if kind.code == code:
            return _make(kind)
    raise LookupError(f"No error has the code {code}")


def _kinds(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    """An error and all that is one, the general before the special."""
    yield kind
    for special in kind.__subclasses__():
        yield from _kinds(special)


def _make(kind: type[ServiceError]) -> ServiceError:
    takes = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in kind.example.items() if name in takes})
