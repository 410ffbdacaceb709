"""The OpenAPI document is one that clients can be made from: names, examples, order."""

import json
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.examples import find_error
from tests.document import DOCUMENT, OPERATIONS, PATH, Operation
from tests.stand_ins import StandIns
from tests.test_errors import table
from tests.webhooks import SECRET, sign

SCHEMAS = DOCUMENT["components"]["schemas"]
EXAMPLES = DOCUMENT["components"]["examples"]

# Answered before a route is chosen, or to a method or a range of a page that the document doesn't hold, or by a bug.
OF_NO_ROUTE = {
    *("bad_request", "malformed_request", "request_line_too_long", "unknown_expectation", "header_fields_too_large"),
    *("unknown_transfer_coding", "method_not_allowed", "requested_range_not_satisfiable", "internal_error"),
}


of_each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each.method} {each.path}")


def examples_of(media: dict[str, Any]) -> list[Any]:
    """The values of a media type's examples."""
    if "example" in media:
        return [media["example"]]
    return [EXAMPLES[each["$ref"].rpartition("/")[2]]["value"] for each in media.get("examples", {}).values()]


def pascal(name: str) -> str:
    return name[:1].upper() + name[1:]


def derived_names(name: str, schema: dict[str, Any]) -> Iterator[str]:
    """The names that generators give to the objects and the enumerations inside a schema: its own and the field's."""
    for field, inner in schema.get("properties", {}).items():
        inside = inner.get("items", inner)
        if {"enum", "properties", "additionalProperties"} & set(inside):
            yield name + pascal(field)
        yield from derived_names(name + pascal(field), inside)


class TestNames:
    @of_each_operation
    def test_every_operation_is_named_as_a_clients_method(self, operation: Operation) -> None:
        assert re.fullmatch("[a-z]+([A-Z][a-z]+)+", operation.described["operationId"])

    def test_no_two_operations_have_one_name(self) -> None:
        names = Counter(operation.described["operationId"].lower() for operation in OPERATIONS)
        assert not [name for name, count in names.items() if count > 1]

    def test_nothing_inside_a_schema_gets_the_name_of_another(self) -> None:
        """A generator that makes two things of one name drops one, and every route that needs it."""
        derived = [each for name, schema in SCHEMAS.items() for each in derived_names(name, schema)]
        names = Counter(each.lower() for each in [*SCHEMAS, *derived])
        assert not [name for name, count in names.items() if count > 1]

    @pytest.mark.parametrize("kind", ["schemas", "headers", "examples"])
    def test_every_component_is_used(self, kind: str) -> None:
        text = PATH.read_text()
        unused = [name for name in DOCUMENT["components"][kind] if f'"#/components/{kind}/{name}"' not in text]
        assert not unused


class TestFields:
    def test_no_field_has_to_be_sent_because_of_its_default(self) -> None:
        """TypeScript's types, by their generator's own default, require a field for which the document says one."""
        assert '"default":' not in PATH.read_text()

    def test_nothing_that_may_be_null_has_a_type_beside_its_values(self) -> None:
        fields = [field for schema in SCHEMAS.values() for field in schema.get("properties", {}).values()]
        values = [field for field in fields if None in field.get("enum", ())]
        assert values
        assert not [field for field in values if "type" in field]


class TestOrder:
    def test_payments_come_first_and_health_last(self) -> None:
        tags = [tag["name"] for tag in DOCUMENT["tags"]]
        of_paths = [operation.described["tags"][0] for operation in OPERATIONS]
        assert (tags[0], tags[-1]) == ("payments", "health")
        assert of_paths == sorted(of_paths, key=tags.index)

    @of_each_operation
    def test_the_answers_come_by_their_status(self, operation: Operation) -> None:
        statuses = list(operation.described["responses"])
        assert statuses == sorted(statuses)

    def test_each_value_has_its_line(self) -> None:
        """So that a change shows in a diff as what it is."""
        assert PATH.read_text() == json.dumps(DOCUMENT, indent=2, ensure_ascii=False) + "\n"

    def test_it_says_where_the_service_is(self) -> None:
        assert [server["url"] for server in DOCUMENT["servers"]] == ["/"]


class TestExamples:
    @of_each_operation
    def test_every_body_has_some_that_its_schema_allows(self, operation: Operation) -> None:
        """A field without one is null: say `metadata={"example": ...}` in its schema."""
        for name, media in operation.bodies():
            validator = jsonschema_rs.Draft202012Validator(
                {**media["schema"], "components": DOCUMENT["components"]}, validate_formats=True
            )
            examples = examples_of(media)
            assert examples, name
            found = [f"{name} at {error.instance_path}: {error.message}" for each in examples
                     for error in validator.iter_errors(each)]  # fmt: skip
            assert not found

    @of_each_operation
    def test_every_variable_of_a_path_has_one(self, operation: Operation) -> None:
        """The docs page fills it in: name it in `PATH_VARIABLES`."""
        assert None not in operation.examples_in("path").values()

    @of_each_operation
    def test_an_error_has_one_by_each_of_its_codes(self, operation: Operation) -> None:
        for status, response in operation.described["responses"].items():
            media = response.get("content", {}).get("application/json", {})
            if media.get("schema") != {"$ref": "#/components/schemas/Error"}:
                continue
            assert media["examples"], status
            for code, reference in media["examples"].items():
                assert reference == {"$ref": f"#/components/examples/{code}"}
                assert find_error(code) == (int(status), EXAMPLES[code]["value"])
                assert EXAMPLES[code]["value"]["code"] == code

    def test_every_code_is_an_example_of_a_route(self) -> None:
        """Fails when an error is new: name its code in the `errors` of the routes that answer it."""
        ours = {code for code, _, _ in table()}
        assert ours - OF_NO_ROUTE == ours & set(EXAMPLES)

    @of_each_operation
    def test_what_they_ask_for_is_answered(
        self, operation: Operation, client: FlaskClient, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With 404 only where the route knows it, and the example names what nobody has made."""
        # No name of an example is looked up.
        monkeypatch.setattr("app.services.upstreams.event_endpoints.look_up", lambda *_: [])
        stand_ins.control("keys", provider="stripe-webhook", appId="shop", key=SECRET)

        status = str(send(client, operation).status_code)

        assert status == "200" or (status == "404" and status in operation.described["responses"])


def send(client: FlaskClient, operation: Operation) -> TestResponse:
    """Ask for what the examples say; only a signature has to be of now, and a key for one request."""
    body = json.dumps(operation.request).encode() if operation.takes_body else b""
    return client.open(
        operation.path.format(**operation.examples_in("path")),
        method=operation.method.upper(),
        query_string=operation.examples_in("query"),
        data=body,
        content_type="application/json" if body else None,
        headers={"Stripe-Signature": sign(body), "Idempotency-Key": uuid.uuid4().hex},
    )
