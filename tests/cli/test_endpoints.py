"""`flask endpoints`: what is told to Stripe, and what the commands print of it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app import create_app
from app.cli.jobs import worker_jobs
from app.cli.printing import Printer
from app.config import Settings
from app.request_context import EXTENSION_KEY
from app.services.reconciliation.reconcile import EVENT_TYPES
from tests.cli import Run
from tests.databases import dispose
from tests.factories import intent
from tests.stand_ins import StandIns
from tests.webhooks import deliver, event

URL = "https://pay.example.com/webhooks/stripe/shop"


def show_types(*options: str) -> Result:
    return create_app(Settings.from_environment({})).test_cli_runner().invoke(args=["endpoints", "types", *options])


class TestTypes:
    def test_it_shows_each_type_that_reconciliation_asks_for(self) -> None:
        result = show_types()

        assert (result.exit_code, result.stderr) == (0, "")
        assert tuple(result.stdout.splitlines()) == EVENT_TYPES

    def test_it_shows_them_as_stripe_listen_takes_them(self) -> None:
        result = show_types("--comma")

        assert result.stdout.count("\n") == 1
        assert tuple(result.stdout.strip().split(",")) == EVENT_TYPES

    @pytest.mark.parametrize("name", ["checkout.session.completed", "payment_intent.succeeded", "charge.refunded"])
    def test_what_a_payment_lives_by_is_among_them(self, name: str) -> None:
        assert name in show_types().stdout.splitlines()


@pytest.fixture
def reachable(app: Flask, settings: Settings) -> Iterator[Flask]:
    """An application that knows where Stripe reaches it; `app` has emptied the database."""
    application = create_app(replace(settings, public_url="https://pay.example.com"))
    yield application
    dispose(application)


@pytest.fixture
def flask_at_address(reachable: Flask) -> Run:
    return lambda *arguments: reachable.test_cli_runner().invoke(args=list(arguments))


@pytest.mark.parametrize("command", [["sync"], ["sync", "--dry-run"], ["show"]])
def test_it_refuses_and_says_why_without_an_address(flask: Run, command: list[str]) -> None:
    result = flask("endpoints", *command)

    advice = "set it to the URL at which Stripe reaches the service from outside"
    assert (result.exit_code, result.stderr) == (1, f"Error: PUBLIC_URL is not set: {advice}.\n")


class TestSync:
    def test_it_makes_an_endpoint_for_each_app_with_payments(
        self, flask_at_address: Run, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        client.post("/payment-intent/create", json=intent())
        (account_id,) = stand_ins.state()["accounts"]

        dry = flask_at_address("endpoints", "sync", "--dry-run")
        assert dry.stdout == f"app app=shop account={account_id}:test url={URL} differs=there is none\n"
        made = flask_at_address("endpoints", "sync")
        (endpoint,) = stand_ins.state()["accounts"][account_id]["objects"]["webhook_endpoint"]
        assert made.stdout == f"endpoint apps=shop account={account_id}:test url={URL} done=made {endpoint['id']}\n"
        again = flask_at_address("endpoints", "sync")
        assert again.stdout == f"endpoint apps=shop account={account_id}:test url={URL} done=nothing\n"
        assert (dry.exit_code, made.exit_code, again.exit_code) == (0, 0, 0)

    def test_it_fails_for_an_app_without_a_key_and_goes_on_with_the_others(
        self, flask_at_address: Run, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        for app_id in ("gone", "shop"):
            client.post("/payment-intent/create", json=intent(appId=app_id))
        stand_ins.control("keys", appId="gone", key=None)

        result = flask_at_address("endpoints", "sync")

        failed, made = result.stdout.splitlines()
        assert failed == "endpoint apps=gone error=No Stripe key configured for appId 'gone'"
        assert "done=made we_" in made
        assert result.exit_code == 1


class TestShow:
    def test_it_says_which_apps_are_told_in_other_versions(
        self, flask_at_address: Run, client: FlaskClient, db: Connection
    ) -> None:
        created = client.post("/payment-intent/create", json=intent()).json
        for number, version in enumerate(("2020-08-27", "2026-10-28.endive", "2025-03-31.basil", "no version")):
            told = {"id": created["paymentIntentId"] if number % 2 == 0 else "pi_1", "object": "payment_intent"}
            assert deliver(client, event("payment_intent.created", told, api_version=version)).status_code == 200
        db.execute(
            text("UPDATE stripe_events SET received_at = now() - interval '25 hours' WHERE api_version < '2021'")
        )
        deliver(client, event("customer.created", {"id": "cus_1", "object": "customer"}, api_version="2020-08-27"))

        shown = flask_at_address("endpoints", "show").stdout.splitlines()

        assert shown[0].endswith("differs=there is none other_versions=1 events in 2025-03-31.basil")
        assert shown[1:] == ["events other_versions=1 events in 2020-08-27"]


class TestWorker:
    def test_it_makes_the_endpoint_of_a_new_app_in_one_turn_and_then_rests(
        self, reachable: Flask, client: FlaskClient, capsys: pytest.CaptureFixture[str]
    ) -> None:
        client.post("/payment-intent/create", json=intent())
        services = reachable.extensions[EXTENSION_KEY]
        (job,) = [job for job in worker_jobs(services.settings) if job.name == "webhook endpoints"]
        for _ in range(2):
            job.take_turn(services, Printer(as_json=False))

        (line,) = capsys.readouterr().out.splitlines()
        assert "done=made we_" in line
