"""The worker's jobs, one turn at a time."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.cli.jobs import Job, worker_jobs
from app.cli.printing import Printer
from app.config import Settings
from app.services import Services
from app.services.stopping import Stopping
from tests.factories import intent
from tests.stand_ins import StandIns
from tests.webhooks import deliver, event, paid_intent

STATUS = text("SELECT status FROM payments")


@pytest.fixture
def jobs(settings: Settings) -> dict[str, Job]:
    return {job.name: job for job in worker_jobs(settings)}


@pytest.fixture
def take_turn(services: Services, capsys: pytest.CaptureFixture[str]) -> Callable[[Job], str]:
    """Does a job once, to its end, and returns what it printed."""

    def take(job: Job) -> str:
        job.take_turn(services, Printer(as_json=False))
        return capsys.readouterr().out

    return take


class TestPace:
    def test_recovery_has_a_second_and_reconciliation_what_is_set(self, settings: Settings) -> None:
        jobs = worker_jobs(replace(settings, reconcile_seconds=77))

        assert {job.name: job.every_seconds for job in jobs} == {
            "recovery": 1,
            "orphan runs": 1,
            "reconciliation": 77,
            "subscriptions in doubt": 1,
            "waiting events": 77,
            "old waiting events": 77,
            "deliveries": 0.25,
            "old app events": 77,
        }

    def test_endpoints_are_looked_after_where_an_address_is_known(self, settings: Settings) -> None:
        with_address = worker_jobs(replace(settings, public_url="https://pay.example.com"))

        assert [job.name for job in with_address[len(worker_jobs(settings)) :]] == ["webhook endpoints"]


class TestRecovery:
    def test_it_walks_on_and_leaves_what_was_put_off_until_it_is_due(
        self,
        jobs: dict[str, Job],
        take_turn: Callable[[Job], str],
        leave_asked: Callable[..., list[str]],
        db: Connection,
    ) -> None:
        put_off, due = leave_asked(2)
        later = text("UPDATE operations SET recover_at = now() + interval '1 hour' WHERE id = :id")
        db.execute(later, {"id": put_off})

        assert take_turn(jobs["recovery"]) == f"taken operation={due}\n"


class TestOrphanRuns:
    def test_it_ends_a_run_that_no_operation_knows(
        self,
        jobs: dict[str, Job],
        take_turn: Callable[[Job], str],
        orphan_run: str,
        stand_ins: StandIns,
    ) -> None:
        assert take_turn(jobs["orphan runs"]) == f"ended orphan run run={orphan_run}\n"
        assert stand_ins.runs()[orphan_run]["status"] == "failed"


class TestReconciliation:
    def test_it_prints_an_app_with_news_and_nothing_of_one_without(
        self, jobs: dict[str, Job], take_turn: Callable[[Job], str], client: FlaskClient
    ) -> None:
        client.post("/payment-intent/create", json=intent())

        assert take_turn(jobs["reconciliation"]) == "reconciled app=shop listed=1 stored=1\n"
        assert take_turn(jobs["reconciliation"]) == ""

    def test_it_prints_why_an_app_failed(
        self,
        jobs: dict[str, Job],
        take_turn: Callable[[Job], str],
        client: FlaskClient,
        stand_ins: StandIns,
    ) -> None:
        client.post("/payment-intent/create", json=intent())
        stand_ins.fault("stripe", "status", method="GET", status=500, times=0)

        assert take_turn(jobs["reconciliation"]) == "reconciled app=shop listed=0 stored=0 error=Stripe answered 500\n"


class TestWaitingEvents:
    @pytest.fixture
    def separate(self, client: FlaskClient, db: Connection) -> Callable[[timedelta], None]:
        """Makes a payment's event one that found no payment and was received so long ago."""
        created = client.post("/payment-intent/create", json=intent()).json
        deliver(client, event("payment_intent.succeeded", paid_intent(created["paymentIntentId"])))

        def separate(age: timedelta) -> None:
            changes = "payment_id = NULL, received_at = now() - :age"
            db.execute(text(f"UPDATE stripe_events SET {changes} WHERE id LIKE 'evt_%'"), {"age": age})
            db.execute(text("UPDATE payments SET status = 'requires_payment_method'"))

        return separate

    def test_it_looks_at_all_in_the_first_turn_and_then_at_those_received_since_an_hour_before_the_last(
        self,
        jobs: dict[str, Job],
        take_turn: Callable[[Job], str],
        db: Connection,
        separate: Callable[[timedelta], None],
    ) -> None:
        separate(timedelta(days=3))
        assert take_turn(jobs["waiting events"]) == "joined events payments=1\n"
        assert db.execute(STATUS).scalar_one() == "succeeded"

        separate(timedelta(minutes=62))
        assert take_turn(jobs["waiting events"]) == ""
        separate(timedelta(minutes=58))
        assert take_turn(jobs["waiting events"]) == "joined events payments=1\n"
        assert take_turn(jobs["waiting events"]) == ""

    def test_it_prints_nothing_of_events_that_find_no_payment(
        self, jobs: dict[str, Job], take_turn: Callable[[Job], str], client: FlaskClient
    ) -> None:
        deliver(client, event("customer.created", {"id": "cus_1", "object": "customer"}))

        assert take_turn(jobs["waiting events"]) == ""

    def test_it_looks_at_all_again_after_a_first_turn_that_did_not_come_to_its_end(
        self,
        jobs: dict[str, Job],
        services: Services,
        take_turn: Callable[[Job], str],
        separate: Callable[[timedelta], None],
    ) -> None:
        separate(timedelta(days=3))
        services.stop.set()
        with pytest.raises(Stopping):
            take_turn(jobs["waiting events"])
        services.stop.is_set = False

        separate(timedelta(days=3))
        assert take_turn(jobs["waiting events"]) == "joined events payments=1\n" * 2

    def test_it_looks_at_all_again_after_a_turn_that_put_a_payment_off(
        self,
        jobs: dict[str, Job],
        services: Services,
        take_turn: Callable[[Job], str],
        separate: Callable[[timedelta], None],
        db: Connection,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("app.database._BEGIN", "BEGIN; SET LOCAL lock_timeout = '200ms'; ")
        separate(timedelta(days=3))
        payment_id = db.execute(text("SELECT id FROM payments")).scalar_one()
        with services.database.engine.connect() as holder:
            holder.exec_driver_sql("BEGIN; SELECT 1 FROM payments FOR UPDATE")
            said = take_turn(jobs["waiting events"])
            holder.exec_driver_sql("ROLLBACK")

        assert said == f"put off payment={payment_id} reason=the database did not do it in time\n"
        assert take_turn(jobs["waiting events"]) == "joined events payments=1\n"


class TestOldWaitingEvents:
    def test_it_deletes_what_found_no_payment_for_90_days(
        self, jobs: dict[str, Job], take_turn: Callable[[Job], str], client: FlaskClient, db: Connection
    ) -> None:
        deliver(client, event("customer.created", {"id": "cus_1", "object": "customer"}))
        assert take_turn(jobs["old waiting events"]) == ""

        db.execute(text("UPDATE stripe_events SET received_at = now() - interval '91 days'"))
        assert take_turn(jobs["old waiting events"]) == "deleted waiting events count=1\n"
        assert db.execute(text("SELECT count(*) FROM stripe_events")).scalar_one() == 0


class TestOldAppEvents:
    def test_it_deletes_what_apps_were_told_90_days_ago(
        self, jobs: dict[str, Job], take_turn: Callable[[Job], str], client: FlaskClient, db: Connection
    ) -> None:
        for _ in range(2):
            client.post("/payment-intent/create", json=intent())
        assert take_turn(jobs["old app events"]) == ""

        oldest = "(SELECT min(number) FROM app_events)"
        db.execute(text(f"UPDATE app_events SET created_at = now() - interval '91 days' WHERE number = {oldest}"))
        assert take_turn(jobs["old app events"]) == "deleted app events count=1\n"
        assert db.execute(text("SELECT count(*) FROM app_events")).scalar_one() == 1
