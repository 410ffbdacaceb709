"""The work that one request may cause is bounded, whatever it holds.

The fields are those of the OpenAPI document, so a new one is tried without a word here. Each is sent what makes a
regular expression go back and forth, a parser nest or a list grow. Time is the CPU time of the thread that answers,
which other processes don't add to. With `-s`, the worst time of each field is printed.
"""

import gc
import inspect
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any
from urllib.parse import quote, unquote

import orjson
import pytest
from flask import Flask
from werkzeug.test import EnvironBuilder, run_wsgi_app

from app.schemas.base import WholeMatch
from tests.soak import amount
from tests.web import API_KEY
from tests.webhooks import event, sign

MAX_SECONDS = 0.05
# What a body of one mebibyte may take as a multiple of what orjson takes to read it, which comes before all else and
# is mostly Python's garbage collection.
MAX_READINGS = 10
LENGTH = 100_000
MAX_BODY = 1024 * 1024
# Of a path or a query, beside the rest of the line, which gunicorn reads up to 8,190 bytes.
MAX_LINE = 8_000
WEBHOOK = "/webhooks/stripe"


def _long(part: str, end: str = "") -> str:
    return (part * (LENGTH // len(part) + 1))[: LENGTH - len(end)] + end


KINDS = {
    "letters": _long("a"),
    "letters and a mark": _long("a", "!"),
    "dots": _long("."),
    "dots and a line": _long(".", "\n"),
    "dashes": _long("-"),
    "digits": _long("9"),
    "a time": "2030-01-01T00:00:00." + _long("1", "x"),
    "a host": "http://" + _long("a."),
    "hosts": "http://" + _long("://"),
    "a port": "http://a:" + _long("1", " "),
    "an address": "http://[" + _long(":"),
    "an e-mail": "a@" + _long("a."),
    "e-mails": _long("a@a.", "@"),
    "at signs": _long("@."),
    "spaces": _long(" "),
    "NULs": _long("\x00"),
    "surrogates": _long("\ud800"),
    "percent": _long("%2F"),
    "combining": _long("e\u0301"),
    "brackets": _long("["),
    "braces": _long("{}"),
    "quotes": _long("\"'"),
    "lines": _long("\r\n"),
    "right to left": _long("\u202e\u05d0"),
    "emojis": _long("\U0001f469\u200d\U0001f4bb"),
    "commas": _long(","),
    "signatures": _long("v1=a,"),
    "secrets": _long("a_secret_"),
    "keys": _long("sk_*"),
    "slashes": _long("/"),
}


@dataclass(frozen=True)
class Place:
    """Where in a request something can be put: a field of its body, its query, its path or its headers."""

    method: str
    path: str
    where: str
    name: tuple[str, ...]
    example: Any = None

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path} {self.where} {'.'.join(self.name)}"

    def environ(self, value: Any) -> dict[str, Any]:
        """The example with a value in this place, as gunicorn hands it over."""
        body = json.dumps(self._body(value), separators=(",", ":")).encode() if self.example is not None else b""
        assert len(body) <= MAX_BODY
        headers = {"X-API-Key": API_KEY, "Stripe-Signature": sign(body)}
        if self.where == "header":
            headers[self.name[0]] = _bytes_of(value).decode("latin-1")
        environ = EnvironBuilder(method=self.method, data=body, content_type="application/json").get_environ()
        environ |= {f"HTTP_{name.upper().replace('-', '_')}": text for name, text in headers.items()}
        return environ | {"PATH_INFO": self._path(value), "QUERY_STRING": self._query(value)}

    def _path(self, value: Any) -> str:
        def segment(variable: re.Match[str]) -> str:
            meant = self.where == "path" and self.name == (variable[1],)
            return _of_a_line(value) if meant else "a"

        return unquote(re.sub(r"\{(\w+)\}", segment, self.path), "latin-1")

    def _query(self, value: Any) -> str:
        given = f"{self.name[0]}={_of_a_line(value)}" if self.where == "query" else ""
        return given if "/stats" in self.path or given.startswith("appId=") else f"appId=shop&{given}"

    def _body(self, value: Any) -> Any:
        if self.where != "body":
            return self.example
        wrapped = _wrapped(self.name, value)
        return {**self.example, **wrapped} if isinstance(wrapped, dict) else wrapped


def _bytes_of(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def _of_a_line(value: str) -> str:
    """As much of it as gunicorn reads in the line of a request."""
    return quote(_bytes_of(value)[:MAX_LINE], safe="")[:MAX_LINE].rstrip("%")


def _wrapped(name: tuple[str, ...], value: Any) -> Any:
    """The value at its place in an object: a step `[]` is a list's only item, `{}` an object's key."""
    for step in reversed(name):
        value = [value] if step == "[]" else {value: "v"} if step == "{}" else {step: value}
    return value


class Document:
    """The fields of all requests, as the OpenAPI document describes them."""

    def __init__(self, application: Flask) -> None:
        self.spec = application.extensions["flask-smorest"]["apis"][""]["ext_obj"].spec.to_dict()

    def places(self) -> Iterator[Place]:
        for path, item in self.spec["paths"].items():
            for method in (method for method in item if method != "parameters"):
                yield from self._places(
                    method, path, [*item.get("parameters", ()), *item[method].get("parameters", ())]
                )
                if self._body_of(method, path):
                    yield from (self._of_body(method, path, name) for name, _ in self._fields(method, path))
        yield from (Place("get", "/stats", "header", (name,)) for name in ("X-API-Key", "X-Request-ID"))
        yield Place("get", "/metrics", "header", ("Authorization",))

    def _places(self, method: str, path: str, parameters: list[dict[str, Any]]) -> Iterator[Place]:
        for parameter in parameters:
            example = self._example(method, path) if self._body_of(method, path) else None
            yield Place(method, path, parameter["in"], (parameter["name"],), example)

    def lists(self) -> Iterator[Place]:
        return self._bodies(lambda schema: "items" in schema)

    def objects(self) -> Iterator[Place]:
        """All that may hold an object, and the body itself."""
        return self._bodies(lambda schema: "properties" in schema or "propertyNames" in schema, whole=True)

    def _bodies(self, is_meant: Callable[[dict[str, Any]], bool], *, whole: bool = False) -> Iterator[Place]:
        for path, item in self.spec["paths"].items():
            for method in item:
                if method == "parameters" or not self._body_of(method, path):
                    continue
                yield from (self._of_body(method, path, name) for name, schema in self._all(method, path)
                            if is_meant(schema) and (name or whole))  # fmt: skip

    def _body_of(self, method: str, path: str) -> dict[str, Any]:
        content = self.spec["paths"][path][method].get("requestBody", {}).get("content", {})
        return self._resolved(content.get("application/json", {}).get("schema", {}))

    def _example(self, method: str, path: str) -> dict[str, Any]:
        about = {"id": "pi_1", "object": "payment_intent"}
        return (
            event("payment_intent.created", about)
            if path.startswith(WEBHOOK)
            else self._body_of(method, path)["example"]
        )

    def _of_body(self, method: str, path: str, name: tuple[str, ...]) -> Place:
        return Place(method, path, "body", name, self._example(method, path))

    def _fields(self, method: str, path: str) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        return ((name, schema) for name, schema in self._all(method, path) if name and "properties" not in schema)

    def _all(self, method: str, path: str) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        return self._walk(self._body_of(method, path), ())

    def _walk(self, schema: dict[str, Any], name: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        yield name, schema
        inner = {(field,): found for field, found in schema.get("properties", {}).items()}
        inner |= {("[]",): schema["items"]} if "items" in schema else {}
        inner |= {("{}",): schema["propertyNames"]} if "propertyNames" in schema else {}
        inner |= {("k",): schema["additionalProperties"]} if schema.get("additionalProperties") else {}
        for step, found in inner.items():
            yield from self._walk(self._resolved(found), (*name, *step))

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        for one in [schema] if "$ref" in schema else schema.get("anyOf", schema.get("allOf", ())):
            if "$ref" in one:
                return self.spec["components"]["schemas"][one["$ref"].rpartition("/")[2]]
        return schema


def answer(application: Flask, place: Place, value: Any, *, limit: float) -> tuple[int, float]:
    """The status and the CPU time in seconds; the least of three, where the first is over the limit.

    The garbage of what went before may be collected in any one.
    """
    first = _answer_once(application, place, value)
    if first[1] <= limit:
        return first
    return min((_answer_once(application, place, value) for _ in range(2)), key=itemgetter(1))


def _answer_once(application: Flask, place: Place, value: Any) -> tuple[int, float]:
    environ = place.environ(value)
    began = time.thread_time()
    _, status, _ = run_wsgi_app(application.wsgi_app, environ)
    return int(status.split()[0]), time.thread_time() - began


def require_all_within(limit: float, taken: dict[str, float]) -> None:
    """Print the times, worst first, and fail when one is over the limit."""
    print(f"\nat most {limit * 1000:.1f} ms:")
    for name, seconds in sorted(taken.items(), key=lambda item: -item[1]):
        print(f"{seconds * 1000:8.1f} ms  {name}")
    assert not {name: seconds for name, seconds in taken.items() if seconds > limit}


@pytest.fixture
def without_search_of_what_was_imported() -> Iterator[None]:
    """As a worker of gunicorn's begins: see `post_worker_init`."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def document(app: Flask) -> Document:
    return Document(app)


class TestFields:
    # Every field gets every kind in `make soak`, and a share of them here.
    SHARE = amount(3, 1)

    @pytest.mark.soak
    def test_no_text_in_any_field_takes_long(self, app: Flask, document: Document) -> None:
        """Fails when a pattern is tried before the length, and when one goes back and forth."""
        worst: dict[str, float] = {}
        for number, place in enumerate(document.places()):
            for kind in list(KINDS)[number % self.SHARE :: self.SHARE]:
                status, seconds = answer(app, place, KINDS[kind], limit=MAX_SECONDS)
                assert status != 500, (str(place), kind)
                worst[str(place)] = max(worst.get(str(place), 0), seconds)
        assert len(worst) > 100
        require_all_within(MAX_SECONDS, worst)


@pytest.mark.soak
@pytest.mark.usefixtures("without_search_of_what_was_imported")
class TestBodies:
    # Of what a body can hold.
    SHARE = amount(4, 1)

    @pytest.mark.parametrize("item", [{}, [], "", 1, None], ids=repr)
    def test_no_list_takes_long(self, app: Flask, document: Document, item: object) -> None:
        """Fails when the items are read before they are counted."""
        items = [item] * ((MAX_BODY - 10_000) // (len(json.dumps(item)) + 1) // self.SHARE)
        self.require_little_work(app, document.lists(), items)

    def test_no_object_takes_long(self, app: Flask, document: Document) -> None:
        """Fails when the keys are read before they are counted."""
        self.require_little_work(app, document.objects(), {f"{number:x}": 1 for number in range(100_000 // self.SHARE)})

    def require_little_work(self, app: Flask, places: Iterator[Place], value: object) -> None:
        limit = MAX_SECONDS + MAX_READINGS * self.seconds_to_read(json.dumps(value))
        answers = {str(place): answer(app, place, value, limit=limit) for place in places}
        assert answers
        assert all(status != 500 for status, _ in answers.values()), answers
        require_all_within(limit, {name: seconds for name, (_, seconds) in answers.items()})

    def seconds_to_read(self, text: str) -> float:
        began = time.thread_time()
        orjson.loads(text)
        return time.thread_time() - began


class TestPatterns:
    @pytest.mark.usefixtures("app")
    def test_each_is_linear(self) -> None:
        """Fails when a pattern goes back and forth: one that is linear takes 1 ms for this, others take seconds."""
        patterns = {**dict(patterns_of_modules()), **dict(patterns_of_schemas())}
        assert {"app.logs._SECRET", "app.web._ROUTE_VARIABLE"} <= patterns.keys()
        taken = {
            f"{name} {kind}": min(self._seconds(pattern, is_searched, text[:10_000] + text[-10_000:]) for _ in range(2))
            for name, (pattern, is_searched) in patterns.items()
            for kind, text in KINDS.items()
        }
        require_all_within(MAX_SECONDS, taken)

    def _seconds(self, pattern: re.Pattern[Any], is_searched: bool, given: str) -> float:
        is_of_bytes = isinstance(pattern.pattern, bytes)
        text: Any = given.encode(errors="replace") if is_of_bytes else given
        began = time.thread_time()
        if is_searched:
            pattern.sub(text[:0], text)
        else:
            pattern.fullmatch(text)
        return time.thread_time() - began


def patterns_of_modules() -> Iterator[tuple[str, tuple[re.Pattern[str], bool]]]:
    """All patterns at the top of our modules, and whether they are looked for anywhere in a text."""
    for module in list(sys.modules.values()):
        if module.__name__.startswith("app.") and not module.__name__.startswith("app.sandbox"):
            for name, value in vars(module).items():
                if isinstance(value, re.Pattern):
                    is_searched = re.search(rf"\b{name}\.(sub|search|find|split)", inspect.getsource(module))
                    yield f"{module.__name__}.{name}", (value, bool(is_searched))


def patterns_of_schemas() -> Iterator[tuple[str, tuple[re.Pattern[str], bool]]]:
    """All patterns of the validators that were made, which are those of the schemas."""
    for found in gc.get_objects():
        if isinstance(found, WholeMatch):
            yield found.regex.pattern, (found.regex, False)
