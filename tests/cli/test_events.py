"""`flask events replay`: which payments are folded again."""

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from tests.cli import Run
from tests.databases import dispose
from tests.factories import intent
from tests.webhooks import deliver, event, paid_intent


@pytest.fixture
def damaged(client: FlaskClient, db: Connection) -> list[str]:
    """Two payments that were paid, and whose rows don't say so; the events of the first came two days ago."""
    payment_ids = []
    for _ in range(2):
        created = client.post("/payment-intent/create", json=intent()).json
        deliver(client, event("payment_intent.succeeded", paid_intent(created["paymentIntentId"])))
        payment_ids.append(str(created["paymentId"]))
    db.execute(text("UPDATE payments SET status = 'requires_payment_method'"))
    age = text("UPDATE stripe_events SET received_at = now() - interval '2 days' WHERE payment_id = :id")
    db.execute(age, {"id": payment_ids[0]})
    return payment_ids


@pytest.fixture
def statuses(db: Connection, damaged: list[str]) -> Callable[[], list[str]]:
    rows = text("SELECT id::text, status FROM payments")

    def read() -> list[str]:
        found = {row.id: row.status for row in db.execute(rows)}
        return [found[payment_id] for payment_id in damaged]

    return read


class TestReplay:
    @pytest.fixture
    def server_elsewhere(self, app: Flask, db: Connection) -> Iterator[None]:
        """The database is in another time zone, for connections that are made from now on."""
        name = db.execute(text("SELECT current_database()")).scalar_one()
        db.execute(text(f"ALTER DATABASE {name} SET timezone TO 'Asia/Tokyo'"))
        dispose(app)
        yield
        db.execute(text(f"ALTER DATABASE {name} RESET timezone"))

    def test_it_folds_one_payment_again(
        self, flask: Run, damaged: list[str], statuses: Callable[[], list[str]]
    ) -> None:
        result = flask("events", "replay", "--payment", damaged[0])

        assert (result.stdout, result.exit_code) == ("1 folded again\n", 0)
        assert statuses() == ["succeeded", "requires_payment_method"]

    @pytest.mark.parametrize(
        ("ago", "count", "first"),
        [(timedelta(days=1), 1, "requires_payment_method"), (timedelta(days=3), 2, "succeeded")],
    )
    def test_it_folds_the_payments_with_events_received_since_a_time(
        self, flask: Run, statuses: Callable[[], list[str]], ago: timedelta, count: int, first: str
    ) -> None:
        result = flask("events", "replay", "--since", f"{datetime.now(UTC) - ago:%Y-%m-%dT%H:%M:%S}")

        assert result.stdout == f"{count} folded again\n"
        assert statuses() == [first, "succeeded"]

    def test_it_takes_the_time_as_utc(
        self, flask: Run, db: Connection, statuses: Callable[[], list[str]], server_elsewhere: None
    ) -> None:
        """Fails when the time is taken as the server's own."""
        db.execute(text("UPDATE stripe_events SET received_at = '2026-03-01 12:00Z' WHERE payment_id IS NOT NULL"))

        assert flask("events", "replay", "--since", "2026-03-01T12:00:01").stdout == "0 folded again\n"
        assert flask("events", "replay", "--since", "2026-03-01T12:00:00").stdout == "2 folded again\n"
        assert statuses() == ["succeeded", "succeeded"]

    def test_it_fails_with_a_sentence_when_there_is_no_such_payment(self, flask: Run) -> None:
        result = flask("events", "replay", "--payment", uuid.uuid4())
        assert (result.stdout, result.stderr, result.exit_code) == ("", "Error: Payment not found\n", 1)

    @pytest.mark.parametrize("options", [(), ("--payment", uuid.uuid4(), "--since", "2026-03-01")])
    def test_it_takes_exactly_one_of_its_options(self, flask: Run, options: tuple[object, ...]) -> None:
        result = flask("events", "replay", *options)
        assert result.stderr.endswith("Error: Give either --payment or --since.\n")
        assert result.exit_code == 2
