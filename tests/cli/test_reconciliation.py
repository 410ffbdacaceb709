"""`flask reconcile`: what it prints, and when it fails."""

import json
from datetime import timedelta

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from tests.cli import Run
from tests.factories import intent
from tests.stand_ins import StandIns
from tests.webhooks import deliver, event, paid_intent


@pytest.fixture
def lost_payment(client: FlaskClient, stand_ins: StandIns) -> str:
    """A payment that was paid at Stripe while no webhook arrived; the value is its id."""
    created = client.post("/payment-intent/create", json=intent()).json
    stand_ins.control(f"intents/{created['paymentIntentId']}/pay")
    return str(created["paymentId"])


class TestReconcile:
    def test_it_stores_what_webhooks_lost_and_prints_each_app(
        self, flask: Run, client: FlaskClient, lost_payment: str
    ) -> None:
        result = flask("reconcile")

        app, *others = result.stdout.splitlines()
        words = dict(word.split("=") for word in app.split()[1:])
        assert words["app"] == "shop"
        assert int(words["listed"]) == int(words["stored"]) >= 2
        assert others == ["joined events payments=0", "deleted waiting events count=0"]
        assert result.exit_code == 0
        assert client.get(f"/status/{lost_payment}").json["payment"]["status"] == "succeeded"

    def test_it_joins_and_deletes_waiting_events(self, flask: Run, client: FlaskClient, db: Connection) -> None:
        created = client.post("/payment-intent/create", json=intent()).json
        deliver(client, event("payment_intent.succeeded", paid_intent(created["paymentIntentId"])))
        deliver(client, event("customer.created", {"id": "cus_1", "object": "customer"}))
        age = text("UPDATE stripe_events SET payment_id = NULL, received_at = now() - :age WHERE id LIKE 'evt_%'")
        db.execute(age, {"age": timedelta(days=91)})

        assert flask("reconcile").stdout.splitlines()[1:] == [
            "joined events payments=1",
            "deleted waiting events count=1",
        ]

    def test_it_fails_when_an_app_failed_and_goes_on_with_the_others(
        self, flask: Run, client: FlaskClient, services: Services, stand_ins: StandIns
    ) -> None:
        for app_id in ("other", "shop"):
            client.post("/payment-intent/create", json=intent(appId=app_id))
        stand_ins.control("keys", appId="other", key=None)
        services.keys._keys.clear()

        result = flask("reconcile")

        failed, done = result.stdout.splitlines()[:2]
        assert failed.startswith("reconciled app=other listed=0 stored=0 error=No Stripe key")
        assert done == "reconciled app=shop listed=1 stored=1"
        assert result.exit_code == 1

    def test_it_prints_json_for_programs(self, flask: Run, client: FlaskClient) -> None:
        client.post("/payment-intent/create", json=intent())

        assert [json.loads(line) for line in flask("reconcile", "--json").stdout.splitlines()] == [
            {"kind": "reconciled", "app": "shop", "listed": 1, "stored": 1},
            {"kind": "joined events", "payments": 0},
            {"kind": "deleted waiting events", "count": 0},
        ]
