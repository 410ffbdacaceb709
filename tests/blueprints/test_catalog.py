"""The catalog: what is asked of Stripe, and what the caller hears."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from app.config import Settings
from tests.factories import checkout
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import API_KEY, WebProcess

APP = {"appId": "shop"}
STRIPE_KEY = "sk_test_sandbox_shop"

Ask = Callable[..., Any]


def product(**changes: Any) -> dict[str, Any]:
    return {**APP, "name": "Mug", **changes}


def price(**changes: Any) -> dict[str, Any]:
    return {**APP, "productId": "prod_sandbox", "unitAmountInCents": 900, **changes}


def coupon(**changes: Any) -> dict[str, Any]:
    return {**APP, "percentOff": 12.5, **changes}


def get(path: str) -> Ask:
    return lambda client, **options: client.get(path, query_string=APP, **options)


def post(path: str, body: dict[str, Any]) -> Ask:
    return lambda client, **options: client.post(path, json=body, **options)


CREATES = {
    "POST product": post("/products/create", product()),
    "POST price": post("/prices/create", price()),
    "POST coupon": post("/coupons/create", coupon()),
}
SHOWS = {
    "GET product": get("/products/prod_sandbox"),
    "GET price": get("/prices/price_sandbox"),
    "GET prices": get("/prices/by-product/prod_sandbox"),
    "GET coupon": get("/coupons/SUMMER"),
}
every_route = pytest.mark.parametrize("ask", [*CREATES.values(), *SHOWS.values()], ids=[*CREATES, *SHOWS])
every_create = pytest.mark.parametrize("ask", CREATES.values(), ids=CREATES)


@pytest.fixture
def summer(client: FlaskClient) -> None:
    """A coupon, so that all routes have something to show."""
    assert client.post("/coupons/create", json=coupon(id="SUMMER")).status_code == 200


def at_stripe(stand_ins: StandIns, kind: str) -> list[dict[str, Any]]:
    """The app's objects, newest first."""
    (account,) = (account for account in stand_ins.state()["accounts"].values() if "shop" in account["apps"])
    return list(account["objects"][kind])


def sent_to_stripe(stand_ins: StandIns) -> list[tuple[str, str]]:
    return [(entry["method"], entry["path"]) for entry in stand_ins.ledger("stripe")]


class TestProducts:
    def test_it_creates_one(self, client: FlaskClient, stand_ins: StandIns) -> None:
        sent = product(id="mug-1", description="For tea", metadata={"sku": "7"})
        response = client.post("/products/create", json=sent)

        assert response.status_code == 200
        assert response.json == {"success": True, "productId": "mug-1", "name": "Mug", "description": "For tea"}
        made = at_stripe(stand_ins, "product")[0]
        assert (made["id"], made["name"], made["metadata"]) == ("mug-1", "Mug", {"sku": "7"})

    def test_it_lets_stripe_choose_the_id(self, client: FlaskClient, stand_ins: StandIns) -> None:
        response = client.post("/products/create", json=product())

        assert response.json == {
            "success": True,
            "productId": at_stripe(stand_ins, "product")[0]["id"],
            "name": "Mug",
            "description": None,
        }

    def test_it_shows_one(self, client: FlaskClient, stand_ins: StandIns) -> None:
        created = client.post("/products/create", json=product(id="mug 1?#%2", description="For tea"))

        response = client.get("/products/mug%201%3F%23%252", query_string=APP)

        assert (response.status_code, response.json) == (200, created.json)

    def test_it_shows_it_to_its_app_only(self, client: FlaskClient, stand_ins: StandIns) -> None:
        client.post("/products/create", json=product(id="mug-1"))

        assert client.get("/products/mug-1?appId=other").status_code == 404

    def test_it_tells_key_service_its_route_as_a_template(self, client: FlaskClient, stand_ins: StandIns) -> None:
        client.get("/products/prod_sandbox", query_string=APP, headers={"X-Request-ID": "request-7"})

        (entry,) = stand_ins.ledger("key-service")
        assert (entry["callerPath"], entry["requestId"]) == ("/products/{productId}", "request-7")


class TestPrices:
    def test_it_creates_one(self, client: FlaskClient, stand_ins: StandIns) -> None:
        response = client.post("/prices/create", json=price(currency="EUR", metadata={"sku": "7"}))

        made = at_stripe(stand_ins, "price")[0]
        assert response.json == {
            "success": True,
            "priceId": made["id"],
            "productId": "prod_sandbox",
            "unitAmountInCents": 900,
            "currency": "eur",
        }
        assert (made["recurring"], made["metadata"]) == (None, {"sku": "7"})

    def test_it_creates_one_for_subscriptions(self, client: FlaskClient, stand_ins: StandIns) -> None:
        client.post("/prices/create", json=price(recurring={"interval": "week", "intervalCount": 2}))
        client.post("/prices/create", json=price(recurring={"interval": "year"}))

        yearly, fortnightly = (made["recurring"] for made in at_stripe(stand_ins, "price")[:2])
        assert (fortnightly["interval"], fortnightly["interval_count"]) == ("week", 2)
        assert (yearly["interval"], yearly["interval_count"]) == ("year", 1)

    def test_it_gives_stripes_message_when_there_is_no_such_product(
        self, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        response = client.post("/prices/create", json=price(productId="prod_1"))

        assert (response.status_code, response.json["code"]) == (400, "resource_missing")
        assert response.json["error"] == "No such product: 'prod_1'"

    def test_it_shows_one(self, client: FlaskClient, stand_ins: StandIns) -> None:
        created = client.post("/prices/create", json=price()).json

        response = client.get(f"/prices/{created['priceId']}", query_string=APP)

        assert (response.status_code, response.json) == (200, {**created, "active": True})

    def test_it_shows_null_for_the_amount_of_one_with_tiers(self, client: FlaskClient, stand_ins: StandIns) -> None:
        tiered = {
            "id": "price_tiered",
            "object": "price",
            "active": False,
            "billing_scheme": "tiered",
            "currency": "usd",
            "product": "prod_sandbox",
            "tiers_mode": "graduated",
            "unit_amount": None,
            "unit_amount_decimal": None,
        }
        stand_ins.fault("stripe", "json", body=tiered)

        assert client.get("/prices/price_tiered", query_string=APP).json == {
            "success": True,
            "priceId": "price_tiered",
            "productId": "prod_sandbox",
            "unitAmountInCents": None,
            "currency": "usd",
            "active": False,
        }


class TestPriceLists:
    def test_it_lists_all_active_ones_in_pages_of_a_hundred(self, client: FlaskClient, stand_ins: StandIns) -> None:
        client.post("/products/create", json=product(id="mug"))
        made = [new_price(stand_ins, product="mug", unit_amount=amount) for amount in range(1, 251)]
        new_price(stand_ins, product="mug", unit_amount=7, active="false")
        new_price(stand_ins, product="prod_sandbox", unit_amount=7)
        calls_before = len(stand_ins.ledger("stripe"))

        response = client.get("/prices/by-product/mug", query_string=APP)

        assert (response.status_code, response.json["success"]) == (200, True)
        assert [found["priceId"] for found in response.json["prices"]] == made[::-1]
        assert response.json["prices"][0] == {
            "priceId": made[-1],
            "productId": "mug",
            "unitAmountInCents": 250,
            "currency": "usd",
            "active": True,
        }
        assert len(stand_ins.ledger("stripe")) == calls_before + 3

    def test_it_is_empty_for_a_product_without_prices(self, client: FlaskClient, stand_ins: StandIns) -> None:
        client.post("/products/create", json=product(id="mug"))

        assert client.get("/prices/by-product/mug", query_string=APP).json == {"success": True, "prices": []}

    def test_it_answers_404_when_stripe_says_there_is_no_such_product(
        self, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        error = {"type": "invalid_request_error", "code": "resource_missing", "message": "No such product: 'mug'"}
        stand_ins.fault("stripe", "json", status=400, body={"error": error})

        response = client.get("/prices/by-product/mug", query_string=APP)

        assert (response.status_code, response.json["error"]) == (404, "Product not found")

    def test_it_gives_up_on_a_list_without_end(self, client: FlaskClient, stand_ins: StandIns) -> None:
        one = {"id": "price_1", "object": "price", "active": True, "currency": "usd", "product": "mug"}
        page = {"object": "list", "has_more": True, "data": [one | {"unit_amount": 1}] * 100}
        stand_ins.fault("stripe", "json", times=0, body=page)

        response = client.get("/prices/by-product/mug", query_string=APP)

        assert response.status_code == 502
        assert response.json["error"] == "Stripe lists more than 10000 active prices of this product"
        assert len(stand_ins.ledger("stripe")) == 101

    def test_it_lists_nothing_when_a_later_page_is_refused(self, client: FlaskClient, stand_ins: StandIns) -> None:
        for amount in range(1, 102):
            new_price(stand_ins, product="prod_sandbox", unit_amount=amount)
        stand_ins.fault("stripe", "status", path="/prices$", skip=1, status=503)

        assert client.get("/prices/by-product/prod_sandbox", query_string=APP).status_code == 503

    @pytest.mark.parametrize("listed", [{"object": "product"}, {"object": "list", "has_more": False, "data": [1]}])
    def test_it_answers_502_when_it_is_no_list_of_prices(
        self, client: FlaskClient, stand_ins: StandIns, listed: dict[str, Any]
    ) -> None:
        stand_ins.fault("stripe", "json", body=listed)

        assert client.get("/prices/by-product/mug", query_string=APP).status_code == 502


def new_price(stand_ins: StandIns, **parameters: Any) -> str:
    """A price that the app made at Stripe itself."""
    answer = stand_ins.session.post(
        f"{stand_ins.url}/v1/prices",
        data={"currency": "usd", **parameters},
        headers={"Authorization": f"Bearer {STRIPE_KEY}"},
        timeout=10,
    )
    return str(answer.json()["id"])


class TestCoupons:
    def test_it_creates_one_with_a_percentage(self, client: FlaskClient, stand_ins: StandIns) -> None:
        sent = coupon(id="SUMMER", name="Summer", maxRedemptions=3, metadata={"sku": "7"})
        response = client.post("/coupons/create", json=sent)

        assert response.json == {
            "success": True,
            "couponId": "SUMMER",
            "name": "Summer",
            "percentOff": 12.5,
            "amountOffInCents": None,
            "currency": None,
            "duration": "once",
        }
        (made,) = at_stripe(stand_ins, "coupon")
        assert (made["percent_off"], made["max_redemptions"], made["metadata"]) == (12.5, 3, {"sku": "7"})

    def test_it_creates_one_with_an_amount(self, client: FlaskClient, stand_ins: StandIns) -> None:
        sent = {**APP, "amountOffInCents": 500, "currency": "EUR", "duration": "repeating", "durationInMonths": 3}
        response = client.post("/coupons/create", json=sent)

        (made,) = at_stripe(stand_ins, "coupon")
        assert response.json == {
            "success": True,
            "couponId": made["id"],
            "name": None,
            "percentOff": None,
            "amountOffInCents": 500,
            "currency": "eur",
            "duration": "repeating",
        }
        assert made["duration_in_months"] == 3

    def test_it_shows_one(self, client: FlaskClient, stand_ins: StandIns) -> None:
        created = client.post("/coupons/create", json=coupon(id="SUMMER")).json

        response = client.get("/coupons/SUMMER", query_string=APP)

        assert (response.status_code, response.json) == (200, {**created, "valid": True})

    def test_it_shows_that_one_is_used_up(self, client: FlaskClient, stand_ins: StandIns) -> None:
        client.post("/coupons/create", json=coupon(id="SUMMER", maxRedemptions=1))
        paid = client.post("/checkout/create", json=checkout(discounts=[{"coupon": "SUMMER"}])).json
        stand_ins.control(f"checkout/{paid['sessionId']}/pay")

        assert client.get("/coupons/SUMMER", query_string=APP).json["valid"] is False


EXISTING = [
    ("/products/create", product(id="one", description="First"), product(id="one", name="Other")),
    ("/coupons/create", coupon(id="one", name="First"), coupon(id="one", percentOff=50, duration="forever")),
]


class TestExistingIds:
    @pytest.mark.parametrize(("path", "first", "second"), EXISTING, ids=["product", "coupon"])
    def test_it_returns_the_first_as_it_is(
        self, client: FlaskClient, stand_ins: StandIns, path: str, first: dict[str, Any], second: dict[str, Any]
    ) -> None:
        created = client.post(path, json=first, headers={"Idempotency-Key": "first"})
        again = client.post(path, json=first)
        other = client.post(path, json=second, headers={"Idempotency-Key": "second"})

        assert [created.status_code, again.status_code, other.status_code] == [200, 200, 200]
        assert created.json == again.json == other.json
        assert len(stand_ins.effects()) == 1

    @pytest.mark.parametrize(("path", "first", "second"), EXISTING, ids=["product", "coupon"])
    def test_it_returns_the_first_to_all_when_two_processes_create_at_once(
        self, web: WebProcess, stand_ins: StandIns, path: str, first: dict[str, Any], second: dict[str, Any]
    ) -> None:
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda body: web.post(path, body), [first, second] * 8))

        assert [answer.status_code for answer in answers] == [200] * 16
        assert all(answer.json() == answers[0].json() for answer in answers)
        assert len(stand_ins.effects()) == 1

    def test_it_gives_stripes_message_when_it_is_gone_the_moment_after(
        self, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        refuse_as_existing(stand_ins)

        response = client.post("/products/create", json=product(id="one"))

        assert (response.status_code, response.json["error"]) == (400, "No such product: 'one'")

    def test_it_gives_stripes_message_when_no_id_was_sent(self, client: FlaskClient, stand_ins: StandIns) -> None:
        refuse_as_existing(stand_ins)

        response = client.post("/coupons/create", json=coupon())

        assert (response.status_code, response.json["error"]) == (400, "It exists.")


def refuse_as_existing(stand_ins: StandIns) -> None:
    error = {"type": "invalid_request_error", "code": "resource_already_exists", "message": "It exists."}
    stand_ins.fault("stripe", "json", method="POST", status=400, body={"error": error})


class TestMissing:
    @pytest.mark.parametrize(
        ("path", "sentence"),
        [
            ("/products/prod_1", "Product not found"),
            ("/prices/price_1", "Price not found"),
            ("/coupons/SPRING", "Coupon not found"),
        ],
    )
    def test_it_answers_404_in_the_words_of_the_contract(
        self, client: FlaskClient, stand_ins: StandIns, path: str, sentence: str
    ) -> None:
        response = client.get(path, query_string=APP)

        assert (response.status_code, response.json["error"], response.json["code"]) == (404, sentence, "not_found")

    @pytest.mark.parametrize("route", ["/products", "/prices", "/prices/by-product", "/coupons"])
    @pytest.mark.parametrize(
        "segment", [".", "..", "...", "%2e%2e", "a/b", "a%2Fb", "..%2Fpayment_intents", "%2e%2e/prices", "a%00b"]
    )
    def test_it_asks_nothing_of_stripe_for_what_is_no_id(
        self, client: FlaskClient, stand_ins: StandIns, route: str, segment: str
    ) -> None:
        response = client.get(f"{route}/{segment}", query_string=APP)

        assert (response.status_code, response.json["code"]) == (404, "not_found")
        assert stand_ins.ledger("stripe") == []

    @pytest.mark.parametrize("route", ["/products", "/prices", "/coupons"])
    def test_it_sends_an_id_as_one_segment(self, client: FlaskClient, stand_ins: StandIns, route: str) -> None:
        response = client.get(f"{route}/a%3Fexpand=x%23y%252Fz%20%3B", query_string=APP)

        assert response.status_code == 404
        assert sent_to_stripe(stand_ins) == [("GET", f"/v1{route}/a?expand=x#y%2Fz ;")]


class TestIdempotency:
    @every_create
    def test_it_makes_one_thing_when_a_request_is_repeated(
        self, client: FlaskClient, stand_ins: StandIns, ask: Ask
    ) -> None:
        first, again = (ask(client, headers={"Idempotency-Key": "once"}) for _ in range(2))

        assert (first.status_code, first.json) == (200, again.json)
        assert len(stand_ins.effects()) == 1

    @every_create
    def test_it_makes_another_without_the_header(self, client: FlaskClient, stand_ins: StandIns, ask: Ask) -> None:
        first, again = (ask(client).json for _ in range(2))

        assert first != again
        assert len(stand_ins.effects()) == 2
        assert len({entry["idempotencyKey"] for entry in stand_ins.ledger("stripe")} - {None}) == 2

    @pytest.mark.parametrize("fault", [{"kind": "reset"}, {"kind": "half_body"}], ids=str)
    def test_it_makes_one_thing_when_the_first_answer_was_lost(
        self, client: FlaskClient, stand_ins: StandIns, fault: dict[str, Any]
    ) -> None:
        stand_ins.fault("stripe", method="POST", executed=True, **fault)

        first, again = (
            client.post("/prices/create", json=price(), headers={"Idempotency-Key": "once"}) for _ in range(2)
        )

        assert (first.status_code, again.status_code) == (503, 200)
        assert again.json["priceId"] == at_stripe(stand_ins, "price")[0]["id"]
        assert stand_ins.effects() == ["price.create"]

    @pytest.mark.parametrize(
        ("path", "first", "second"),
        [
            ("/products/create", product(), product(description="Other")),
            ("/products/create", product(id="one"), product(id="one", name="Other")),
            ("/prices/create", price(), price(unitAmountInCents=901)),
            ("/coupons/create", coupon(), coupon(percentOff=13)),
        ],
    )
    def test_it_refuses_another_body(
        self, client: FlaskClient, stand_ins: StandIns, path: str, first: dict[str, Any], second: dict[str, Any]
    ) -> None:
        client.post(path, json=first, headers={"Idempotency-Key": "once"})
        response = client.post(path, json=second, headers={"Idempotency-Key": "once"})

        assert (response.status_code, response.json["code"]) == (422, "idempotency_key_reused")
        assert len(stand_ins.effects()) == 1

    def test_it_is_scoped_to_the_route(self, client: FlaskClient, stand_ins: StandIns) -> None:
        statuses = [ask(client, headers={"Idempotency-Key": "once"}).status_code for ask in CREATES.values()]

        assert statuses == [200, 200, 200]
        assert stand_ins.effects() == ["product.create", "price.create", "coupon.create"]

    @pytest.mark.parametrize(
        ("other", "our_key", "their_key"), [("other", "once", "once"), ("shop:1", "1:once", "once")]
    )
    def test_it_is_scoped_to_the_app_when_two_share_an_account(
        self, client: FlaskClient, stand_ins: StandIns, other: str, our_key: str, their_key: str
    ) -> None:
        stand_ins.control("keys", appId=other, key=STRIPE_KEY)

        ours = client.post("/prices/create", json=price(), headers={"Idempotency-Key": our_key})
        theirs = client.post("/prices/create", json=price(appId=other), headers={"Idempotency-Key": their_key})

        assert (ours.status_code, theirs.status_code) == (200, 200)
        assert ours.json["priceId"] != theirs.json["priceId"]

    def test_it_takes_a_currency_in_either_case_for_the_same(self, client: FlaskClient, stand_ins: StandIns) -> None:
        upper, lower = (
            client.post("/prices/create", json=price(currency=currency), headers={"Idempotency-Key": "once"})
            for currency in ("EUR", "eur")
        )

        assert (upper.status_code, upper.json) == (200, lower.json)

    def test_it_sends_a_key_that_stripe_takes_for_the_longest_of_the_callers(
        self, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        key = "k" * 255
        response = client.post("/prices/create", json=price(appId="a" * 200), headers={"Idempotency-Key": key})

        assert response.status_code == 200
        (entry,) = stand_ins.ledger("stripe")
        assert 0 < len(entry["idempotencyKey"]) <= 255
        assert key not in entry["idempotencyKey"]

    def test_it_answers_409_while_the_first_is_being_worked_on(self, app: Flask, stand_ins: StandIns) -> None:
        stand_ins.fault("stripe", "delay", method="POST", seconds=1.5, executed=True)
        create = CREATES["POST price"]
        headers = {"X-API-Key": API_KEY, "Idempotency-Key": "once"}

        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(create, app.test_client(), headers=headers)
            wait_until(lambda: stand_ins.ledger("stripe"), seconds=10, what="the first request")
            meanwhile = create(app.test_client(), headers=headers)

        assert (meanwhile.status_code, meanwhile.json["code"]) == (409, "idempotency_key_in_use")
        assert int(meanwhile.headers["Retry-After"]) > 0
        assert first.result().status_code == 200
        assert create(app.test_client(), headers=headers).json == first.result().json

    def test_it_makes_one_price_when_two_processes_are_asked_at_once(
        self, web: WebProcess, stand_ins: StandIns
    ) -> None:
        with ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(web.post, "/prices/create", price(), **{"Idempotency-Key": "once"}) for _ in range(16)]
        answers = [each.result() for each in asked]

        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["priceId"] for answer in answers}) == 1
        assert stand_ins.effects() == ["price.create"]


@pytest.mark.usefixtures("summer")
class TestRefusals:
    @every_route
    def test_it_answers_400_when_the_app_has_no_key(self, client: FlaskClient, stand_ins: StandIns, ask: Ask) -> None:
        stand_ins.reset()
        stand_ins.control("keys", appId="shop", key=None)
        forget_keys(client)

        response = ask(client)

        assert (response.status_code, response.json["code"]) == (400, "no_stripe_key")
        assert response.json["error"] == "No Stripe key configured for appId 'shop'"
        assert stand_ins.ledger("stripe") == []

    @every_route
    def test_it_gives_stripes_message_when_stripe_calls_it_invalid(
        self, client: FlaskClient, stand_ins: StandIns, ask: Ask
    ) -> None:
        error = {"type": "invalid_request_error", "code": "parameter_invalid", "message": "Bad: sk_test_a1b2"}
        stand_ins.fault("stripe", "json", status=400, body={"error": error})

        response = ask(client)

        assert (response.status_code, response.json["code"]) == (400, "parameter_invalid")
        assert response.json["error"] == "Bad: [redacted]"

    @every_create
    def test_it_answers_402_when_stripe_speaks_of_a_card(
        self, client: FlaskClient, stand_ins: StandIns, ask: Ask
    ) -> None:
        stand_ins.fault("stripe", "status", status=402)

        response = ask(client)

        assert (response.status_code, response.json["code"]) == (402, "card_declined")

    @every_route
    def test_it_answers_429_when_stripe_limits_the_rate(
        self, client: FlaskClient, stand_ins: StandIns, ask: Ask
    ) -> None:
        stand_ins.fault("stripe", "status", status=429)

        response = ask(client)

        assert (response.status_code, response.json["code"]) == (429, "stripe_rate_limited")
        assert int(response.headers["Retry-After"]) > 0
        assert ask(client).status_code == 200

    @every_route
    def test_it_uses_a_fresh_key_once_when_stripe_refuses_the_cached_one(
        self, client: FlaskClient, stand_ins: StandIns, ask: Ask
    ) -> None:
        stand_ins.control("keys", appId="shop", key="sk_test_fresh")
        stand_ins.control("keys/revoke", key=STRIPE_KEY)

        assert ask(client).status_code == 200

        stand_ins.control("keys/revoke", key="sk_test_fresh")
        response = ask(client)
        assert (response.status_code, response.json["code"]) == (502, "stripe_key_refused")


def forget_keys(client: FlaskClient) -> None:
    services = client.application.extensions["stripe-service"]
    services.keys.forget("stripe", "shop", STRIPE_KEY)


@pytest.mark.usefixtures("summer")
class TestOutages:
    @every_route
    @pytest.mark.parametrize(
        ("fault", "status"),
        [
            ({"kind": "status", "status": 500}, 502),
            ({"kind": "status", "status": 503}, 503),
            ({"kind": "status", "status": 409}, 503),
            ({"kind": "html"}, 502),
            ({"kind": "html", "status": 404}, 502),
            ({"kind": "json", "body": [1]}, 502),
            ({"kind": "json", "body": {"object": "customer", "id": "cus_1"}}, 502),
            ({"kind": "redirect"}, 502),
            ({"kind": "half_body"}, 503),
            ({"kind": "reset"}, 503),
        ],
        ids=str,
    )
    def test_it_names_stripe_and_can_be_tried_again(
        self, client: FlaskClient, stand_ins: StandIns, ask: Ask, fault: dict[str, Any], status: int
    ) -> None:
        stand_ins.fault("stripe", times=0, **fault)

        response = ask(client)
        stand_ins.heal()

        assert response.status_code == status, response.json
        assert response.json["error"].startswith("Stripe ")
        assert ("Retry-After" in response.headers) == (status == 503)
        assert ask(client).status_code == 200

    @every_route
    def test_it_names_key_service(self, client: FlaskClient, stand_ins: StandIns, ask: Ask) -> None:
        forget_keys(client)
        stand_ins.fault("key-service", "status", status=503)

        response = ask(client)

        assert response.status_code == 503
        assert "key-service" in response.json["error"]

    @every_route
    def test_it_refuses_at_once_when_all_places_are_taken(
        self, client: FlaskClient, settings: Settings, stand_ins: StandIns, ask: Ask
    ) -> None:
        calls = len(stand_ins.ledger())
        limit = client.application.extensions["stripe-service"].upstream_limit
        with ExitStack() as places:
            for _ in range(settings.web_threads * 3 // 4):
                places.enter_context(limit.hold("shop"))
            response = ask(client)

        assert (response.status_code, response.json["code"]) == (503, "overloaded")
        assert len(stand_ins.ledger()) == calls
        assert ask(client).status_code == 200

    @every_route
    def test_it_answers_504_when_stripe_takes_too_long(self, settings: Settings, stand_ins: StandIns, ask: Ask) -> None:
        impatient = create_app(replace(settings, stripe_timeout_seconds=0.3))
        stand_ins.fault("stripe", "hang")

        response = ask(impatient.test_client(), headers={"X-API-Key": API_KEY})

        assert (response.status_code, response.json["error"]) == (504, "Stripe took too long to answer")


class TestPaying:
    def test_a_checkout_of_what_was_made_here_is_paid(self, web: WebProcess, stand_ins: StandIns) -> None:
        endpoint = {"url": f"{web.url}/webhooks/stripe", "secret": "whsec_tests"}
        stand_ins.control("webhooks", mode="deliver", endpoints=[endpoint])
        made = web.post("/products/create", product()).json()
        sold = web.post("/prices/create", price(productId=made["productId"], unitAmountInCents=1500)).json()
        reduced = web.post("/coupons/create", coupon(percentOff=10)).json()
        items = [{"priceId": sold["priceId"], "quantity": 2}]
        discounts = [{"coupon": reduced["couponId"]}]

        opened = web.post("/checkout/create", checkout(lineItems=items, discounts=discounts)).json()
        stand_ins.control(f"checkout/{opened['sessionId']}/pay")

        def shown() -> dict[str, Any]:
            url = f"{web.url}/status/{opened['paymentId']}"
            return dict(stand_ins.session.get(url, headers={"X-API-Key": API_KEY}, timeout=10).json()["payment"])

        wait_until(lambda: shown()["status"] == "succeeded", seconds=20, what="the webhooks")
        assert shown()["amountReceivedInCents"] == 2700
