"""The worker: its loop with jobs of the test's own, and `flask worker` as a process."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from app.cli.jobs import Job
from app.cli.printing import Printer
from app.cli.worker import ENDING, take_turns
from app.errors import UpstreamUnavailable
from app.services.stopping import Stop
from tests.cli.processes import PATIENCE_SECONDS, Command, Gate
from tests.databases import database_address, through
from tests.factories import intent
from tests.proxy import Proxy, Spoil
from tests.stand_ins import StandIns

# Far longer than any test waits.
NEVER_AGAIN = 3600.0
SIGNALS = [signal.SIGTERM, signal.SIGINT]

FINISHED = text("SELECT id::text FROM operations WHERE step = 'finished'")
RECONCILED = text("SELECT app_id FROM event_cursors WHERE reconciled_until IS NOT NULL")
CLIENTS = text(
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
)


class TestStop:
    def test_wait_returns_when_it_is_set_in_the_middle(self) -> None:
        stop = Stop()
        waiting = threading.Thread(target=stop.wait, args=(NEVER_AGAIN,), daemon=True)
        waiting.start()
        stop.set()
        waiting.join(PATIENCE_SECONDS)
        assert not waiting.is_alive()

    def test_a_handler_may_set_it_at_any_line_of_wait(self) -> None:
        """Fails with a `threading.Event`, for whose lock the handler waits while its own thread holds it."""
        stop = Stop()

        def trace(frame: FrameType, happening: str, _: object) -> Any:
            if "set" not in frame.f_code.co_name:
                stop.set()
            return trace

        def wait() -> None:
            sys.settrace(trace)
            stop.wait(NEVER_AGAIN)
            sys.settrace(None)

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        waiting.join(PATIENCE_SECONDS)
        assert not waiting.is_alive()

    def test_every_thread_that_waits_returns(self) -> None:
        """Fails when the first one that is woken keeps what woke it."""
        stop = Stop()
        waiting = [threading.Thread(target=stop.wait, daemon=True) for _ in range(3)]
        for thread in waiting:
            thread.start()
        stop.set()
        for thread in waiting:
            thread.join(PATIENCE_SECONDS)
        assert not any(thread.is_alive() for thread in waiting)


class TestTakeTurns:
    def run(self, *jobs: Job, stop: Stop, grace_seconds: float = PATIENCE_SECONDS) -> None:
        """Run the loop to its end, which must come."""
        raised: list[Exception] = []

        def run() -> None:
            try:
                # What jobs are given is passed on, and not used.
                take_turns(jobs, None, Printer(as_json=False), stop, grace_seconds=grace_seconds)  # type: ignore[arg-type]
            except Exception as error:
                raised.append(error)

        running = threading.Thread(target=run, daemon=True)
        running.start()
        running.join(PATIENCE_SECONDS)
        assert not running.is_alive()
        for error in raised:
            raise error

    def test_it_does_each_job_at_once_and_then_when_it_is_due(self) -> None:
        """Fails when a job isn't due at the start, or when all are done in each round."""
        stop, turns = Stop(), list[str]()

        def work(name: str) -> Callable[..., None]:
            def turn(*_: object) -> None:
                turns.append(name)
                if turns.count("often") >= 3 and "seldom" in turns:
                    stop.set()

            return turn

        self.run(Job("seldom", NEVER_AGAIN, work("seldom")), Job("often", 0.001, work("often")), stop=stop)

        assert turns.count("seldom") == 1
        assert turns.count("often") >= 3

    def test_no_job_waits_for_another(self) -> None:
        """Fails when jobs take their turns one after another."""
        stop, both = Stop(), threading.Barrier(2)

        def meet(*_: object) -> None:
            both.wait(PATIENCE_SECONDS)
            stop.set()

        self.run(Job("one", NEVER_AGAIN, meet), Job("other", NEVER_AGAIN, meet), stop=stop)

    def test_it_ends_when_a_job_ends_between_two_rows(self) -> None:
        stop, done = Stop(), list[int]()

        def rows(*_: object) -> None:
            for number in range(10):
                stop.check()
                done.append(number)
                if number == 1:
                    stop.set()

        self.run(Job("rows", NEVER_AGAIN, rows), stop=stop)

        assert done == [0, 1]

    def test_it_leaves_a_job_behind_that_does_not_end_in_time(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Fails when a thread that hangs keeps the worker from its end."""
        stop, never = Stop(), threading.Event()

        def hang(*_: object) -> None:
            stop.set()
            never.wait(PATIENCE_SECONDS)

        self.run(Job("first", NEVER_AGAIN, hang), stop=stop, grace_seconds=0.01)

        never.set()
        assert capsys.readouterr().err == "left behind: first\n"

    def test_it_stops_while_no_job_is_due(self) -> None:
        """Fails when the wait doesn't end with the signal."""

        class StopWhileWaiting(Stop):
            def wait(self, seconds: float | None = None) -> None:
                if seconds == NEVER_AGAIN:
                    threading.Thread(target=self.set).start()
                super().wait(seconds)

        self.run(Job("seldom", NEVER_AGAIN, lambda *_: None), stop=StopWhileWaiting())

    @pytest.mark.parametrize(
        ("error", "sentence"),
        [
            (OperationalError("SELECT 1", {}, Exception("gone")), "the database is unavailable"),
            (UpstreamUnavailable("Stripe", reason="answered 503"), "Stripe is unavailable"),
        ],
    )
    def test_it_says_once_a_turn_what_a_job_waits_for_and_tries_again_at_the_next(
        self, error: Exception, sentence: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Fails when one job's failure ends the worker, or keeps the others from their turn."""
        stop, turns, others = Stop(), list[int](), list[int]()

        def fail(*_: object) -> None:
            turns.append(1)
            if len(turns) >= 3 and others:
                stop.set()
            raise error

        def work(*_: object) -> None:
            others.append(1)

        self.run(Job("first", 0.001, fail), Job("other", 0.001, work), stop=stop)

        assert capsys.readouterr().err == f"waiting: {sentence} (first)\n" * len(turns)

    def test_it_ends_with_an_error_that_is_a_bug(self) -> None:
        """Fails when the worker goes on for ever with a statement that PostgreSQL doesn't understand."""
        bug = ProgrammingError("SELEC", {}, Exception("syntax error"))

        def fail(*_: object) -> None:
            raise bug

        with pytest.raises(ProgrammingError):
            self.run(Job("first", NEVER_AGAIN, fail), stop=Stop())


@pytest.fixture
def lost_payment(client: FlaskClient, stand_ins: StandIns) -> str:
    """A payment that was paid at Stripe while no webhook arrived; the value is its id."""
    created = client.post("/payment-intent/create", json=intent()).json
    stand_ins.control(f"intents/{created['paymentIntentId']}/pay")
    return str(created["paymentId"])


def wait_for_work(worker: Command, db: Connection, left: str) -> None:
    """Wait until an operation is recovered and an app reconciled."""
    worker.wait_until(lambda: left in db.execute(FINISHED).scalars(), what="recovery")
    worker.wait_until(lambda: db.execute(RECONCILED).all(), what="reconciliation")


class TestWork:
    def test_it_recovers_and_reconciles_and_prints_what_it_did(
        self,
        environment: dict[str, str],
        client: FlaskClient,
        db: Connection,
        lost_payment: str,
        leave_asked: Callable[..., list[str]],
    ) -> None:
        (left,) = leave_asked()
        with Command.start("worker", environment=environment) as worker:
            wait_for_work(worker, db, left)

            assert worker.end() == 0
            *done, summary = worker.printed()
            assert worker.complained() == []
        reconciled, recovered = sorted(done)
        assert recovered == f"taken operation={left}"
        assert reconciled.startswith("reconciled app=shop listed=")
        assert sorted(summary.split(", ")) == ["1 reconciled", "1 taken"]
        assert client.get(f"/status/{lost_payment}").json["payment"]["status"] == "succeeded"

    def test_it_prints_json_for_programs(
        self, environment: dict[str, str], db: Connection, leave_asked: Callable[..., list[str]]
    ) -> None:
        (left,) = leave_asked()
        with Command.start("worker", "--json", environment=environment) as worker:
            wait_for_work(worker, db, left)

            assert worker.end() == 0
            *done, summary = map(json.loads, worker.printed())
        reconciled, recovered = sorted(done, key=lambda one: one["kind"])
        assert recovered == {"kind": "taken", "operation": left}
        assert reconciled["kind"] == "reconciled"
        assert summary == {"kind": "summary", "taken": 1, "reconciled": 1}

    def test_it_recovers_every_second_and_reconciles_every_so_many_seconds(
        self, environment: dict[str, str], db: Connection, leave_asked: Callable[..., list[str]]
    ) -> None:
        """Fails when a job has only its first turn."""
        often = environment | {"RECONCILE_SECONDS": "0.1"}
        with Command.start("worker", environment=often) as worker:
            for _ in range(2):
                (left,) = leave_asked()
                db.execute(text("DELETE FROM event_cursors"))
                wait_for_work(worker, db, left)
            assert worker.end() == 0


class TestDatabaseAway:
    def test_it_says_so_and_goes_on_when_the_database_is_back(
        self, environment: dict[str, str], db: Connection, leave_asked: Callable[..., list[str]]
    ) -> None:
        """The database is away when the worker starts, and goes away once more."""
        url = environment["STRIPE_SERVICE_DATABASE_URL"]
        with Proxy(database_address(url)).running() as proxy:
            behind = environment | {"STRIPE_SERVICE_DATABASE_URL": through(proxy, url), "RECONCILE_SECONDS": "0.1"}
            proxy.become(Spoil.REFUSE)
            with Command.start("worker", environment=behind) as worker:
                for _ in range(2):
                    self._wait_for_complaints(worker)
                    (left,) = leave_asked()
                    assert left not in db.execute(FINISHED).scalars()
                    db.execute(text("DELETE FROM event_cursors"))
                    proxy.become(Spoil.NOTHING)
                    wait_for_work(worker, db, left)
                    proxy.become(Spoil.REFUSE)
                assert worker.end() == 0
                assert "2 taken" in worker.printed()[-1].split(", ")

    def test_it_waits_while_the_database_only_reads(
        self, environment: dict[str, str], db: Connection, leave_asked: Callable[..., list[str]]
    ) -> None:
        """Fails when a former primary, or a quota that is used up, ends the worker like a bug."""
        name = db.engine.url.database
        (left,) = leave_asked()
        db.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
        try:
            with Command.start("worker", environment=environment) as worker:
                said = "waiting: the database is unavailable (recovery)"
                worker.wait_until(lambda: said in worker.complained(), what="complaint")
                db.execute(text(f"ALTER DATABASE {name} RESET default_transaction_read_only"))
                worker.wait_until(lambda: left in db.execute(FINISHED).scalars(), what="recovery")
                assert worker.end() == 0
        finally:
            db.execute(text(f"ALTER DATABASE {name} RESET default_transaction_read_only"))

    def _wait_for_complaints(self, worker: Command) -> None:
        """Each job says what it waits for."""
        before = len(worker.complained())
        jobs = (
            *("recovery", "orphan runs", "reconciliation", "subscriptions in doubt", "waiting events"),
            *("old waiting events", "deliveries", "old app events"),
        )
        expected = {f"waiting: the database is unavailable ({job})" for job in jobs}
        worker.wait_until(lambda: set(worker.complained()[before:]) == expected, what="complaints")


@pytest.mark.parametrize("number", SIGNALS)
class TestSignals:
    @pytest.fixture
    def gate(self, stand_ins: StandIns) -> Iterator[Gate]:
        """Stands before Stripe."""
        address = urlsplit(stand_ins.url)
        with Gate((str(address.hostname), int(address.port or 0))).running() as gate:
            yield gate
            gate.opened.set()

    def _end_at(
        self, gate: Gate, environment: dict[str, str], number: signal.Signals, in_hand: Callable[[], bool]
    ) -> list[str]:
        """Send the signal while Stripe is asked for what is in hand; return what was printed."""
        held = environment | {"STRIPE_API_BASE": f"http://127.0.0.1:{gate.port}"}
        with Command.start("worker", environment=held) as worker:
            worker.wait_until(lambda: gate.arrived.is_set() and in_hand(), what="all that is in hand")
            os.kill(worker.process.pid, number)
            worker.wait_until(lambda: ENDING in worker.logged(), what="the signal to be taken")
            gate.opened.set()
            assert worker.process.wait(PATIENCE_SECONDS) == 0
            assert worker.complained() == []
            return worker.printed()

    def test_it_ends_while_there_is_nothing_to_do(
        self, environment: dict[str, str], db: Connection, number: signal.Signals
    ) -> None:
        before = set(db.execute(CLIENTS).scalars())
        with Command.start("worker", environment=environment) as worker:
            worker.wait_until(lambda: set(db.execute(CLIENTS).scalars()) - before, what="its first connection")

            assert worker.end(number) == 0
            assert (worker.printed(), worker.complained()) == (["nothing to do"], [])

    def test_it_ends_after_the_operations_in_hand(
        self,
        environment: dict[str, str],
        db: Connection,
        leave_asked: Callable[..., list[str]],
        gate: Gate,
        number: signal.Signals,
    ) -> None:
        """Fails when an operation in hand is left in the middle, and when another one is begun.

        An app has half of the places at most, which are four.
        """
        leave_asked(3)
        # What is reconciled would ask Stripe as well.
        db.execute(text("INSERT INTO event_cursors SELECT 'shop', now(), gen_random_uuid(), now() + interval '1 hour'"))
        held = text("SELECT count(*) FROM operations WHERE step = 'asked' AND lease_until > now()")

        printed = self._end_at(gate, environment, number, lambda: db.execute(held).scalar_one() == 2)

        finished = sorted(db.execute(FINISHED).scalars())
        assert sorted(printed[:-1]) == [f"taken operation={each}" for each in finished]
        assert printed[-1] == "2 taken"
        untouched = text(
            "SELECT count(*) FROM operations WHERE step = 'asked' AND lease_until < now() AND recovery_tries = 0"
        )
        assert db.execute(untouched).scalar_one() == 1

    def test_it_ends_in_the_middle_of_an_app_and_begins_no_other(
        self, environment: dict[str, str], db: Connection, client: FlaskClient, gate: Gate, number: signal.Signals
    ) -> None:
        """Fails when the app in hand is read to its end, or moves its cursor, and when another one is begun."""
        apps = [f"app{position}" for position in range(5)]
        for app_id in apps:
            assert client.post("/payment-intent/create", json=intent(appId=app_id)).status_code == 200
        begun = text("SELECT app_id FROM event_cursors")

        printed = self._end_at(gate, environment, number, lambda: len(db.execute(begun).all()) == 4)

        assert sorted(db.execute(begun).scalars()) == apps[:4]
        assert printed[-1] == "4 reconciled"
        assert {line.split(" error=")[1] for line in printed[:-1]} == {"stopped before the end"}
        assert not db.execute(RECONCILED).all()
