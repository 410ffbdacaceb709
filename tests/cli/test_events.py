"""`flask events`: which payments are folded again, and what nobody could read."""

import functools
import json
import re
import signal
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from app.services.events.receive import receive_event
from app.services.events.stripe_event import unreadable_event
from app.services.operators.replay import PAGE
from tests.cli import Run
from tests.cli.processes import Command
from tests.databases import WAITING, dispose
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


def add_rejected(db: Connection, payment_ids: list[uuid.UUID]) -> None:
    """Add payments that Stripe has refused to make."""
    insert = text("INSERT INTO payments (id, kind, app_id, status) VALUES (:id, 'payment_intent', 'shop', 'rejected')")
    db.execute(insert, [{"id": payment_id} for payment_id in payment_ids])


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

        changed = f"changed payment={damaged[0]} status=requires_payment_method->succeeded\n"
        assert (result.stdout, result.exit_code) == (f"{changed}1 changed, 1 looked at\n", 0)
        assert statuses() == ["succeeded", "requires_payment_method"]

    @pytest.mark.parametrize(
        ("ago", "count", "first"),
        [(timedelta(days=1), 1, "requires_payment_method"), (timedelta(days=3), 2, "succeeded")],
    )
    def test_it_folds_the_payments_with_events_received_since_a_time(
        self, flask: Run, statuses: Callable[[], list[str]], ago: timedelta, count: int, first: str
    ) -> None:
        result = flask("events", "replay", "--since", f"{datetime.now(UTC) - ago:%Y-%m-%dT%H:%M:%S}")

        assert result.stdout.splitlines()[-1] == f"{count} changed, {count} looked at"
        assert statuses() == [first, "succeeded"]

    def test_it_takes_the_time_as_utc(
        self, flask: Run, db: Connection, statuses: Callable[[], list[str]], server_elsewhere: None
    ) -> None:
        """Fails when the time is taken as the server's own."""
        db.execute(text("UPDATE stripe_events SET received_at = '2026-03-01 12:00Z' WHERE payment_id IS NOT NULL"))

        assert flask("events", "replay", "--since", "2026-03-01T12:00:01").stdout == "0 looked at\n"
        replayed = flask("events", "replay", "--since", "2026-03-01T12:00:00").stdout
        assert replayed.splitlines()[-1] == "2 changed, 2 looked at"
        assert statuses() == ["succeeded", "succeeded"]

    def test_it_fails_with_a_sentence_when_there_is_no_such_payment(self, flask: Run) -> None:
        result = flask("events", "replay", "--payment", uuid.uuid4())
        assert (result.stdout, result.stderr, result.exit_code) == ("", "Error: Payment not found\n", 1)

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ((), "Give one of --payment, --since and --all."),
            (("--payment", uuid.uuid4(), "--since", "2026-03-01"), "Give one of --payment, --since and --all."),
            (("--all", "--since", "2026-03-01"), "Give one of --payment, --since and --all."),
            (("--since", "2026-03-01", "--after", uuid.uuid4()), "--after goes with --all."),
        ],
    )
    def test_it_takes_exactly_one_of_its_options(self, flask: Run, options: tuple[object, ...], sentence: str) -> None:
        result = flask("events", "replay", *options)
        assert result.stderr.endswith(f"Error: {sentence}\n")
        assert result.exit_code == 2


class TestReplayAll:
    def test_it_folds_every_payment_again_and_prints_what_changed(
        self, flask: Run, client: FlaskClient, damaged: list[str], statuses: Callable[[], list[str]], db: Connection
    ) -> None:
        """One is as its events say, and one was never taken."""
        client.post("/payment-intent/create", json=intent())
        add_rejected(db, [uuid.uuid4()])
        db.execute(text("UPDATE payments SET amount_received_in_cents = 7 WHERE id = :id"), {"id": damaged[1]})

        lines = flask("events", "replay", "--all").stdout.splitlines()

        assert sorted(lines[:-1]) == sorted([
            f"changed payment={damaged[0]} status=requires_payment_method->succeeded",
            f"changed payment={damaged[1]} status=requires_payment_method->succeeded amount_received_in_cents=7->2000",
        ])  # fmt: skip
        assert lines[-1] == "2 changed, 4 looked at"
        assert statuses() == ["succeeded", "succeeded"]
        assert flask("events", "replay", "--all").stdout == "4 looked at\n"

    def test_it_prints_json_for_programs(self, flask: Run, damaged: list[str]) -> None:
        lines = [json.loads(line) for line in flask("events", "replay", "--all", "--json").stdout.splitlines()]

        changed = {"kind": "changed", "status": ["requires_payment_method", "succeeded"]}
        assert all(changed | {"payment": payment_id} in lines for payment_id in damaged)
        assert lines[-1] == {"kind": "summary", "changed": 2, "looked at": 2}

    def test_it_goes_on_after_a_payment(self, flask: Run, damaged: list[str]) -> None:
        first, last = sorted(damaged)

        lines = flask("events", "replay", "--all", "--after", first).stdout.splitlines()
        assert [line.split()[1] for line in lines[:-1]] == [f"payment={last}"]

    def test_it_looks_at_all_pages(self, flask: Run, db: Connection, damaged: list[str]) -> None:
        """Fails when a page hides one, or is looked at twice."""
        add_rejected(db, [uuid.uuid4() for _ in range(2 * PAGE)])

        assert flask("events", "replay", "--all").stdout.splitlines()[-1] == f"2 changed, {2 * PAGE + 2} looked at"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_it_says_how_to_go_on_when_it_is_stopped(
        self,
        environment: dict[str, str],
        db: Connection,
        client: FlaskClient,
        damaged: list[str],
        flask: Run,
        number: signal.Signals,
    ) -> None:
        """It is stopped while it waits for the lock of the second page's only damaged payment."""
        first, last = sorted(map(uuid.UUID, damaged))
        add_rejected(db, [uuid.UUID(int=first.int + count) for count in range(1, PAGE + 1)])
        db.execute(text("BEGIN"))
        db.execute(text("SELECT 1 FROM payments WHERE id = :id FOR UPDATE"), {"id": last})
        with Command.start("events", "replay", "--all", environment=environment) as command:
            command.wait_until(lambda: db.execute(WAITING).scalar_one(), what="a lock")
            assert command.end(number) == 130
            complained = command.complained()
        db.execute(text("ROLLBACK"))

        stopped = r"Stopped: 100 looked at, 1 changed\. Go on with: flask (events replay --all --after \S+)"
        resume = re.fullmatch(stopped, complained[-1])
        assert resume, complained
        assert flask(*resume[1].split()).stdout.splitlines()[-1] == "1 changed, 2 looked at"


class TestUnreadable:
    def test_it_shows_what_was_kept_of_each(self, flask: Run, services: Services) -> None:
        too_deep: list[object] = functools.reduce(lambda inner, _: [inner], range(250), [])
        for listed in ({"id": "evt_odd", "created": "now"}, too_deep, {"created": "now", "id": "evt_odd"}):
            receive_event(unreadable_event(listed), app_id="shop", services=services)

        shown = [json.loads(line) for line in flask("events", "unreadable", "--json").output.splitlines()]

        assert [(each["app_id"], each["listed"]) for each in shown] == [
            ("shop", None),
            ("shop", {"id": "evt_odd", "created": "now"}),
        ]
        assert "evt_odd" in flask("events", "unreadable").output

    def test_it_says_so_when_there_is_nothing(self, flask: Run) -> None:
        assert flask("events", "unreadable").output == "Nothing is unreadable.\n"
