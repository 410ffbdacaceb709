"""Customers of organisations over HTTP: one for each, whoever asks, and nothing of another organisation's."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from tests.conftest import environment_of
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import WebProcess

ORG = {"appId": "shop", "orgId": "org_1"}
APP = {"appId": "shop"}
KEY = "sk_test_sandbox_shop"
PAGE = {"successUrl": "https://shop.example/ok", "cancelUrl": "https://shop.example/no"}


@pytest.fixture
def customer_id(client: FlaskClient) -> str:
    return str(ensure(client)["customerId"])


def ensure(client: FlaskClient, **more: Any) -> dict[str, Any]:
    response = client.post("/customers/ensure", json={**ORG, **more})
    assert response.status_code == 200, response.json
    return dict(response.json or {})


def stripe(stand_ins: StandIns, path: str, **params: Any) -> dict[str, Any]:
    """What an app does at Stripe by itself."""
    answer = requests.post(f"{stand_ins.url}/v1/{path}", auth=(KEY, ""), data=params, timeout=10)
    assert answer.ok, answer.text
    return dict(answer.json())


def save(stand_ins: StandIns, customer_id: str, name: str) -> str:
    """A payment method that the customer saves; the value is its id."""
    return str(stripe(stand_ins, f"payment_methods/{name}/attach", customer=customer_id)["id"])


def customers_at_stripe(stand_ins: StandIns) -> list[str]:
    listed = requests.get(f"{stand_ins.url}/v1/customers", auth=(KEY, ""), timeout=10).json()
    return [customer["id"] for customer in listed["data"]]


def make_old(db: Connection) -> None:
    db.execute(text("UPDATE customers SET created_at = created_at - interval '24 hours'"))
    db.commit()


class TestEnsure:
    def test_it_makes_a_customer_once_and_brings_it_up_to_date(self, client: FlaskClient, stand_ins: StandIns) -> None:
        first = ensure(client, email="a@b.example", name="A", metadata={"plan": "basic"})
        again = ensure(client, email="c@d.example", metadata={"size": "9"})
        shown = client.get("/customers/by-org/org_1", query_string=APP).json["customer"]

        assert (first["created"], again["created"]) == (True, False)
        assert first["customerId"] == again["customerId"] == shown["customerId"]
        assert customers_at_stripe(stand_ins) == [first["customerId"]]
        assert (shown["email"], shown["name"], shown["metadata"]) == (
            "c@d.example",
            "A",
            {"plan": "basic", "size": "9"},
        )

    def test_it_keeps_organisations_and_apps_apart(self, client: FlaskClient) -> None:
        ids = {ensure(client, **one)["customerId"] for one in ({}, {"orgId": "org_2"}, {"appId": "other"})}
        assert len(ids) == 3

    def test_it_finds_the_customer_that_a_lost_answer_told_of(self, client: FlaskClient, stand_ins: StandIns) -> None:
        """Fails when each try has an idempotency key of its own."""
        stand_ins.fault("stripe", "reset", path="/v1/customers", executed=True)
        assert client.post("/customers/ensure", json=ORG).status_code in (502, 503, 504)

        assert ensure(client)["customerId"] == customers_at_stripe(stand_ins)[0]
        assert len(customers_at_stripe(stand_ins)) == 1

    def test_it_looks_for_the_customer_when_stripe_has_forgotten_the_key(
        self, client: FlaskClient, stand_ins: StandIns, db: Connection
    ) -> None:
        """Fails when a customer is made under a key that Stripe no longer knows."""
        stand_ins.fault("stripe", "reset", path="/v1/customers", executed=True)
        client.post("/customers/ensure", json=ORG)
        make_old(db)
        stand_ins.control("clock", advance=25 * 3600)

        assert ensure(client)["customerId"] in customers_at_stripe(stand_ins)
        assert len(customers_at_stripe(stand_ins)) == 1

    def test_it_begins_anew_when_stripe_has_nothing_and_the_key_is_of_no_use(
        self, client: FlaskClient, stand_ins: StandIns, db: Connection
    ) -> None:
        stand_ins.fault("stripe", "reset", path="/v1/customers", executed=False)
        client.post("/customers/ensure", json=ORG)
        make_old(db)

        assert ensure(client)["created"] is True
        assert db.execute(text("SELECT count(*) FROM customers WHERE deleted_at IS NULL")).scalar_one() == 1

    def test_it_makes_another_when_the_customer_was_deleted_at_stripe(
        self, client: FlaskClient, stand_ins: StandIns, customer_id: str
    ) -> None:
        requests.delete(f"{stand_ins.url}/v1/customers/{customer_id}", auth=(KEY, ""), timeout=10)

        assert client.get("/customers/by-org/org_1", query_string=APP).status_code == 404
        assert ensure(client, name="B")["customerId"] != customer_id

    @pytest.mark.parametrize(
        "wrong", [{"email": "nobody"}, {"orgId": ""}, {"orgId": None}, {"metadata": {"a": 1}}, {"name": "x" * 300}]
    )
    def test_it_refuses_what_breaks_a_rule_before_anybody_is_asked(
        self, client: FlaskClient, stand_ins: StandIns, wrong: dict[str, Any]
    ) -> None:
        assert client.post("/customers/ensure", json={**ORG, **wrong}).status_code == 400
        assert stand_ins.ledger() == []

    def test_it_makes_one_customer_for_fifty_who_ask_at_once(
        self, database_url: str, stand_ins: StandIns, app: Flask
    ) -> None:
        """Fails when each row, or each request, has a customer of its own."""
        with (
            WebProcess.start(environment_of(database_url, stand_ins) | {"WEB_CONCURRENCY": "2"}) as web,
            ThreadPoolExecutor(50) as threads,
        ):

            def asked(number: int) -> requests.Response:
                return web.post_until_answered("/customers/ensure", {**ORG, "name": f"n{number}"}, f"key-{number}")

            answers = [response.json() for response in threads.map(asked, range(50))]

        assert len(customers_at_stripe(stand_ins)) == 1
        assert {answer["customerId"] for answer in answers} == set(customers_at_stripe(stand_ins))
        assert sum(answer["created"] for answer in answers) == 1

    def test_it_makes_one_customer_though_processes_are_killed_meanwhile(
        self, database_url: str, stand_ins: StandIns, app: Flask
    ) -> None:
        """Fails when what a process that died has asked for is asked for again under another key."""
        with (
            WebProcess.start(environment_of(database_url, stand_ins) | {"WEB_CONCURRENCY": "2"}) as web,
            ThreadPoolExecutor(50) as threads,
        ):
            stand_ins.fault("stripe", "delay", seconds=0.5, path="/v1/customers", executed=True)
            asked = [threads.submit(ensure_until_answered, web) for _ in range(50)]
            wait_until(lambda: customers_at_stripe(stand_ins), seconds=20, what="the customer at Stripe")
            for worker in web.workers():
                os.kill(worker, signal.SIGKILL)
            ids = {answer.result(60) for answer in asked}

        assert ids == set(customers_at_stripe(stand_ins))
        assert len(ids) == 1


def ensure_until_answered(web: WebProcess) -> str:
    """What a caller does: it asks again until it hears which customer it is."""
    ends_at = time.monotonic() + 50
    while time.monotonic() < ends_at:
        with suppress(requests.RequestException):
            answer = web.post("/customers/ensure", ORG)
            if answer.ok:
                return str(answer.json()["customerId"])
        time.sleep(0.05)
    raise AssertionError("nobody answered")


class TestDelete:
    def test_it_deletes_again_and_again(self, client: FlaskClient, stand_ins: StandIns, customer_id: str) -> None:
        answers = [client.delete("/customers/by-org/org_1", query_string=APP).json for _ in range(2)]

        assert answers == [{"success": True, "deleted": True}, {"success": True, "deleted": False}]
        assert customers_at_stripe(stand_ins) == []
        assert ensure(client)["customerId"] != customer_id

    def test_it_is_true_after_an_answer_that_was_lost(
        self, client: FlaskClient, stand_ins: StandIns, customer_id: str
    ) -> None:
        stand_ins.fault("stripe", "reset", path=f"/v1/customers/{customer_id}", executed=True)
        assert client.delete("/customers/by-org/org_1", query_string=APP).status_code >= 500
        assert client.delete("/customers/by-org/org_1", query_string=APP).json["deleted"] is True


class TestTransfer:
    def test_it_hands_the_customer_over(self, client: FlaskClient, customer_id: str) -> None:
        moved = client.post("/customers/transfer", json={**ORG, "toOrgId": "org_2"}).json
        again = client.post("/customers/transfer", json={**ORG, "toOrgId": "org_2"}).json

        assert (moved["moved"], again["moved"]) == (True, False)
        assert client.get("/customers/by-org/org_1", query_string=APP).status_code == 404
        shown = client.get("/customers/by-org/org_2", query_string=APP).json["customer"]
        assert shown["customerId"] == customer_id

    def test_it_is_refused_when_the_other_has_one(self, client: FlaskClient, customer_id: str) -> None:
        ensure(client, orgId="org_2")
        refused = client.post("/customers/transfer", json={**ORG, "toOrgId": "org_2"})

        assert (refused.status_code, refused.json["code"]) == (409, "customer_exists")
        assert client.get("/customers/by-org/org_1", query_string=APP).json["customer"]["customerId"] == customer_id


class TestPaymentMethods:
    def test_they_are_listed_first_the_one_that_would_be_charged(
        self, client: FlaskClient, stand_ins: StandIns, customer_id: str
    ) -> None:
        older, newer = (save(stand_ins, customer_id, name) for name in ("pm_card_visa", "pm_card_mastercard"))
        listed = self.listed(client)
        client.post("/payment-methods/default", json={**ORG, "paymentMethodId": older})
        with_default = self.listed(client)

        assert [method["paymentMethodId"] for method in listed] == [newer, older]
        assert [method["paymentMethodId"] for method in with_default] == [older, newer]
        assert [method["isDefault"] for method in with_default] == [True, False]
        assert (listed[1]["brand"], listed[1]["last4"], listed[1]["chargeable"]) == ("visa", "4242", True)

    def test_there_are_none_without_a_customer(self, client: FlaskClient) -> None:
        assert self.listed(client) == []

    def test_one_is_detached_once(self, client: FlaskClient, stand_ins: StandIns, customer_id: str) -> None:
        method = save(stand_ins, customer_id, "pm_card_visa")
        answers = [
            client.post("/payment-methods/detach", json={**ORG, "paymentMethodId": method}).status_code
            for _ in range(2)
        ]
        assert answers == [200, 404]
        assert self.listed(client) == []

    @pytest.mark.parametrize("route", ["default", "detach"])
    def test_one_of_another_organisation_is_not_found(
        self, client: FlaskClient, stand_ins: StandIns, customer_id: str, route: str
    ) -> None:
        """Fails when whose it is isn't asked."""
        ensure(client, orgId="org_2")
        method = save(stand_ins, customer_id, "pm_card_visa")
        body = {**ORG, "orgId": "org_2", "paymentMethodId": method}
        refused = client.post(f"/payment-methods/{route}", json=body)

        assert (refused.status_code, refused.json["error"]) == (404, "Payment method not found")
        assert len(self.listed(client)) == 1

    def listed(self, client: FlaskClient) -> list[dict[str, Any]]:
        return list(client.get("/payment-methods/by-org/org_1", query_string=APP).json["paymentMethods"])


class TestPages:
    def test_a_setup_page_makes_the_customer_and_is_no_payment(
        self, client: FlaskClient, stand_ins: StandIns, db: Connection
    ) -> None:
        opened = client.post("/payment-methods/setup", json={**ORG, **PAGE}).json

        assert opened["url"]
        assert opened["clientSecret"] is None
        assert len(customers_at_stripe(stand_ins)) == 1
        assert client.get("/status/by-org/org_1").json["payments"] == []

    def test_a_setup_page_can_be_inside_of_the_apps_own(self, client: FlaskClient) -> None:
        body = {**ORG, "uiMode": "embedded", "returnUrl": "https://shop.example/back"}
        opened = client.post("/payment-methods/setup", json=body).json
        assert opened["clientSecret"]
        assert opened["url"] is None

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "successUrl"),
            ({**PAGE, "returnUrl": "https://shop.example/"}, "returnUrl"),
            ({"uiMode": "embedded"}, "returnUrl"),
            ({**PAGE, "uiMode": "embedded", "returnUrl": "https://shop.example/"}, "cancelUrl"),
        ],
    )
    def test_a_setup_page_needs_the_addresses_of_its_kind(
        self, client: FlaskClient, stand_ins: StandIns, body: dict[str, Any], field: str
    ) -> None:
        refused = client.post("/payment-methods/setup", json={**ORG, **body})
        assert refused.status_code == 400
        assert field in refused.json["details"]["fieldErrors"]
        assert stand_ins.ledger() == []

    def test_the_portal_needs_a_customer(self, client: FlaskClient) -> None:
        body = {**ORG, "returnUrl": "https://shop.example/account"}
        assert client.post("/billing-portal/create", json=body).status_code == 404
        ensure(client)
        assert client.post("/billing-portal/create", json=body).json["url"].startswith("http")

    def test_a_key_that_another_request_has_used_is_refused(self, client: FlaskClient, customer_id: str) -> None:
        headers = {"Idempotency-Key": "once"}
        pages = [
            client.post("/billing-portal/create", json={**ORG, "returnUrl": url}, headers=headers)
            for url in ("https://shop.example/a", "https://shop.example/a", "https://shop.example/b")
        ]
        assert [page.status_code for page in pages] == [200, 200, 422]
        assert pages[0].json["url"] == pages[1].json["url"]
