"""Schemathesis asks the running service for what the committed OpenAPI document says of it.

Every operation is asked what is on and beside each bound of its schema, and with values drawn at random, valid and not.
In `make soak` there are many more of the latter.
"""

import re
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from requests import PreparedRequest
from requests.auth import AuthBase
from schemathesis import APIOperation, Case, CheckContext, Response
from schemathesis.core import NOT_SET
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import create_engine

from tests.databases import empty
from tests.soak import amount
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import API_KEY, WebProcess
from tests.webhooks import SECRET, sign

DOCUMENT = Path(__file__).parents[2] / "openapi" / "openapi.json"
WEBHOOK = "/webhooks/stripe"
URI_TOO_LONG = 414
# What a line may have that gunicorn reads.
MAX_REQUEST_LINE = 8190

# What is asked for is something that exists, every other time.
KNOWN = {
    "body.lineItems[*].priceId": ["price_sandbox", "price_sandbox_monthly"],
    "body.productId": ["prod_sandbox"],
    "body.currency": ["usd", "EUR", "jpy"],
    # Empty is as good as absent: no customer is known beforehand.
    "body.customerId": [""],
    "path.priceId": ["price_sandbox", "price_sandbox_monthly"],
    "path.productId": ["prod_sandbox"],
}
# What no schema can say: that a page gave the cursor, when a time is, that an address or a port is one. And
# what the document says in words alone: which options don't go with each other.
BEYOND_A_SCHEMA = frozenset(
    {
        *(
            "cursor",
            "redeemBy",
            "expiresAt",
            "to",
            "successUrl",
            "cancelUrl",
            "returnUrl",
            "redirectOnCompletion",
            "url",
        ),
        *("captureMethod", "invoiceCreation", "trialDays", "customerCreation", "allowPromotionCodes", "lineItems"),
        *("orgId", "saveForLater", "paymentMethodId", "invoice", "description"),
        # Of several brands in a header, the first is meant: so long may only that one be.
        "brandId",
    }
)

MORE_ERRORS = "There are more errors; the first 20 are shown."

CONFORMANCE = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

pytestmark = pytest.mark.soak

CONFIG = schemathesis.Config.from_dict(
    {
        "seed": 1,
        "auth": {"openapi": {"ApiKey": {"api_key": API_KEY}}},
        "generation": {"max-examples": amount(5, 400), "deterministic": True},
        # Answers hold random ids: what is drawn from them would differ from run to run.
        "phases": {"fuzzing": {"error-feedback": {"enabled": False}, "extra-data-sources": {"responses": False}}},
        "dictionaries": {key: {"values": values} for key, values in KNOWN.items()},
        "parameters": {key: {"dictionary": key, "probability": 0.5} for key in KNOWN},
        "operations": [
            # On a path that is public, a wrong method is no public route: it is asked for a key first.
            {"include-path": ["/", "/health", "/health/ready"], "headers": {"X-API-Key": API_KEY}},
            {
                # `GET /products/create` exists: it shows the product whose id is `create`.
                "include-path": ["/products/create", "/prices/create", "/coupons/create"],
                "checks": {"allow_header_conformance": {"enabled": False}},
            },
            {
                # `DELETE /event-endpoints/create` exists as well: it deletes the endpoint whose id is `create`.
                "include-path": ["/event-endpoints/create"],
                "checks": {"allow_header_conformance": {"enabled": False}, "unsupported_method": {"enabled": False}},
            },
            {
                # Stripe may refuse what is well formed; `takes_what_is_valid` sees to it that we don't.
                "include-path-regex": "^(?!/billing-portal/).*/create$|^/stats$"
                "|^/(status|summary|subscriptions)/by-(org|run)/",
                "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "400"]}},
            },
            {
                # A refund wants a key, which the document can't say of one route alone, and a payment that was paid;
                # others want a customer, an endpoint or an event that there is.
                "include-path-regex": "^/payments/|^/subscriptions/[^/]+/(cancel|resume|change)$"
                "|^/(customers|payment-methods|billing-portal|event-endpoints|events)(/|$)",
                "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "400", "404", "409"]}},
            },
        ],
    }
)


def load_schema() -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_path(DOCUMENT, config=CONFIG)


schema = load_schema()
OPERATIONS = [result.ok() for result in load_schema().get_all_operations()]


@pytest.fixture(scope="module")
def service(database_url: str, stand_ins_process: StandIns) -> Iterator[WebProcess]:
    """The service in front of the stand-ins: one for the whole module, which asks it thousands of times."""
    stand_ins_process.reset()
    engine = create_engine(database_url)
    with engine.begin() as connection:
        empty(connection)
    engine.dispose()
    environment = {
        "STRIPE_SERVICE_DATABASE_URL": database_url,
        "STRIPE_SERVICE_API_KEY": API_KEY,
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "WEB_CONCURRENCY": "1",
        **stand_ins_process.environment,
    }
    with WebProcess.start(environment) as process:
        yield process


class SignedByStripe(AuthBase):
    """Signs what is sent to a webhook, whatever its body came to be, unless the header was left out."""

    def __init__(self, stand_ins: StandIns) -> None:
        self.stand_ins = stand_ins

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        if "Stripe-Signature" in request.headers:
            app_id = unquote(urlsplit(str(request.url)).path).removeprefix(WEBHOOK).removeprefix("/")
            if app_id:
                self.stand_ins.control("keys", provider="stripe-webhook", appId=app_id, key=SECRET)
            request.headers["Stripe-Signature"] = sign(text_of(request.body).encode())
        return request


def text_of(body: bytes | str | None) -> str:
    """What Stripe would sign; it sends no bytes that are no text."""
    return body.decode(errors="replace") if isinstance(body, bytes) else body or ""


@pytest.fixture(scope="module")
def call_options(service: WebProcess, stand_ins_process: StandIns) -> dict[str, Any]:
    return {"base_url": service.url, "auth": SignedByStripe(stand_ins_process)}


def prepare(case: Case) -> None:
    """Make of what was drawn what a caller would send."""
    key = case.headers.get("Idempotency-Key")
    if isinstance(key, str) and re.fullmatch("[!-~]{1,255}", key):
        # Of the same length, where that is long enough to be of one use only.
        case.headers["Idempotency-Key"] = (uuid.uuid4().hex + key)[: max(32, len(key))]
    if case.body is not NOT_SET:
        case.body = with_real_integers(case.body)


def call(case: Case, options: dict[str, Any]) -> Response:
    """Call as a caller does who comes again when the service is at its limit: each webhook may be of one more app."""
    answers: list[Response] = []

    def is_taken() -> bool:
        answers.append(case.call(**options))
        return answers[-1].status_code != 503 or answers[-1].json()["code"] != "overloaded"

    wait_until(is_taken, seconds=10, what="room for one more")
    return answers[-1]


def with_real_integers(value: Any) -> Any:
    """JSON Schema calls 5.0 an integer; the contract, which wants a real one, doesn't."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [with_real_integers(each) for each in value]
    if isinstance(value, dict):
        return {name: with_real_integers(each) for name, each in value.items()}
    return value


def takes_what_is_valid(_: CheckContext, response: Response, case: Case) -> None:
    """What the schema allows, we refuse only by a rule that no schema can say; Stripe may refuse it by its own."""
    assert case.meta
    if case.meta.generation.mode.is_negative or response.status_code != 400:
        return
    details = response.json().get("details", {"fieldErrors": {}, "formErrors": []})
    assert set(details["formErrors"]) <= {MORE_ERRORS}, details
    assert set(details["fieldErrors"]) <= BEYOND_A_SCHEMA, details


def wrong_checks(case: Case) -> list[Any]:
    """Checks that are wrong of this case: it counts as invalid to leave out a body, also where a body is optional."""
    required = [body.is_required for body in case.operation.body]
    return [negative_data_rejection] if case.body is NOT_SET and required and not any(required) else []


class TestDocument:
    @schema.parametrize()
    def test_it_answers_as_documented(self, case: Case, call_options: dict[str, Any]) -> None:
        prepare(case)
        response = call(case, call_options)

        if response.status_code == URI_TOO_LONG:
            # gunicorn's own answer, before the service hears of the request.
            assert len(str(response.request.url)) > MAX_REQUEST_LINE - len("OPTIONS  HTTP/1.1")
        else:
            case.validate_response(
                response,
                additional_checks=[takes_what_is_valid],
                excluded_checks=wrong_checks(case),
                transport_kwargs=call_options,
            )

    @pytest.mark.parametrize(
        ("others", "shown"),
        [
            ("^/(?!payment-intent/|status/[{])", "GET /status/{paymentId}"),
            ("^/(?!products/|prices/create)", "GET /products/{productId}"),
        ],
    )
    def test_it_answers_as_documented_when_one_answer_leads_to_the_next_request(
        self, others: str, shown: str, call_options: dict[str, Any]
    ) -> None:
        answered: Counter[tuple[str, int]] = Counter()

        class Caller(load_schema().exclude(path_regex=others).as_state_machine()):  # type: ignore[misc]
            def get_call_kwargs(self, case: Case) -> dict[str, Any]:
                prepare(case)
                return call_options

            def validate_response(self, response: Response, case: Case, **options: Any) -> None:
                answered[case.operation.label, response.status_code] += 1
                super().validate_response(response, case, additional_checks=[takes_what_is_valid], **options)

        Caller.run(
            settings=settings(
                max_examples=amount(15, 200),
                stateful_step_count=6,
                derandomize=True,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
        )

        assert answered[shown, 200]


class TestKeys:
    @pytest.mark.parametrize(("headers", "status"), [({}, 401), ({"X-API-Key": "nobody's"}, 403)])
    @pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
    def test_it_asks_for_a_key_when_the_document_says_so(
        self, service: WebProcess, operation: APIOperation, headers: dict[str, str], status: int
    ) -> None:
        case = operation.Case(path_parameters={each.name: "x" for each in operation.path_parameters})

        response = case.call(service.url, headers=headers)

        assert (response.status_code == status) == is_protected(operation)
        case.validate_response(response, checks=CONFORMANCE)


def is_protected(operation: APIOperation) -> bool:
    """Whether the document names a key for this operation: its own word, or else that for all."""
    return bool(operation.definition.raw.get("security", operation.schema.raw_schema["security"]))
