"""Canary secrets: put everywhere, and looked for everywhere, through every fault."""

import logging
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from tests.factories import checkout, intent
from tests.stand_ins import StandIns
from tests.webhooks import SECRET, deliver, event

STRIPE_KEY = "sk_test_canary1STRIPE"
APP_SECRET = "whsec_canary2WEBHOOK"
FAULTS: list[dict[str, Any]] = [
    {"kind": "status", "status": status} for status in (400, 401, 402, 403, 404, 409, 422, 429, 500, 503)
] + [
    {"kind": "html"},
    {"kind": "html", "status": 500},
    {"kind": "half_body"},
    {"kind": "reset"},
    {"kind": "redirect"},
    {"kind": "json", "status": 400, "body": {"error": {"type": "invalid_request_error", "message": STRIPE_KEY}}},
    {"kind": "json", "status": 402, "body": {"error": {"type": "card_error", "message": f"no {STRIPE_KEY} here"}}},
    {"kind": "json", "status": 500, "body": {"error": {"message": STRIPE_KEY}}},
    {"kind": "json", "status": 200, "body": [STRIPE_KEY, APP_SECRET]},
    {"kind": "json", "status": 200, "body": {"key": STRIPE_KEY, "id": 7, "client_secret": "pi_1_secret_canary3"}},
]


def canaries(stand_ins: StandIns) -> list[str]:
    return [
        STRIPE_KEY,
        APP_SECRET,
        SECRET,
        "_secret_",
        stand_ins.environment["KEY_SERVICE_API_KEY"],
        stand_ins.environment["RUNS_SERVICE_API_KEY"],
    ]


class TestSecrets:
    @pytest.mark.parametrize("service", ["key-service", "runs-service", "stripe"])
    def test_none_is_in_a_log_an_error_or_a_table(
        self,
        client: FlaskClient,
        stand_ins: StandIns,
        db: Connection,
        caplog: pytest.LogCaptureFixture,
        service: str,
    ) -> None:
        """Fails when an answer is kept with its client secret, or an event stored with one."""
        caplog.set_level(logging.DEBUG)
        stand_ins.control("keys", appId="shop", key=STRIPE_KEY)
        stand_ins.control("keys", appId="shop", provider="stripe-webhook", key=APP_SECRET)
        answers = []
        for number, fault in enumerate(FAULTS):
            stand_ins.fault(service, times=0, **fault)
            for path, body in (("/checkout/create", checkout()), ("/payment-intent/create", intent())):
                keyed = {"Idempotency-Key": f"{path}{number}"}
                answers.append(client.post(path, json=body, headers=keyed))
                stand_ins.heal()
                answers.append(client.post(path, json=body, headers=keyed))
                stand_ins.fault(service, times=0, **fault)
            told = event(
                "payment_intent.created", {"id": "pi_1", "object": "payment_intent", "client_secret": "x_secret_y"}
            )
            answers.append(deliver(client, told, app_id="shop", secret=APP_SECRET))
            stand_ins.heal()

        dump = "".join(
            db.execute(text(f"SELECT coalesce(string_agg(t::text, ''), '') FROM {table} t")).scalar_one()
            for table in ("payments", "stripe_events", "event_cursors")
        )
        errors = "".join(answer.text for answer in answers if answer.status_code != 200)
        assert len({answer.status_code for answer in answers}) >= 3
        for canary in canaries(stand_ins):
            assert canary not in caplog.text
            assert canary not in errors
            assert canary not in dump
