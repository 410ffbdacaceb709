"""Errors: the drawn tree and the table of codes say what there is, no more and no less."""

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import stripe
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app import create_app, errors
from app.config import Settings
from app.database import Batch
from app.errors import ServiceError, StripeRefusal, is_database_outage
from app.services import Services
from app.services.operations.kind import Declined
from app.services.upstreams.stripe import CardDeclined, NoSuchObject, ObjectExists, _our_error
from tests.web import API_KEY

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "errors.md"
STRIPES = "Stripe's"
# What Stripe answers decides of these; how each is made is tested below.
REFUSALS = {StripeRefusal: "400, 402", CardDeclined: "402", Declined: "402", NoSuchObject: "400", ObjectExists: "400"}

_DRAWN = re.compile(
    r"(?P<branch>[│├└─ ]*)(?P<name>\w+) +(?P<status>\d{3}(?:, \d{3})*) +(?P<code>[a-z_]+|Stripe's)"
    r"(?: +(?P<module>[\w.]+))?(?P<internal> \(internal\))?"
)
_BRANCH_WIDTH = 4
_ROW = re.compile(r"\| `(?P<code>[a-z_]+)` \| (?P<status>\d{3}) \| (?P<retry_after>\d*) ?\| .+ \| .+ \|")


@dataclass(frozen=True)
class Drawn:
    """An error as the tree shows it."""

    name: str
    parent: str
    status: str
    code: str
    module: str


def drawn_lines() -> list[re.Match[str]]:
    """The lines of the tree."""
    tree = (errors.__doc__ or "").split("\n\n")[1]
    found = [_DRAWN.fullmatch(line) for line in tree.splitlines()]
    assert None not in found, tree
    return [line for line in found if line]


def drawn_errors() -> list[Drawn]:
    """The errors of the tree, each with what it hangs on."""
    path: list[str] = []
    drawn = []
    for line in drawn_lines():
        path[len(line["branch"]) // _BRANCH_WIDTH :] = [line["name"]]
        module = f"app.{line['module'] or 'errors'}"
        drawn.append(Drawn(line["name"], "".join(path[-2:-1]), line["status"], line["code"], module))
    return drawn


def internal_codes() -> set[str]:
    return {line["code"] for line in drawn_lines() if line["internal"]}


def defined_errors() -> set[type[ServiceError]]:
    """Every error of ours, wherever it is defined."""
    for path in (ROOT / "app").rglob("*.py"):
        # gunicorn's settings end the process where there are none.
        if not {"sandbox", "gunicorn_config.py"} & set(path.parts):
            parts = path.relative_to(ROOT).with_suffix("").parts
            importlib.import_module(".".join(part for part in parts if part != "__init__"))
    return {ServiceError, *_subclasses(ServiceError)}


def _subclasses(error: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for subclass in error.__subclasses__():
        if subclass.__module__.startswith("app."):
            yield subclass
            yield from _subclasses(subclass)


def shown(error: type[ServiceError]) -> Drawn:
    """An error as the tree should show it."""
    parent = error.__base__ if error is not ServiceError else None
    status = REFUSALS.get(error, str(error.status))  # type: ignore[call-overload]
    code = STRIPES if error in REFUSALS else error.code
    return Drawn(error.__name__, parent.__name__ if parent else "", status, code, error.__module__)


def table() -> list[tuple[str, str, str]]:
    """The rows of docs/errors.md: code, status, Retry-After."""
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    found = [_ROW.fullmatch(row) for row in rows]
    assert None not in found, rows
    return [(row["code"], row["status"], row["retry_after"]) for row in found if row]


@pytest.fixture
def client() -> FlaskClient:
    client = create_app(Settings.from_environment({"STRIPE_SERVICE_API_KEY": API_KEY})).test_client()
    client.environ_base["HTTP_X_API_KEY"] = API_KEY
    return client


# What makes Flask and werkzeug answer with an error of their own.
JSON = {"content_type": "application/json"}
OF_HTTP: dict[str, dict[str, Any]] = {
    "bad_request": {
        "path": "/stats", "method": "POST", "data": "{", **JSON,
        "environ_overrides": {"CONTENT_LENGTH": "2"},
    },
    "not_found": {"path": "/nothing"},
    "method_not_allowed": {"path": "/health", "method": "POST"},
    "request_entity_too_large": {"path": "/stats", "method": "POST", "data": bytes(1024 * 1024 + 1), **JSON},
    "unsupported_media_type": {"path": "/stats", "method": "POST", "data": "{}", "content_type": "text/plain"},
    "requested_range_not_satisfiable": {"path": "/openapi.json", "headers": {"Range": "bytes=999999999-"}},
}  # fmt: skip


def answer(kind: Any, status: int, code: str) -> Any:
    """An error as the SDK makes it of what Stripe answers."""
    body = {"error": {"message": "No.", "code": code}}
    return kind("No.", "", code, http_status=status, json_body=body)


class TestTree:
    def test_it_draws_every_error_with_its_status_code_and_module(self) -> None:
        """Fails when an error is added, moved or taken away, or answers otherwise, and the tree stays as it was."""
        drawn = drawn_errors()
        assert len(drawn) == len(set(drawn))
        assert set(drawn) == {shown(error) for error in defined_errors()}

    @pytest.mark.parametrize(
        ("answered", "kind", "status"),
        [
            (answer(stripe.CardError, 402, "card_declined"), CardDeclined, 402),
            (answer(stripe.InvalidRequestError, 400, "parameter_invalid"), StripeRefusal, 400),
            (answer(stripe.InvalidRequestError, 404, "resource_missing"), NoSuchObject, 400),
            (answer(stripe.InvalidRequestError, 400, "resource_already_exists"), ObjectExists, 400),
        ],
    )
    def test_it_gives_a_refusal_the_status_that_is_drawn_and_stripes_code(
        self, answered: Any, kind: type[StripeRefusal], status: int
    ) -> None:
        refusal = _our_error(answered)

        assert isinstance(refusal, StripeRefusal)
        assert (type(refusal), refusal.status, refusal.code) == (kind, status, answered.code)
        assert str(refusal.status) in REFUSALS[kind].split(", ")


class TestTable:
    def test_it_has_every_code_that_is_answered_and_no_other(self) -> None:
        """Fails when a code is added or taken away, or has another status or Retry-After, and the page stays."""
        ours = {
            (error.code, str(error.status), str(error.retry_after_seconds or ""))
            for error in defined_errors() - set(REFUSALS)
            if error.code not in internal_codes()
        }
        codes = {code for code, _, _ in ours}
        rows = table()

        assert len(rows) == len({code for code, _, _ in rows})
        assert {row for row in rows if row[0] in codes} == ours
        assert {code for code, _, _ in rows} == codes | set(OF_HTTP)

    @pytest.mark.parametrize("code", OF_HTTP)
    def test_it_has_the_status_of_what_flask_answers(self, client: FlaskClient, code: str) -> None:
        request = OF_HTTP[code]
        with client.open(
            request["path"], **{name: value for name, value in request.items() if name != "path"}
        ) as answer:
            assert answer.json["code"] == code
            assert (code, str(answer.status_code), "") in table()

    def test_it_says_that_stripes_own_codes_come_through(self) -> None:
        """Neither is ours, and both are what callers see most."""
        (section,) = re.findall(r"^## Stripe's codes\n\n(.+?)\n\n", DOCS.read_text(), re.MULTILINE | re.DOTALL)
        assert {"400", "402"} <= set(re.findall(r"\b\d{3}\b", section))


class TestIsDatabaseOutage:
    def raised(self, services: Services, sqlstate: str) -> DBAPIError:
        """What a statement fails with that PostgreSQL refuses so."""
        refuse = f"DO $$ BEGIN RAISE SQLSTATE '{sqlstate}'; END $$"
        with pytest.raises(DBAPIError) as caught:
            services.database.run(Batch(text(refuse)))
        return caught.value

    @pytest.mark.parametrize(
        "sqlstate",
        [
            *("08006", "25006", "25P03", "25P04", "40001", "40P01", "53100", "53200", "53300", "53400", "55P03"),
            *("57014", "57P01", "57P02", "57P03", "57P04", "57P05", "58000", "58030"),
        ],
    )
    def test_it_is_one_when_the_server_is_away_full_or_only_reads(self, services: Services, sqlstate: str) -> None:
        assert is_database_outage(self.raised(services, sqlstate))

    @pytest.mark.parametrize("sqlstate", ["22012", "23505", "25001", "25P02", "42501", "42601", "42P01", "XX001"])
    def test_it_is_none_when_a_statement_or_the_data_is_wrong(self, services: Services, sqlstate: str) -> None:
        assert not is_database_outage(self.raised(services, sqlstate))


class TestNextStep:
    """What callers do wrong most, each with what to do next."""

    @pytest.mark.parametrize(
        ("code", "advice"),
        [("request_entity_too_large", "at most 1 MiB"), ("unsupported_media_type", "Content-Type: application/json")],
    )
    def test_the_sentence_says_it(self, client: FlaskClient, code: str, advice: str) -> None:
        wrong = OF_HTTP[code]
        answer = client.open(wrong["path"], **{name: value for name, value in wrong.items() if name != "path"})

        assert advice in answer.json["error"]

    @pytest.mark.parametrize(
        ("path", "right"),
        [
            ("/stats/", "/stats"),
            ("/checkout//create", "/checkout/create"),
            ("/status/x/", "/status/x"),
            ("/checkout/create/?a=b", "/checkout/create"),
        ],
    )
    def test_a_slash_too_many_names_the_right_path(self, client: FlaskClient, path: str, right: str) -> None:
        answer = client.get(path)

        assert (answer.status_code, answer.json["code"]) == (404, "not_found")
        assert answer.json["error"] == f"Not Found: the path has a slash too many, use {right}"

    @pytest.mark.parametrize("path", ["/nothing", "/nothing/"])
    def test_a_path_that_is_no_route_names_none(self, client: FlaskClient, path: str) -> None:
        assert client.get(path).json["error"] == "Not Found"
