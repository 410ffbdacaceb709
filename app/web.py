"""What our HTTP adds to flask-smorest: names, JSON, the parser, the blueprint and the head of the OpenAPI document."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn

import orjson
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from flask import Request, Response, g
from flask.json.provider import JSONProvider
from flask_smorest import Api
from flask_smorest import Blueprint as SmorestBlueprint
from flask_smorest.spec.plugins import FlaskPlugin
from marshmallow import Schema, ValidationError
from marshmallow.fields import Dict, Field, List
from webargs.core import missing
from webargs.flaskparser import FlaskParser, is_json_request
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException, UnsupportedMediaType
from werkzeug.routing import BaseConverter, Rule

from app.errors import MAX_NAMES_LENGTH, InvalidRequest, answer_error
from app.examples import ExamplesPlugin, status_of
from app.identity import HEADERS as IDENTITY_HEADERS
from app.identity import LISTED, identity_of
from app.schemas.base import MAX_IGNORED, MAX_IGNORED_LENGTH, RequestSchema, camel_case
from app.schemas.errors import ErrorSchema
from app.version import VERSION

log = logging.getLogger(__name__)

_ROUTE_VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")


def route_template(rule: str) -> str:
    """A route as the contract writes it: `/status/<payment_id>` becomes `/status/{paymentId}`."""
    return _ROUTE_VARIABLE.sub(lambda match: f"{{{camel_case(match[1])}}}", rule)


class AnyTextConverter(BaseConverter):
    """A variable of a path that may hold any text; a `/` in it is sent as `%2F`."""

    # A dot would be any character but the end of a line.
    regex = r"[\s\S]+"
    part_isolating = False


API_KEY_SCHEME = "ApiKey"
REQUEST_ID = "X-Request-ID"
RETRY_AFTER = "Retry-After"

API_CONFIG = {
    "API_TITLE": "Stripe Service",
    "API_VERSION": VERSION,
    "OPENAPI_VERSION": "3.1.0",
    "API_SPEC_OPTIONS": {
        "info": {"description": "Through this service the apps of a platform take payments with Stripe."},
        # Relative to the document's own address: whoever serves it.
        "servers": [{"url": "/", "description": "The service that this document comes from."}],
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


# What the document says of the variables of paths. Another text than a format allows is answered with 404.
PATH_VARIABLES = {
    "paymentId": {"format": "uuid", "example": "83931d55-87f1-4ef4-92ef-2ff99f57485c"},
    "orgId": {"example": "org_1"},
    "runId": {"example": "5253807e-6926-45d8-9773-75714f40cade"},
    "productId": {"example": "prod_sandbox"},
    "priceId": {"example": "price_sandbox"},
    "couponId": {"example": "SUMMER"},
    "stripeId": {"example": "pi_3a1b2"},
    "subscriptionId": {"example": "sub_3a1b2"},
    "endpointId": {"format": "uuid", "example": "1f0e6f5c-6f0b-4b0a-9d0e-3f5f0f6f7a11"},
    "eventId": {"format": "uuid", "example": "0a9d7f3e-2c5b-4c1d-8e6f-7b8a9c0d1e2f"},
    "appId": {"example": "shop"},
}


class CamelCasePlugin(FlaskPlugin):  # type: ignore[misc]
    """Names the variables of a path as the contract does, and an operation by the view that answers it."""

    def operation_helper(self, operations: dict[str, Any], rule: Rule, **_: Any) -> None:
        """Name the operations: a client's method is called as the view is."""
        name = camel_case(rule.endpoint.rpartition(".")[2])
        for method, operation in operations.items():
            responses = {str(status): operation["responses"][status] for status in sorted(operation["responses"])}
            operations[method] = {"operationId": name, **operation, "responses": responses}

    @staticmethod
    def flaskpath2openapi(path: str) -> str:
        return route_template(path)

    def rule_to_params(self, rule: Rule) -> list[dict[str, Any]]:
        return [_described(parameter) for parameter in super().rule_to_params(rule)]


def _described(parameter: dict[str, Any]) -> dict[str, Any]:
    """A variable of a path by its name on the wire, with what is said of it."""
    name = camel_case(parameter["name"])
    return {**parameter, "name": name, "schema": {**parameter["schema"], **PATH_VARIABLES.get(name, {})}}


class RulesConverter(OpenAPIConverter):
    """Writes down what apispec leaves out: the rules of a map's keys, and what a schema says of itself as a whole.

    A default is told in words: with the keyword `default`, openapi-typescript makes a field one that has to be sent.
    https://openapi-ts.dev/cli
    """

    def init_attribute_functions(self) -> None:
        super().init_attribute_functions()
        self.add_attribute_function(type(self).key_rules)

    def schema2jsonschema(self, schema: Any) -> dict[str, Any]:
        return {**super().schema2jsonschema(schema), **getattr(schema, "document", {})}

    def field2property(self, field: Field[Any]) -> dict[str, Any]:
        described = super().field2property(field)
        if None in described.get("enum", ()):
            # The values say it all; of each type beside them, openapi-python-client makes an enumeration of its own.
            del described["type"]
        if "default" not in described:
            return described
        words = [described.get("description", ""), f"`{described.pop('default')}` where it is left out."]
        return {**described, "description": " ".join(filter(None, words))}

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

    def _register_pagination_header(self) -> None:
        """Leave out flask-smorest's own pages, which no route has, and their schema."""


class OrjsonProvider(JSONProvider):
    """What `jsonify` and `request.json` use."""

    def dumps(self, obj: Any, *, indent: int | None = None, **_: Any) -> str:
        return orjson.dumps(obj, option=orjson.OPT_INDENT_2 if indent else None).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        return orjson.loads(s)

    def response(self, *args: Any, **kwargs: Any) -> Response:
        return Response(orjson.dumps(self._prepare_response_obj(args, kwargs)), content_type="application/json")


# An answer to a request that is wrong everywhere is no longer than the request.
MAX_ERRORS = 20


class RequestParser(FlaskParser):
    """Reads request bodies strictly, and says what is wrong with them in the shape of the contract."""

    DEFAULT_VALIDATION_STATUS = 400

    def load_json(self, req: Request, schema: Schema) -> Any:
        """The body's JSON.

        :raises UnsupportedMediaType: when the body is said to be something else.
        :raises InvalidRequest: when it is no JSON, or too deep to parse.
        """
        sent = _json_of(req)
        if isinstance(schema, RequestSchema):
            # Looked for with the answer, once the body is known to be valid.
            g.ignored_names = schema.ignored_names(sent)
        # Where there is no body, its key may still say which app the request is for.
        known = {} if sent is missing else sent
        added = identity_of(known, schema) if isinstance(known, dict) else {}
        return {**known, **added} if added else sent

    def load_querystring(self, req: Request, schema: Schema) -> Any:
        """The query.

        :raises InvalidRequest: when a field that takes one value has several: all but one would be dropped.
        """
        single = [str(field.data_key) for field in schema.fields.values() if not isinstance(field, List)]
        if repeated := [name for name in single if len(req.args.getlist(name)) > 1]:
            raise InvalidRequest({name: ["Must be given once."] for name in repeated})
        sent = MultiDict(req.args)
        sent.update(identity_of(req.args, schema))
        return self._makeproxy(sent, schema)

    def handle_error(self, error: ValidationError, *_: Any, **__: Any) -> NoReturn:
        """Say which fields are wrong.

        :raises InvalidRequest: always.
        """
        found = list(islice(_named_sentences(error), MAX_ERRORS + 1))
        field_errors: dict[str, list[str]] = {}
        form_errors: list[str] = []
        for name, sentence in found[:MAX_ERRORS]:
            sentences = form_errors if name == "_schema" else field_errors.setdefault(name, [])
            sentences.append(sentence)
        if len(found) > MAX_ERRORS:
            form_errors.append(f"There are more errors; the first {MAX_ERRORS} are shown.")
        raise InvalidRequest(field_errors, form_errors)


def _json_of(req: Request) -> Any:
    """The body's JSON, or `missing` where there is no body."""
    body = req.get_data(cache=True)
    if not body and not req.content_type:
        return missing
    if not is_json_request(req):
        raise UnsupportedMediaType
    try:
        return orjson.loads(body) if body else missing
    except orjson.JSONDecodeError:
        raise InvalidRequest(form_errors=["The body is not readable as JSON."]) from None


def _named_sentences(error: ValidationError) -> Iterator[tuple[str, str]]:
    """What is wrong, each sentence with the name of its field."""
    for messages in error.normalized_messages().values():
        for name, found in messages.items():
            for sentence in _sentences(found):
                yield str(name), sentence


def _sentences(found: Any, where: str = "") -> Iterator[str]:
    """Flatten marshmallow's nested messages: `{0: {"priceId": ["Missing."]}}` becomes `0.priceId: Missing.`."""
    if isinstance(found, dict):
        for name, inner in found.items():
            yield from _sentences(inner, where if name in ("key", "value", "_schema") else f"{where}.{name}")
    else:
        # A name may be the caller's own, of any length.
        prefix = f"{where.lstrip('.')[:MAX_NAMES_LENGTH]}: " if where else ""
        yield from (f"{prefix}{sentence}" for sentence in found)


ERROR_DESCRIPTIONS = {
    400: "The request breaks a rule, the app has no Stripe key, or Stripe calls the request invalid.",
    401: "No API key.",
    402: "The card was declined.",
    403: "A wrong API key, or one that isn't good for that.",
    404: "There is no such thing.",
    409: "A request with the same Idempotency-Key is being worked on, or the payment isn't ready for that.",
    413: "The body is over 1 MiB.",
    415: "The body is not JSON.",
    422: "The Idempotency-Key was used with another request.",
    429: "Stripe is rate limiting the app, or many wrong keys came from the caller's address.",
    502: "An upstream answered nonsense or refused us.",
    503: "An upstream or the database is down or overloaded.",
    504: "An upstream took too long.",
}
RETRIED_ERRORS = (409, 429, 503)
# Of these statuses, what a retry doesn't change.
LASTING_CODES = frozenset({"customer_exists"})
# What any route that answers the status may answer; a route that has codes of its own for it names all.
ERROR_CODES = {
    400: "invalid_request",
    401: "missing_api_key",
    402: "card_declined",
    404: "not_found",
    409: "idempotency_key_in_use",
    413: "request_entity_too_large",
    415: "unsupported_media_type",
    422: "idempotency_key_reused",
    429: "stripe_rate_limited",
    502: "upstream_error",
    503: "database_unavailable",
    504: "upstream_timeout",
}
# What any route answers that a key of an app opens.
KEY_CODES = {403: ("invalid_api_key", "key_of_another_app", "scope_missing")}
# What any route answers that asks for a key.
WRONG_KEYS_CODE = "too_many_wrong_keys"
# What a route answers that asks Stripe with an app's key.
STRIPE_CODES = (
    *("invalid_request", "no_stripe_key", "resource_missing"),
    *("upstream_error", "stripe_key_refused"),
    *("database_unavailable", "upstream_unavailable", "overloaded"),
)


class Blueprint(SmorestBlueprint):  # type: ignore[misc]
    """A flask-smorest blueprint with our parser and our errors."""

    ARGUMENTS_PARSER = RequestParser()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepare_doc_cbks.append(_document_identity)

    def arguments(self, schema: type[Schema], **kwargs: Any) -> Any:
        """Document and read what a view takes; the schema is put together once, and not for each request."""
        reader = schema()
        read = super().arguments(reader, **kwargs)
        identity = {name: reader.fields.get(name) for name in getattr(schema, "identity", ())}

        def decorate(view: Any) -> Any:
            reading = read(view)
            reading._apidoc["identity"] = {**reading._apidoc.get("identity", {}), **identity}
            return reading

        return decorate

    def response(self, *args: Any, headers: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
        """Document and serialize what a view answers; like every answer, it carries the request's id."""
        return super().response(*args, headers={REQUEST_ID: REQUEST_ID, **(headers or {})}, **kwargs)

    def alt_response(self, *args: Any, headers: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
        """Document what else a view answers; like every answer, it carries the request's id."""
        return super().alt_response(*args, headers={REQUEST_ID: REQUEST_ID, **(headers or {})}, **kwargs)

    @staticmethod
    def _prepare_response_content(data: Any) -> Any:
        """What is answered, with the names of what the request held in vain: a misspelt currency makes dollars."""
        ignored = [name[:MAX_IGNORED_LENGTH] for name in islice(g.get("ignored_names", ()), MAX_IGNORED)]
        if not ignored:
            return data
        log.warning("fields of the request were ignored: %s", ", ".join(ignored)[:MAX_NAMES_LENGTH])
        return {**data, "ignoredFields": ignored}

    def errors(self, *statuses_or_codes: int | str) -> Any:
        """Document that a view answers these errors; what is called stays the view itself.

        A status stands for its code in `ERROR_CODES`; where it has others as well, all of them are named.
        """

        def decorate(view: Any) -> Any:
            described = view
            for status, codes in _by_status(statuses_or_codes).items():
                described = self._error(status, codes)(described)
            view._apidoc = described._apidoc
            return view

        return decorate

    def _error(self, status: int, codes: list[str]) -> Any:
        is_retried = status in RETRIED_ERRORS and not LASTING_CODES.issuperset(codes)
        headers = {RETRY_AFTER: RETRY_AFTER} if is_retried else None
        description = ERROR_DESCRIPTIONS[status]
        return self.alt_response(
            status,
            schema=ErrorSchema,
            description=description,
            headers=headers,
            examples={code: code for code in codes},
        )


def _document_identity(doc: dict[str, Any], doc_info: dict[str, Any], *, api: Api, **_: Any) -> dict[str, Any]:
    """Add the headers that stand in for fields, with the fields' rules, to what an operation takes."""
    headers = [
        {
            "in": "header",
            "name": IDENTITY_HEADERS[name],
            "required": False,
            "description": f"Stands in for `{camel_case(name)}`. Where both are sent, they have to be equal."
            + (" Of several, by commas, the first is meant." if name == LISTED else ""),
            "schema": {"type": "string", **({} if name == LISTED else _rules_of(field, api))},
        }
        for name, field in doc_info.get("identity", {}).items()
    ]
    return {**doc, "parameters": [*doc.get("parameters", ()), *headers]} if headers else doc


def _rules_of(field: Field[Any] | None, api: Api) -> dict[str, Any]:
    """What is documented of a field and holds for its header, which may be empty; of a path's variable, nothing."""
    documented = api.ma_plugin.converter.field2property(field) if field else {}
    return {rule: documented[rule] for rule in ("maxLength", "pattern") if rule in documented}


def _by_status(statuses_or_codes: Iterable[int | str]) -> dict[int, list[str]]:
    """The codes of each status."""
    found: dict[int, list[str]] = {}
    for each in statuses_or_codes:
        if isinstance(each, int):
            found.setdefault(each, [])
        else:
            found.setdefault(status_of(each), []).append(each)
    known = {status: codes or _common_codes(status) for status, codes in found.items()}
    return known | {429: [*known.get(429, ()), WRONG_KEYS_CODE]} if 401 in known else known


def _common_codes(status: int) -> list[str]:
    return list(KEY_CODES[status]) if status in KEY_CODES else [ERROR_CODES[status]]


api = ContractApi(
    spec_kwargs={
        "flask_plugin": CamelCasePlugin(),
        "marshmallow_plugin": RulesPlugin(),
        "extra_plugins": [ExamplesPlugin()],
    }
)
