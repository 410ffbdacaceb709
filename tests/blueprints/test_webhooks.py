"""Who may deliver an event, and what is answered."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app import create_app
from app.config import Settings
from app.services.events.webhooks import TOLERANCE_SECONDS
from tests.factories import intent
from tests.stand_ins import StandIns
from tests.webhooks import SECRET, deliver, event, sign

GENUINE = event("customer.created", {"id": "cus_1", "object": "customer"}, created=1_700_000_000)
PAYLOAD = json.dumps(GENUINE).encode()
APP_SECRET = "whsec_sandbox_shop"


BAD_SIGNATURES: dict[str, Callable[[], str]] = {
    "of another secret": lambda: sign(PAYLOAD, "whsec_other"),
    "too old": lambda: sign(PAYLOAD, age_seconds=310),
    "too new": lambda: sign(PAYLOAD, age_seconds=-310),
    "of another body": lambda: sign(PAYLOAD + b" "),
    "of no v1": lambda: sign(PAYLOAD).replace("v1=", "v0="),
    "without time": lambda: sign(PAYLOAD).split(",")[1],
    "without signature": lambda: sign(PAYLOAD).split(",")[0],
    "cut short": lambda: sign(PAYLOAD)[:-1],
    "too long": lambda: sign(PAYLOAD) + "0",
    "no hexadecimal": lambda: sign(PAYLOAD)[:-1] + "g",
    "of two times": lambda: f"{sign(PAYLOAD)},t=1",
    "of an old time beside a new one": lambda: f"{sign(PAYLOAD, age_seconds=310)},t={int(time.time())}",
    "of a time that isn't all": lambda: sign(PAYLOAD).replace(",", "=1,"),
    "only a time": lambda: "t=1",
    "empty parts": lambda: "t=,v1=",
    "nonsense": lambda: "nonsense",
    "an endless time": lambda: "t=" + "9" * 5000 + ",v1=00",
    "no ASCII": lambda: "t=1,v1=caf\u00e9",
    "any bytes": lambda: "\xff\xfe",
    "genuine among many": lambda: sign(PAYLOAD) + ",v1=a" * 1000,
    "many separators": lambda: "=" * 1000,
}


def count(db: Connection) -> int:
    return int(db.execute(text("SELECT count(*) FROM stripe_events")).scalar_one())


def post(app: Flask, payload: bytes, signature: str | None, path: str = "/webhooks/stripe") -> Any:
    headers = {} if signature is None else {"Stripe-Signature": signature}
    return app.test_client().post(path, data=payload, content_type="application/json", headers=headers)


class TestSignature:
    def test_it_needs_no_api_key(self, app: Flask, db: Connection) -> None:
        response = post(app, PAYLOAD, sign(PAYLOAD))

        assert (response.status_code, response.json) == (200, {"received": True})
        assert count(db) == 1

    @pytest.mark.parametrize("signature", [None, ""])
    def test_it_refuses_a_missing_one(self, app: Flask, db: Connection, signature: str | None) -> None:
        response = post(app, PAYLOAD, signature)

        assert response.status_code == 400
        assert response.json["error"] == "Missing stripe-signature header"
        assert count(db) == 0

    @pytest.mark.parametrize("name", BAD_SIGNATURES)
    def test_it_refuses_any_other(self, app: Flask, db: Connection, name: str) -> None:
        """Fails when the tolerance isn't passed on, or when what comes from the future is taken."""
        response = post(app, PAYLOAD, BAD_SIGNATURES[name]())

        assert response.status_code == 400
        assert response.json["error"] == "Invalid signature"
        assert count(db) == 0

    def test_it_takes_one_of_several(self, app: Flask) -> None:
        """While a secret is rolled, Stripe signs with the old one and the new."""
        old, new = sign(PAYLOAD, "whsec_old"), sign(PAYLOAD)

        assert post(app, PAYLOAD, f"{old},{new.split(',')[1]},v0=test").status_code == 200

    @pytest.mark.parametrize("age_seconds", [290, -290])
    def test_it_takes_one_within_the_tolerance(self, app: Flask, age_seconds: int) -> None:
        assert post(app, PAYLOAD, sign(PAYLOAD, age_seconds=age_seconds)).status_code == 200

    def test_it_takes_each_of_several_secrets(self, settings: Settings, app: Flask) -> None:
        rotating = create_app(replace(settings, webhook_secrets=("whsec_old", "whsec_new")))

        for secret, status in (("whsec_old", 200), ("whsec_new", 200), (SECRET, 400)):
            assert post(rotating, PAYLOAD, sign(PAYLOAD, secret)).status_code == status

    @pytest.mark.parametrize("payload", [b"\xff\xfe", b"", b"{", b'{"id": "\\ud800"}'])
    def test_it_takes_any_bytes_as_body(self, app: Flask, db: Connection, payload: bytes) -> None:
        signature = sign(payload) if payload != b"\xff\xfe" else sign(b"x")

        assert post(app, payload, signature).status_code == 400
        assert count(db) == 0


# https://docs.stripe.com/api/v2/core/events/object
THIN = {
    "id": "evt_thin",
    "object": "v2.core.event",
    "type": "v1.payment_intent.succeeded",
    "created": "2026-09-24T12:00:00.000Z",
    "livemode": False,
    "related_object": {"id": "pi_1", "type": "payment_intent", "url": "/v1/payment_intents/pi_1"},
}


class TestEvent:
    @pytest.mark.parametrize(
        "body",
        [
            [],
            None,
            7,
            "event",
            {},
            GENUINE | {"id": 1},
            GENUINE | {"id": ""},
            GENUINE | {"id": "e" * 256},
            GENUINE | {"id": "a\x00"},
            GENUINE | {"type": None},
            GENUINE | {"created": "1"},
            GENUINE | {"created": True},
            GENUINE | {"created": 1.5},
            GENUINE | {"created": 2**63},
            GENUINE | {"data": None},
            GENUINE | {"data": []},
            GENUINE | {"data": {"object": "cus_1"}},
            GENUINE | {"data": {"object": {"id": 7}}},
        ],
        ids=repr,
    )
    def test_it_refuses_what_is_no_event_though_it_is_signed(self, app: Flask, db: Connection, body: Any) -> None:
        payload = json.dumps(body).encode()

        assert post(app, payload, sign(payload)).status_code == 400
        assert count(db) == 0

    # Beyond 254 levels orjson writes nothing, beyond 1,024 it reads nothing, and by then Python's stack is full.
    @pytest.mark.parametrize(
        ("levels", "status"), [(200, 200), *((deep, 400) for deep in (201, 254, 300, 500, 1000, 1022, 1100, 6000))]
    )
    @pytest.mark.parametrize("part", ["object", "previous_attributes"])
    def test_it_refuses_what_is_too_deep_to_store(
        self, app: Flask, db: Connection, part: str, levels: int, status: int
    ) -> None:
        deep = b'{"deep":' * (levels - 1) + b"{}" + b"}" * (levels - 1)
        payload = json.dumps(GENUINE | {"data": {"object": {"id": "pi_1"}} | {part: "DEEP"}}).encode()
        payload = payload.replace(b'"DEEP"', deep)

        assert post(app, payload, sign(payload)).status_code == status
        assert count(db) == (1 if status == 200 else 0)

    @pytest.mark.parametrize(("size", "status"), [(1024 * 1024, 200), (1024 * 1024 + 1, 413)])
    def test_it_takes_a_body_of_one_mebibyte(self, app: Flask, size: int, status: int) -> None:
        payload = PAYLOAD.ljust(size)

        assert post(app, payload, sign(payload)).status_code == status

    @pytest.mark.parametrize(
        "unnamed", [{"object": "balance", "available": []}, {"object": "invoice", "id": None}], ids=repr
    )
    def test_it_takes_an_object_without_id(self, client: FlaskClient, db: Connection, unnamed: dict[str, Any]) -> None:
        assert deliver(client, event("balance.available", unnamed)).status_code == 200
        assert count(db) == 1

    def test_it_stores_a_thin_event_as_it_is(self, client: FlaskClient, db: Connection) -> None:
        """Even one about a payment's own object tells nothing that is folded."""
        created = client.post("/payment-intent/create", json=intent()).json
        before = client.get(f"/status/{created['paymentId']}").json
        about = THIN["related_object"] | {"id": created["paymentIntentId"]}
        metadata = {"paymentId": created["paymentId"]}
        thin = THIN | {"related_object": about, "metadata": metadata, "data": {"client_secret": "pi_secret_1", "a": 1}}

        assert deliver(client, thin).json == {"received": True}
        stored = db.execute(text("SELECT object, created, payment_id FROM stripe_events WHERE id = 'evt_thin'")).one()
        assert stored == (thin | {"data": {"a": 1}}, 1_790_251_200, None)
        assert client.get(f"/status/{created['paymentId']}").json == before

    @pytest.mark.parametrize("created", [None, 1_790_251_200, "yesterday", "", True])
    def test_it_refuses_a_thin_event_whose_time_is_none(self, client: FlaskClient, created: object) -> None:
        assert deliver(client, THIN | {"created": created}).status_code == 400

    def test_it_stores_a_duplicate_once(self, client: FlaskClient, db: Connection) -> None:
        for _ in range(3):
            assert deliver(client, GENUINE).json == {"received": True}
        assert count(db) == 1

    @pytest.mark.parametrize("odd", [-(2**62), 2**62, 0])
    def test_it_takes_any_time(self, client: FlaskClient, stand_ins: StandIns, odd: int) -> None:
        created = client.post("/payment-intent/create", json=intent()).json
        failed = event(
            "payment_intent.payment_failed",
            {"id": created["paymentIntentId"], "object": "payment_intent", "last_payment_error": "odd"},
            created=odd,
        )
        assert deliver(client, failed).status_code == 200
        assert client.get(f"/status/{created['paymentId']}").status_code == 200

    def test_it_stores_no_secret_and_nothing_that_jsonb_refuses(self, client: FlaskClient, db: Connection) -> None:
        deep = {"list": [{"client_secret": "pi_1_secret_a", "next_action": {"url": "https://x"}, "k\x00": "v\x00"}]}
        deliver(client, event("payment_intent.created", {"id": "pi_1", "object": "payment_intent", "deep": deep}))

        stored = db.execute(text("SELECT object FROM stripe_events")).scalar_one()
        assert stored == {
            "id": "pi_1",
            "object": "payment_intent",
            "deep": {"list": [{"k\ufffd": "v\ufffd"}]},
        }


class TestPathOfAnApp:
    def test_it_verifies_with_the_secret_of_the_app(self, client: FlaskClient, stand_ins: StandIns) -> None:
        secret = app_secret(stand_ins)

        assert deliver(client, GENUINE, app_id="shop", secret=secret).status_code == 200
        assert deliver(client, GENUINE, app_id="shop", secret=SECRET).status_code == 400

    def test_it_asks_afresh_when_the_secret_was_rotated(self, client: FlaskClient, stand_ins: StandIns) -> None:
        deliver(client, GENUINE, app_id="shop", secret=app_secret(stand_ins))
        stand_ins.control("keys", appId="shop", provider="stripe-webhook", key="whsec_rotated")

        assert deliver(client, GENUINE, app_id="shop", secret="whsec_rotated").status_code == 200

    @pytest.mark.parametrize("name", [name for name in BAD_SIGNATURES if not name.startswith("of another ")])
    def test_it_tells_without_key_service_what_can_be_told(self, app: Flask, stand_ins: StandIns, name: str) -> None:
        assert post(app, PAYLOAD, BAD_SIGNATURES[name](), "/webhooks/stripe/shop").status_code == 400
        assert stand_ins.ledger() == []

    def test_it_asks_nobody_about_too_large_a_body(self, app: Flask, stand_ins: StandIns) -> None:
        payload = PAYLOAD.ljust(1024 * 1024 + 1)

        assert post(app, payload, sign(payload, APP_SECRET), "/webhooks/stripe/shop").status_code == 413
        assert stand_ins.ledger() == []

    def test_it_lets_forgeries_ask_key_service_once_in_a_while(self, client: FlaskClient, stand_ins: StandIns) -> None:
        """Without asking, it doesn't know that they are forged. Fails when `_Asks` forgets what it asked."""
        answers = [deliver(client, GENUINE, app_id="shop", secret="whsec_forged") for _ in range(20)]

        assert [answer.status_code for answer in answers] == [400] + [503] * 19
        assert all(answer.json["code"] == "overloaded" and answer.headers["Retry-After"] for answer in answers[1:])
        assert len(stand_ins.ledger("key-service")) == 1

    def test_a_genuine_event_is_taken_after_a_forgery(self, client: FlaskClient, stand_ins: StandIns) -> None:
        for secret, status in (("whsec_forged", 400), (APP_SECRET, 200), ("whsec_forged", 400), (APP_SECRET, 200)):
            assert deliver(client, GENUINE, app_id="shop", secret=secret).status_code == status

    def test_a_genuine_event_is_taken_in_an_outage_after_a_forgery(
        self, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        assert deliver(client, GENUINE, app_id="shop", secret=APP_SECRET).status_code == 200
        stand_ins.fault("key-service", "status", status=503, times=0)

        for secret, status in (("whsec_forged", 503), (APP_SECRET, 200)):
            assert deliver(client, GENUINE, app_id="shop", secret=secret).status_code == status

    def test_one_does_not_grow_too_old_while_key_service_is_asked(self, app: Flask, stand_ins: StandIns) -> None:
        stand_ins.fault("key-service", "delay", seconds=1.5)
        signature = sign(PAYLOAD, APP_SECRET, age_seconds=TOLERANCE_SECONDS - 1)

        assert post(app, PAYLOAD, signature, "/webhooks/stripe/shop").status_code == 200

    def test_it_answers_5xx_when_key_service_is_down(
        self, client: FlaskClient, stand_ins: StandIns, db: Connection
    ) -> None:
        stand_ins.fault("key-service", "status", status=503, times=0)

        assert deliver(client, GENUINE, app_id="shop", secret=APP_SECRET).status_code == 503
        assert count(db) == 0

    def test_it_refuses_an_app_without_secret(self, client: FlaskClient, stand_ins: StandIns) -> None:
        stand_ins.control("keys", appId="shop", provider="stripe-webhook", key=None)

        assert deliver(client, GENUINE, app_id="shop", secret=APP_SECRET).status_code == 400

    @pytest.mark.parametrize("app_id", ["a%00", "a" * 201, "caf%C3%A9", "a b"])
    def test_it_asks_nobody_about_what_can_not_be_an_app(
        self, client: FlaskClient, stand_ins: StandIns, app_id: str
    ) -> None:
        assert deliver(client, GENUINE, app_id=app_id, secret=APP_SECRET).status_code == 400
        assert stand_ins.ledger() == []

    def test_it_touches_the_payments_of_that_app_only(self, client: FlaskClient, stand_ins: StandIns) -> None:
        created = client.post("/payment-intent/create", json=intent(appId="shop")).json
        paid = event(
            "payment_intent.succeeded",
            {"id": created["paymentIntentId"], "object": "payment_intent", "amount_received": 2000},
        )

        assert deliver(client, paid, app_id="other", secret=app_secret(stand_ins, "other")).status_code == 200
        assert client.get(f"/status/{created['paymentId']}").json["payment"]["status"] == "requires_payment_method"
        assert deliver(client, paid, app_id="shop", secret=app_secret(stand_ins)).status_code == 200
        assert client.get(f"/status/{created['paymentId']}").json["payment"]["status"] == "succeeded"


def app_secret(stand_ins: StandIns, app_id: str = "shop") -> str:
    """What key-service says."""
    answer = stand_ins.session.get(
        f"{stand_ins.url}/key-service/internal/app-keys/stripe-webhook/decrypt",
        params={"appId": app_id},
        headers={
            "X-API-Key": stand_ins.environment["KEY_SERVICE_API_KEY"],
            "X-Caller-Service": "stripe",
            "X-Caller-Method": "POST",
            "X-Caller-Path": "/webhooks/stripe/{appId}",
        },
        timeout=10,
    )
    return str(answer.json()["key"])
