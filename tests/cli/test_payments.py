"""`flask payments`: one payment, and those that are stuck."""

import json
import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from tests.cli import Run
from tests.factories import intent
from tests.stand_ins import StandIns
from tests.webhooks import deliver, event, paid_intent


@pytest.fixture
def paid(client: FlaskClient) -> dict[str, Any]:
    """A payment that was created and paid."""
    created = client.post("/payment-intent/create", json=intent(), headers={"Idempotency-Key": "order-1"}).json
    deliver(client, event("payment_intent.succeeded", paid_intent(created["paymentIntentId"])))
    return dict(created)


def fields_of(section: str, printed: str) -> dict[str, str]:
    """A section's table of fields and values."""
    lines = printed.splitlines()
    header, *rows = lines[lines.index(section) + 1 :]
    assert header.split() == ["field", "value"]
    fields = {}
    for row in rows:
        if not row.startswith("  "):
            break
        name, _, value = row.strip().partition(" ")
        fields[name] = value.strip()
    return fields


class TestShow:
    def test_it_shows_the_row_the_steps_the_run_and_the_events(
        self, flask: Run, paid: dict[str, Any], db: Connection
    ) -> None:
        result = flask("payments", "show", paid["paymentId"])

        payment = fields_of("payment", result.stdout)
        assert (payment["id"], payment["status"]) == (paid["paymentId"], "succeeded")
        operation = fields_of("operation", result.stdout)
        assert (operation["idempotency_key"], operation["step"], operation["lease_until"]) == (
            "order-1",
            "finished",
            "",
        )
        run = fields_of("run", result.stdout)
        assert (run["run_id"], run["tracking_state"]) == (
            db.execute(text("SELECT run_id FROM payments")).scalar_one(),
            "complete",
        )
        assert result.exit_code == 0

    def test_it_shows_the_events_in_order_below_their_names(
        self, flask: Run, client: FlaskClient, paid: dict[str, Any]
    ) -> None:
        earlier = event(
            "payment_intent.processing", {"id": paid["paymentIntentId"], "object": "payment_intent"}, created=1
        )
        deliver(client, earlier)

        lines = flask("payments", "show", paid["paymentId"]).stdout.splitlines()

        header, first, *_ = lines[lines.index("events") + 1 :]
        assert header.split() == ["created", "type", "id", "received_at"]
        assert first.split()[:3] == ["1", "payment_intent.processing", earlier["id"]]
        assert header.index("type") == first.index("payment_intent")

    def test_it_prints_one_object_as_json(self, flask: Run, paid: dict[str, Any]) -> None:
        shown = json.loads(flask("payments", "show", paid["paymentId"], "--json").stdout)

        assert list(shown) == ["payment", "operation", "run", "actions", "events"]
        assert (shown["payment"]["id"], shown["operation"]["step"]) == (paid["paymentId"], "finished")
        assert "payment_intent.succeeded" in [each["type"] for each in shown["events"]]

    def test_it_fails_with_a_sentence_when_there_is_no_such_payment(self, flask: Run) -> None:
        result = flask("payments", "show", uuid.uuid4())
        assert (result.stdout, result.stderr, result.exit_code) == ("", "Error: Payment not found\n", 1)

    def test_it_takes_nothing_but_an_id(self, flask: Run) -> None:
        result = flask("payments", "show", "pi_1")
        assert "'pi_1' is not a valid UUID" in result.stderr
        assert result.exit_code == 2


class TestStuck:
    @pytest.fixture
    def stuck(self, leave_asked: Callable[..., list[str]], db: Connection) -> str:
        (left, _) = leave_asked(2)
        db.execute(
            text("UPDATE operations SET tracking_state = 'stuck', tracking_error = 'No Stripe key' WHERE id = :id"),
            {"id": left},
        )
        return left

    def test_it_lists_those_that_are_stuck_and_no_others(self, flask: Run, stuck: str) -> None:
        header, *rows = flask("payments", "stuck").stdout.splitlines()

        assert header.split() == ["id", "payment_id", "app_id", "kind", "step", "asked_at", "tracking_error"]
        (row,) = rows
        assert row.split()[:5] == [stuck, stuck, "shop", "payment_intent", "asked"]
        assert row.endswith("No Stripe key")

    def test_it_prints_an_object_a_line_as_json(self, flask: Run, stuck: str) -> None:
        (listed,) = [json.loads(line) for line in flask("payments", "stuck", "--json").stdout.splitlines()]
        assert (listed["id"], listed["tracking_error"]) == (stuck, "No Stripe key")

    def test_it_says_that_there_are_none(self, flask: Run) -> None:
        result = flask("payments", "stuck")
        assert (result.stdout, result.exit_code) == ("No payment is stuck.\n", 0)
        assert flask("payments", "stuck", "--json").stdout == ""


class TestRefund:
    @pytest.fixture
    def payment_id(self, client: FlaskClient, stand_ins: StandIns) -> str:
        made = client.post("/payment-intent/create", json=intent()).json
        stand_ins.control(f"intents/{made['paymentIntentId']}/pay")
        return str(made["paymentId"])

    def test_it_refunds_once_for_a_key(self, flask: Run, stand_ins: StandIns, payment_id: str) -> None:
        first = flask("payments", "refund", payment_id, "--amount", 500)
        key = first.stderr.split()[-1]
        again = flask("payments", "refund", payment_id, "--amount", 500, "--idempotency-key", key)

        assert re.fullmatch(r"refund re_\w+: 500 usd, succeeded\n", first.stdout)
        assert (first.exit_code, again.exit_code, again.stdout) == (0, 0, first.stdout)
        assert stand_ins.effects().count("refund.create") == 1
        (action,) = json.loads(flask("payments", "show", payment_id, "--json").stdout)["actions"]
        assert (action["kind"], action["step"], action["idempotency_key"]) == ("refund", "finished", key)

    def test_it_says_what_stripe_says(self, flask: Run, payment_id: str) -> None:
        assert flask("payments", "refund", payment_id).exit_code == 0
        refused = flask("payments", "refund", payment_id)
        assert refused.exit_code == 1
        assert "has already been refunded. (charge_already_refunded)" in refused.stderr

    def test_it_says_that_there_is_no_such_payment(self, flask: Run) -> None:
        result = flask("payments", "refund", uuid.uuid4())
        assert (result.exit_code, result.stderr) == (1, "Error: Payment not found\n")
