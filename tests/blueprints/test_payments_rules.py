"""Each rule of the contract's two tables, at its bounds and one past them."""

import json
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from tests.factories import checkout, intent
from tests.stand_ins import StandIns

CHECKOUT, INTENT = "/checkout/create", "/payment-intent/create"
PRICE = {"priceId": "price_sandbox", "quantity": 1}
LONG_URL = "https://shop.test/" + "a" * (2048 - len("https://shop.test/"))


def metadata(count: int) -> dict[str, str]:
    return {f"key{number}": "v" for number in range(count)}


BOTH_VALID: list[tuple[str, Any]] = [
    ("appId", "a"),
    ("appId", "a" * 200),
    ("appId", "Shop_1.eu:live-2"),
    ("appId", "..a"),
    ("orgId", "o" * 200),
    ("orgId", None),
    ("orgId", ""),
    ("brandId", "b" * 200),
    ("campaignId", "c" * 200),
    ("customerId", None),
    ("metadata", metadata(46)),
    ("metadata", {"k" * 40: "v" * 500}),
    ("metadata", {"k": ""}),
    ("metadata", {}),
    ("metadata", None),
    ("unheardOf", {"deep": [1]}),
]
BOTH_INVALID: list[tuple[str, Any]] = [
    ("appId", ...),
    ("appId", None),
    ("appId", ""),
    ("appId", "a" * 201),
    ("appId", "."),
    ("appId", "..."),
    ("appId", "shop/1"),
    ("appId", "shop 1"),
    ("appId", "shop\n"),
    ("appId", "caf\u00e9"),
    ("appId", 7),
    ("appId", "a\x00"),
    ("orgId", "o" * 201),
    ("orgId", 1),
    ("orgId", "o\x00"),
    ("runId", "r" * 201),
    ("runId", "r\x00"),
    ("brandId", "b" * 201),
    ("campaignId", "c" * 201),
    ("campaignId", ["c"]),
    ("customerId", "c" * 256),
    ("customerId", "c\x00"),
    ("metadata", metadata(47)),
    ("metadata", {"k" * 41: "v"}),
    ("metadata", {"": "v"}),
    ("metadata", {"k[": "v"}),
    ("metadata", {"k]": "v"}),
    ("metadata", {"k\x00": "v"}),
    ("metadata", {"k": "v" * 501}),
    ("metadata", {"k": "v\x00"}),
    ("metadata", {"k": 1}),
    ("metadata", {"k": None}),
    ("metadata", ["k"]),
]
CHECKOUT_VALID: list[tuple[str, Any]] = [
    ("lineItems", [PRICE]),
    ("lineItems", [PRICE] * 100),
    ("lineItems", [PRICE | {"unheardOf": 1}]),
    ("successUrl", "http://localhost:3000/ok"),
    ("successUrl", "https://shop.test/ok?s={CHECKOUT_SESSION_ID}#done"),
    ("successUrl", LONG_URL),
    ("cancelUrl", "http://127.0.0.1/"),
    ("cancelUrl", "http://[::1]:3000/"),
    ("mode", "payment"),
    ("mode", None),
    ("customerEmail", "ada@example.com"),
    ("discounts", []),
    ("discounts", None),
]
CHECKOUT_INVALID: list[tuple[str, Any]] = [
    ("lineItems", ...),
    ("lineItems", None),
    ("lineItems", []),
    ("lineItems", [PRICE] * 101),
    ("lineItems", PRICE),
    ("lineItems", [None]),
    ("lineItems", [{"quantity": 1}]),
    ("lineItems", [PRICE | {"priceId": ""}]),
    ("lineItems", [PRICE | {"priceId": 1}]),
    ("lineItems", [PRICE | {"priceId": "p\x00"}]),
    ("lineItems", [PRICE | {"quantity": 0}]),
    ("lineItems", [PRICE | {"quantity": 1_000_000}]),
    ("lineItems", [PRICE | {"quantity": 1.0}]),
    ("lineItems", [PRICE | {"quantity": "1"}]),
    ("lineItems", [PRICE | {"quantity": True}]),
    ("lineItems", [{"priceId": "price_sandbox"}]),
    ("successUrl", ...),
    ("successUrl", ""),
    ("successUrl", "/ok"),
    ("successUrl", "ftp://shop.test/ok"),
    ("successUrl", "javascript:alert(1)"),
    ("successUrl", "https://"),
    ("successUrl", "https://user@shop.test/"),
    ("successUrl", "https://user:pass@shop.test/"),
    ("successUrl", "https://shop.test\\@evil.test/"),
    ("successUrl", "https://shop.test/a b"),
    ("successUrl", "https://shop.test/\n"),
    ("successUrl", "https://shop.test:99999/"),
    ("successUrl", "https://[::1/"),
    ("successUrl", LONG_URL + "a"),
    ("successUrl", "https://shop.test/\x00"),
    ("cancelUrl", ...),
    ("cancelUrl", None),
    ("cancelUrl", 7),
    ("mode", "setup"),
    ("mode", ""),
    ("customerEmail", "e" * 513),
    ("discounts", [{"coupon": 1}]),
    ("discounts", [{}]),
    ("discounts", [{"couponId": "C9"}]),
    ("discounts", [{"coupon": "C9", "promotionCode": "promo_1"}]),
    ("discounts", [{"coupon": "C9", "couponId": "C9"}]),
    ("customerEmail", "nope"),
    ("customerEmail", "@x"),
    ("customerEmail", "a b@c.co"),
    ("customerEmail", "a@b@c.co"),
    ("customerEmail", "a@b..co"),
    ("customerEmail", "a@b.co\n"),
    ("discounts", [{"promotionCode": "p\x00"}]),
    ("discounts", {"coupon": "c"}),
]
INTENT_VALID: list[tuple[str, Any]] = [
    ("amountInCents", 50),
    ("amountInCents", 99_999_999),
    ("currency", "eur"),
    ("currency", "EUR"),
    ("currency", None),
    ("description", "d" * 1000),
    ("description", None),
]
INTENT_INVALID: list[tuple[str, Any]] = [
    ("amountInCents", ...),
    ("amountInCents", None),
    ("amountInCents", 0),
    ("amountInCents", -1),
    ("amountInCents", 100_000_000),
    ("amountInCents", 5.0),
    ("amountInCents", 5.5),
    ("amountInCents", "5"),
    ("amountInCents", True),
    ("amountInCents", 1e3),
    ("currency", "us"),
    ("currency", "usdt"),
    ("currency", "us1"),
    ("currency", "usd\n"),
    ("currency", "\u00fcsd"),
    ("currency", 1),
    ("currency", ""),
    ("description", "d" * 1001),
    ("description", "d\x00"),
]


def _cases(both: list[tuple[str, Any]], of_checkout: list[tuple[str, Any]], of_intent: list[tuple[str, Any]]) -> Any:
    rows = [(CHECKOUT, *case) for case in both + of_checkout] + [(INTENT, *case) for case in both + of_intent]
    return pytest.mark.parametrize(("path", "field", "value"), rows)


def _body(path: str, **changes: Any) -> dict[str, Any]:
    return checkout(**changes) if path == CHECKOUT else intent(**changes)


class TestRules:
    @_cases(BOTH_VALID, CHECKOUT_VALID, INTENT_VALID)
    def test_it_creates_when_a_field_is_within_its_bounds(
        self, client: FlaskClient, path: str, field: str, value: Any
    ) -> None:
        response = client.post(path, json=_body(path, **{field: value}))

        assert response.status_code == 200, response.json
        assert response.json["success"] is True

    def test_it_creates_when_a_quantity_is_the_largest(self, client: FlaskClient, stand_ins: StandIns) -> None:
        price = {"product": "prod_sandbox", "currency": "usd", "unit_amount": "1"}
        made = stand_ins.session.post(
            f"{stand_ins.url}/v1/prices", data=price, auth=("sk_test_sandbox_shop", ""), timeout=10
        ).json()

        response = client.post(CHECKOUT, json=checkout(lineItems=[{"priceId": made["id"], "quantity": 999_999}]))

        assert response.status_code == 200, response.json

    @pytest.mark.parametrize(
        ("amount", "currency", "error"),
        [(1, "usd", "Amount must be at least $0.50 usd"), (29, "gbp", "Amount must be at least £0.30 gbp")],
    )
    def test_it_says_what_stripe_says_when_an_amount_is_below_the_minimum(
        self, client: FlaskClient, amount: int, currency: str, error: str
    ) -> None:
        response = client.post(INTENT, json=intent(amountInCents=amount, currency=currency))

        assert (response.status_code, response.json["code"]) == (400, "amount_too_small")
        assert response.json["error"] == error

    @_cases(BOTH_INVALID, CHECKOUT_INVALID, INTENT_INVALID)
    def test_it_asks_nobody_when_a_field_breaks_its_rule(
        self, client: FlaskClient, stand_ins: StandIns, db: Connection, path: str, field: str, value: Any
    ) -> None:
        response = client.post(path, json=_body(path, **{field: value}))

        assert response.status_code == 400
        assert response.json["error"] == "Invalid request"
        assert response.json["code"] == "invalid_request"
        assert list(response.json["details"]["fieldErrors"]) == [field]
        assert all(response.json["details"]["fieldErrors"][field])
        assert stand_ins.ledger() == []
        assert db.execute(text("SELECT count(*) FROM payments")).scalar_one() == 0

    @pytest.mark.parametrize("path", [CHECKOUT, INTENT])
    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"nope", b"\xff\xfe", b'{"appId": NaN}', b"[" * 100_000, b'{"appId": "\\ud800"}', b"[]", b"7"],
    )
    def test_it_refuses_a_body_that_is_no_json_object(
        self, client: FlaskClient, stand_ins: StandIns, path: str, body: bytes
    ) -> None:
        response = client.post(path, data=body, content_type="application/json")

        assert response.status_code == 400
        assert set(response.json["details"]) == {"fieldErrors", "formErrors"}
        assert stand_ins.ledger() == []

    def test_it_refuses_another_content_type(self, client: FlaskClient, stand_ins: StandIns) -> None:
        response = client.post(INTENT, data='{"appId": "shop", "amountInCents": 1}', content_type="text/plain")

        assert response.status_code == 415
        assert response.json["code"] == "unsupported_media_type"
        assert stand_ins.ledger() == []

    @pytest.mark.parametrize(("size", "status"), [(1024 * 1024, 400), (1024 * 1024 + 1, 413)])
    def test_it_refuses_a_body_over_one_mebibyte(self, client: FlaskClient, size: int, status: int) -> None:
        response = client.post(INTENT, data=b" " * size, content_type="application/json")

        assert response.status_code == status

    @pytest.mark.parametrize("levels", [100, 300, 1000, 1020, 1100, 6000])
    def test_it_refuses_a_body_that_is_deep(self, client: FlaskClient, stand_ins: StandIns, levels: int) -> None:
        deep = b"[" * levels + b"]" * levels
        body = json.dumps(checkout(metadata={"k": "DEEP"}, lineItems="DEEP")).encode().replace(b'"DEEP"', deep)

        assert client.post(CHECKOUT, data=body, content_type="application/json").status_code == 400
        assert stand_ins.ledger() == []

    @pytest.mark.parametrize("key", ["", "a" * 256, "a b", "caf\u00e9", "a\x7f"])
    def test_it_refuses_a_malformed_idempotency_key(self, client: FlaskClient, stand_ins: StandIns, key: str) -> None:
        response = client.post(INTENT, json=intent(), headers={"Idempotency-Key": key})

        assert response.status_code == 400
        assert list(response.json["details"]["fieldErrors"]) == ["Idempotency-Key"]
        assert stand_ins.ledger() == []

    @pytest.mark.parametrize("key", ["a", "~!" * 127, "a" * 255])
    def test_it_takes_any_visible_ascii_as_idempotency_key(self, client: FlaskClient, key: str) -> None:
        assert client.post(INTENT, json=intent(), headers={"Idempotency-Key": key}).status_code == 200


class TestOrder:
    """The length comes first: what is too long is neither searched nor read item by item."""

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("appId", "a" * 200 + "!"),
            ("orgId", "\n" * 201),
            ("customerEmail", "@" * 513),
            ("successUrl", "x" * 2049),
            ("lineItems", [None] * 101),
            ("discounts", [{}] * 21),
            ("metadata", {f"[{number}]": 1 for number in range(47)}),
            ("metadata", {"k": "\x00" * 501}),
        ],
    )
    def test_it_says_nothing_but_that_it_is_too_long(self, client: FlaskClient, field: str, value: Any) -> None:
        errors = client.post(CHECKOUT, json=checkout(**{field: value})).json["details"]["fieldErrors"]

        assert list(errors) == [field]
        assert len(errors[field]) == 1

    def test_it_counts_the_keys_of_a_discount_before_it_reads_them(self, client: FlaskClient) -> None:
        answer = client.post(CHECKOUT, json=checkout(discounts=[{"a": 1, "b": 1, "c": 1}])).json

        assert answer["details"]["fieldErrors"] == {
            "discounts": ["0: Must have exactly one of coupon and promotionCode."]
        }


class TestErrors:
    def test_it_names_at_most_twenty_errors(self, client: FlaskClient) -> None:
        # One is missing in each.
        answers = [client.post(CHECKOUT, json=checkout(lineItems=[{}] * count)).json["details"] for count in (20, 21)]

        assert [len(details["fieldErrors"]["lineItems"]) for details in answers] == [20, 20]
        assert [details["formErrors"] for details in answers] == [
            [],
            ["There are more errors; the first 20 are shown."],
        ]

    def test_it_repeats_a_part_of_a_callers_own_name(self, client: FlaskClient) -> None:
        response = client.post(CHECKOUT, json=checkout(metadata={"k" * 100_000: 1}))

        assert response.status_code == 400
        assert len(response.data) < 1_000
