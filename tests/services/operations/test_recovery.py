"""Recovery: whatever a payment was left at, it ends with one object, one cost and an ended run."""

import itertools
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app import create_app
from app.config import Settings
from app.request_context import EXTENSION_KEY
from app.services import Services
from app.services.kinds import KINDS
from app.services.operations.recovery import Recovered, RecoveryOutcome, recover_operations
from app.services.payments.orphan_runs import end_orphan_runs
from app.services.upstreams.http import Answer, Transport
from tests.books import assert_balanced, end_orphan_runs_at_once, recover_until_quiet
from tests.crashing import dies_in
from tests.databases import dispose
from tests.factories import checkout, intent
from tests.soak import SOAKING, amount
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import API_KEY, WebProcess

ROWS = text(
    "SELECT operations.xmin::text, payments.xmin::text AS of_payment, step, status"
    " FROM operations JOIN payments USING (id)"
)
BODIES: dict[str, Callable[..., dict[str, Any]]] = {"/checkout/create": checkout, "/payment-intent/create": intent}
ONCE = {"Idempotency-Key": "once"}
TRACKING = text("SELECT tracking_state, tracking_error FROM operations")
both_routes = pytest.mark.parametrize("path", BODIES)


@pytest.fixture
def short_lease(settings: Settings) -> Settings:
    return replace(settings, payment_lease_seconds=1.5, upstream_timeout_seconds=1)


def lapse(db: Connection) -> None:
    """Let time pass: every lease has lapsed."""
    db.execute(text("UPDATE operations SET lease_until = now() - interval '1 second' WHERE step <> 'finished'"))


def recover(services: Services, db: Connection) -> list[Recovered]:
    lapse(db)
    return list(recover_operations(services, KINDS, command="flask recover", at_once=True))


def outcomes(recovered: list[Recovered]) -> list[str]:
    return [str(one.outcome) for one in recovered]


class TestAccepted:
    def test_it_abandons_what_stripe_was_never_asked_and_a_retry_restarts_the_same_row(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        stand_ins.fault("runs-service", "status", method="POST", status=503)
        assert client.post("/payment-intent/create", json=intent(), headers=ONCE).status_code == 503
        payment_id = str(db.execute(text("SELECT id FROM payments")).scalar_one())

        assert outcomes(recover(services, db)) == ["abandoned"]
        assert client.get("/status/by-org/org_1").json["payments"] == []
        assert client.get(f"/status/{payment_id}").json["payment"]["status"] == "rejected"

        again = client.post("/payment-intent/create", json=intent(), headers=ONCE)
        assert (again.status_code, again.json["paymentId"]) == (200, payment_id)
        assert db.execute(text("SELECT attempt FROM operations")).scalar_one() == 2
        assert_balanced(db, stand_ins)

    def test_it_fails_the_run_of_what_was_taken_back(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        stand_ins.fault("stripe", "status", method="POST", status=429)
        assert client.post("/payment-intent/create", json=intent()).status_code == 429

        assert outcomes(recover(services, db)) == ["abandoned"]
        assert_balanced(db, stand_ins)

    def test_it_ends_a_run_that_no_payment_knows(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        """The run was made and the answer lost; while another request could have made it, it is let be."""
        stand_ins.fault("runs-service", "reset", method="POST", executed=True)
        assert client.post("/payment-intent/create", json=intent()).status_code == 503
        recover(services, db)
        (orphan,) = stand_ins.runs()
        assert list(end_orphan_runs(services, command="flask recover")) == []

        assert end_orphan_runs_at_once(services, db) == [orphan]
        assert db.execute(text("SELECT run_search_until FROM operations")).scalar_one() is None

    def test_it_tells_upstreams_times_in_utc_whatever_the_zone_of_the_server(
        self,
        client: FlaskClient,
        services: Services,
        stand_ins: StandIns,
        db: Connection,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Fails when a run is looked for between times as the database tells them."""
        asked: list[str] = []
        send = Transport.send

        def remember(transport: Transport, method: str, path: str, **options: Any) -> Answer:
            asked.append(path)
            return send(transport, method, path, **options)

        stand_ins.fault("runs-service", "reset", method="POST", executed=True)
        assert client.post("/payment-intent/create", json=intent()).status_code == 503
        recover(services, db)
        name = db.engine.url.database
        db.execute(text(f"ALTER DATABASE {name} SET timezone = 'Asia/Kolkata'"))
        services.database.engine.dispose()
        monkeypatch.setattr(Transport, "send", remember)
        try:
            end_orphan_runs_at_once(services, db)
        finally:
            db.execute(text(f"ALTER DATABASE {name} RESET timezone"))

        query = parse_qs(urlsplit(asked[0]).query)
        assert [query[bound][0][-6:] for bound in ("startedAfter", "startedBefore")] == ["+00:00"] * 2


class TestAsked:
    @both_routes
    def test_it_asks_again_with_the_same_key_when_the_answer_was_lost(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection, path: str
    ) -> None:
        stand_ins.fault("stripe", "reset", method="POST", executed=True)
        assert client.post(path, json=BODIES[path](), headers=ONCE).status_code == 503

        assert outcomes(recover(services, db)) == ["taken"]
        assert_balanced(db, stand_ins)
        assert client.post(path, json=BODIES[path](), headers=ONCE).status_code == 200
        assert len({entry["idempotencyKey"] for entry in stand_ins.ledger("stripe") if entry["method"] == "POST"}) == 1

    @both_routes
    def test_it_finds_the_object_by_listing_when_stripe_replays_a_5xx_that_was_executed(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection, path: str
    ) -> None:
        stand_ins.fault("stripe", "status", method="POST", status=500, executed=True)
        assert client.post(path, json=BODIES[path](), headers=ONCE).status_code == 502

        assert outcomes(recover(services, db)) == ["taken"]
        assert_balanced(db, stand_ins)

    def test_it_rejects_what_is_not_found_after_the_key_has_lapsed(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        stand_ins.fault("stripe", "reset", method="POST")
        client.post("/payment-intent/create", json=intent(), headers=ONCE)
        db.execute(text("UPDATE operations SET asked_at = asked_at - interval '24 hours'"))

        assert outcomes(recover(services, db)) == ["rejected"]
        assert_balanced(db, stand_ins)

    def test_it_finds_what_was_made_though_the_key_has_lapsed(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        """Asking again would make a second object: Stripe has forgotten the key."""
        stand_ins.fault("stripe", "reset", method="POST", executed=True)
        client.post("/payment-intent/create", json=intent(), headers=ONCE)
        db.execute(text("UPDATE operations SET asked_at = asked_at - interval '24 hours'"))
        stand_ins.control("clock", advance=24 * 3600)

        assert outcomes(recover(services, db)) == ["taken"]
        assert_balanced(db, stand_ins)

    def test_it_finds_the_object_in_a_list_that_takes_longer_than_a_lease(
        self, short_lease: Settings, stand_ins: StandIns, db: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when all pages have one deadline: a busy account's payment would be put off for ever.

        Fails as well when the lease isn't extended with it: another worker would take the payment meanwhile.
        """
        monkeypatch.setattr("app.services.upstreams.stripe.PAGE_SIZE", 1)
        patient = create_app(short_lease)
        sent = {"X-API-Key": API_KEY}
        stand_ins.fault("stripe", "reset", method="POST", executed=True)
        assert patient.test_client().post("/payment-intent/create", json=intent(), headers=sent).status_code == 503
        for _ in range(4):
            assert patient.test_client().post("/payment-intent/create", json=intent(), headers=sent).status_code == 200
        db.execute(text("UPDATE operations SET asked_at = asked_at - interval '24 hours' WHERE step = 'asked'"))
        stand_ins.fault("stripe", "delay", method="GET", seconds=0.4, executed=True, times=0)
        lapsed = text("SELECT count(*) FROM operations WHERE step = 'asked' AND lease_until <= now()")

        lapse(db)
        with ThreadPoolExecutor(1) as threads:
            services = patient.extensions[EXTENSION_KEY]
            recovering = threads.submit(
                list, recover_operations(services, KINDS, command="flask recover", at_once=True)
            )
            wait_until(lambda: db.execute(lapsed).scalar_one() == 0, seconds=5, what="the claim")
            while not recovering.done():
                assert db.execute(lapsed).scalar_one() == 0
        assert outcomes(recovering.result()) == ["taken"]
        assert_balanced(db, stand_ins)
        dispose(patient)

    def test_it_stops_between_two_pages_and_leaves_the_operation_to_whoever_comes_next(
        self,
        client: FlaskClient,
        services: Services,
        stand_ins: StandIns,
        db: Connection,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Fails when a worker that is to end lists a busy account to its end."""
        monkeypatch.setattr("app.services.upstreams.stripe.PAGE_SIZE", 1)
        stand_ins.fault("stripe", "reset", method="POST", executed=True)
        client.post("/payment-intent/create", json=intent())
        for _ in range(4):
            client.post("/payment-intent/create", json=intent())
        db.execute(text("UPDATE operations SET asked_at = asked_at - interval '24 hours' WHERE step = 'asked'"))
        list_as_shown = services.stripe.list_as_shown

        def stop_after_one(*arguments: Any, **options: Any) -> Iterator[object]:
            for listed in list_as_shown(*arguments, **options):
                services.stop.set()
                yield listed

        monkeypatch.setattr(services.stripe, "list_as_shown", stop_after_one)
        (done,) = recover(services, db)

        assert (done.outcome, done.reason) == ("put off", "stopped before the end")
        pages = [entry for entry in stand_ins.ledger("stripe") if entry["method"] == "GET"]
        assert len(pages) == 1
        left = text("SELECT step, recovery_tries, lease_until <= now() AS is_free FROM operations WHERE step = 'asked'")
        assert tuple(db.execute(left).one()) == ("asked", 0, True)

    def test_it_keeps_a_refusal_as_the_answer(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        body = checkout(lineItems=[{"priceId": "price_1", "quantity": 1}])
        stand_ins.fault("stripe", "reset", method="POST")
        assert client.post("/checkout/create", json=body, headers=ONCE).status_code == 503

        assert outcomes(recover(services, db)) == ["rejected"]
        assert client.post("/checkout/create", json=body, headers=ONCE).json["error"] == "No such price: 'price_1'"
        assert_balanced(db, stand_ins)

    def test_it_is_stuck_while_the_app_has_no_key_and_walks_on_when_it_has(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        stand_ins.fault("stripe", "reset", method="POST", executed=True)
        created = client.post("/payment-intent/create", json=intent())
        assert created.status_code == 503
        stand_ins.control("keys", appId="shop", key=None)
        services.keys._keys.clear()

        assert outcomes(recover(services, db)) == ["stuck"]
        payment_id = db.execute(text("SELECT id FROM payments")).scalar_one()
        assert client.get(f"/status/{payment_id}").json["payment"]["tracking"]["state"] == "stuck"

        stand_ins.control("keys", appId="shop", key="sk_test_sandbox_shop")
        assert outcomes(recover(services, db)) == ["taken"]
        assert_balanced(db, stand_ins)

    def test_it_stays_stuck_with_its_reason_until_it_walks_on(
        self,
        client: FlaskClient,
        services: Services,
        stand_ins: StandIns,
        db: Connection,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A try that ends in an outage decides nothing."""
        caplog.set_level("INFO", "app.services.operations.recovery")
        stand_ins.fault("stripe", "reset", method="POST", executed=True)
        client.post("/payment-intent/create", json=intent())
        stand_ins.control("keys", appId="shop", key=None)
        services.keys._keys.clear()
        recover(services, db)
        tracking = db.execute(TRACKING).one()

        stand_ins.fault("key-service", "status", status=503)
        assert (outcomes(recover(services, db)), db.execute(TRACKING).one()) == (["put off"], tracking)
        assert tracking == ("stuck", "No Stripe key configured for appId 'shop'")
        assert "no longer stuck" not in caplog.text

        stand_ins.control("keys", appId="shop", key="sk_test_sandbox_shop")
        assert outcomes(recover(services, db)) == ["taken"]
        assert db.execute(TRACKING).one() == ("complete", None)
        assert caplog.text.count("no longer stuck") == 1

    def test_it_is_pending_and_not_stuck_when_only_its_run_is_left(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        stand_ins.fault("stripe", "reset", method="POST", executed=True)
        client.post("/payment-intent/create", json=intent())
        db.execute(text("UPDATE operations SET tracking_state = 'stuck', tracking_error = 'No Stripe key'"))
        stand_ins.fault("runs-service", "status", status=500, times=0)

        assert outcomes(recover(services, db)) == ["taken"]
        assert db.execute(TRACKING).one() == ("pending", "runs-service answered 500")

    def test_it_is_stuck_when_stripe_knows_the_key_with_other_parameters(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        stand_ins.fault("stripe", "reset", method="POST", executed=True)
        client.post("/payment-intent/create", json=intent())
        db.execute(
            text(
                "UPDATE operations SET stripe_params = convert_to("
                "jsonb_set(convert_from(stripe_params, 'UTF8')::jsonb, '{amount}', '7')::text, 'UTF8')"
            )
        )

        assert outcomes(recover(services, db)) == ["stuck"]

    def test_it_backs_off_while_stripe_is_away(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        stand_ins.fault("stripe", "reset", method="POST", times=0)
        client.post("/payment-intent/create", json=intent())

        assert outcomes(recover(services, db)) == ["put off"]
        lapse(db)
        assert list(recover_operations(services, KINDS, command="flask worker")) == []
        first, second = [
            db.execute(text("SELECT recover_at - now() FROM operations")).scalar_one()
            for _ in range(2)
            if recover(services, db) is not None
        ]
        assert second > first
        stand_ins.heal()
        assert outcomes(recover(services, db)) == ["taken"]
        assert_balanced(db, stand_ins)


class TestTaken:
    @pytest.mark.parametrize("executed", [True, False])
    @pytest.mark.parametrize("call", ["/costs$", "PATCH"])
    def test_it_adds_what_is_missing_and_nothing_twice(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection, executed: bool, call: str
    ) -> None:
        """Fails when recovery adds the cost without reading the run first."""
        where = {"method": "PATCH"} if call == "PATCH" else {"path": call}
        stand_ins.fault("runs-service", "reset", executed=executed, times=2 if call == "PATCH" else 1, **where)
        assert client.post("/payment-intent/create", json=intent()).status_code == 200

        assert outcomes(recover(services, db)) == ["settled"]
        assert_balanced(db, stand_ins)

    @pytest.mark.parametrize("executed", [True, False])
    def test_it_counts_costs_on_a_run_that_payments_share(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection, executed: bool
    ) -> None:
        run_id = stand_ins.new_run()
        for _ in range(2):
            client.post("/payment-intent/create", json=intent(orgId=..., runId=run_id))
        stand_ins.fault("runs-service", "reset", path="/costs$", executed=executed, times=2)
        for _ in range(2):
            client.post("/payment-intent/create", json=intent(orgId=..., runId=run_id))

        assert outcomes(recover(services, db)) == ["settled", "settled"]
        run = stand_ins.runs()[run_id]
        assert (len(run["costs"]), run["status"]) == (4, "running")

    def test_it_waits_while_another_payment_uses_the_shared_run_and_is_not_waited_for(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        """Fails when a payment that is put off keeps a lease: two of them would put each other off for ever."""
        run_id = stand_ins.new_run()
        stand_ins.fault("runs-service", "reset", path="/costs$", executed=True, times=2)
        for _ in range(2):
            client.post("/payment-intent/create", json=intent(orgId=..., runId=run_id))
        lapse(db)
        in_hands = text(
            "UPDATE operations SET lease_until = now() + :time"
            " WHERE id = (SELECT id FROM operations ORDER BY id LIMIT 1)"
        )
        db.execute(in_hands, {"time": timedelta(minutes=1)})
        assert outcomes(list(recover_operations(services, KINDS, command="flask recover", at_once=True))) == ["put off"]

        db.execute(in_hands, {"time": timedelta()})
        settled = outcomes(list(recover_operations(services, KINDS, command="flask recover", at_once=True)))
        assert settled == ["settled", "settled"]
        assert len(stand_ins.runs()[run_id]["costs"]) == 2


class TestClaim:
    def test_a_kind_of_a_newer_version_is_left_to_its_worker(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        """Fails when what nobody here can walk is claimed: it would end the pass for all others."""
        stand_ins.fault("stripe", "reset", method="POST", executed=True, times=2)
        for path in ("/checkout/create", "/payment-intent/create"):
            client.post(path, json=BODIES[path]())
        lapse(db)
        known = {name: kind for name, kind in KINDS.items() if name == "payment_intent"}

        assert outcomes(list(recover_operations(services, known, command="flask worker"))) == ["taken"]
        assert outcomes(recover(services, db)) == ["taken"]

    def test_two_workers_share_the_payments(
        self, app: Flask, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        """Fails when a claim doesn't skip what another has locked, or doesn't take a lease."""
        stand_ins.fault("stripe", "reset", method="POST", executed=True, times=20)
        for _ in range(20):
            client.post("/payment-intent/create", json=intent())
        lapse(db)
        found: list[list[Recovered]] = [[], []]
        barrier = threading.Barrier(2)

        def work(number: int) -> None:
            barrier.wait()
            found[number] = list(recover_operations(services, KINDS, command="flask worker"))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len({one.operation_id for one in itertools.chain(*found)}) == 20
        assert len(found[0]) + len(found[1]) == 20
        assert_balanced(db, stand_ins)

    def test_two_operations_on_one_run_never_put_each_other_off(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        """Fails when a run that is in hand isn't passed over: each would find the other in other hands."""
        run_id = stand_ins.new_run()
        stand_ins.fault("runs-service", "reset", path="/costs$", times=6)
        for _ in range(6):
            client.post("/payment-intent/create", json=intent(orgId=..., runId=run_id))
        stand_ins.fault("runs-service", "delay", method="GET", seconds=0.1, executed=True, times=0)

        assert outcomes(recover(services, db)) == ["settled"] * 6
        assert len(stand_ins.runs()[run_id]["costs"]) == 6

    def test_a_payment_that_is_locked_is_put_off_and_stops_no_other(
        self,
        client: FlaskClient,
        services: Services,
        stand_ins: StandIns,
        db: Connection,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Fails when a lock is taken for an outage of the database, which ends the pass."""
        monkeypatch.setattr("app.database._BEGIN", "BEGIN; SET LOCAL lock_timeout = '200ms'; ")
        stand_ins.fault("stripe", "reset", method="POST", executed=True, times=4)
        for _ in range(4):
            client.post("/payment-intent/create", json=intent())
        with services.database.engine.connect() as holder:
            lock = (
                "SELECT 1 FROM payments WHERE id = (SELECT id FROM operations ORDER BY lease_until LIMIT 1) FOR UPDATE"
            )
            holder.exec_driver_sql(f"BEGIN; {lock}")
            done = recover(services, db)
            holder.exec_driver_sql("ROLLBACK")

        assert sorted(outcomes(done)) == ["put off", "taken", "taken", "taken"]
        assert [one.reason for one in done if one.reason] == ["the database did not do it in time"]
        assert outcomes(recover(services, db)) == ["taken"]
        assert_balanced(db, stand_ins)

    def test_a_former_holder_writes_nothing(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        """A request sleeps past its lease in Stripe's answer, and recovery finishes meanwhile.

        Fails when a step's UPDATE doesn't ask for the lease's token.
        """
        stand_ins.fault("stripe", "delay", method="POST", seconds=1.5, executed=True)
        answer: list[Any] = []
        thread = threading.Thread(
            target=lambda: answer.append(client.post("/payment-intent/create", json=intent(), headers=ONCE))
        )
        thread.start()
        asked = text("SELECT count(*) FROM operations WHERE step = 'asked'")
        wait_until(lambda: db.execute(asked).scalar_one() == 1, seconds=10, what="the ask")
        lapse(db)
        db.execute(text("UPDATE operations SET lease_token = :token"), {"token": uuid.uuid4()})
        before = db.execute(text("SELECT xmin::text, step FROM operations")).one()
        thread.join()

        assert answer[0].status_code == 503
        assert answer[0].json["code"] == "payment_handed_over"
        assert db.execute(text("SELECT xmin::text, step FROM operations")).one() == before


class TestCrash:
    MOST_POINTS = 60

    def _sweep(self, dying: Flask) -> Iterator[tuple[str, dict[str, str]]]:
        """Every point of a create, for both routes; in the soak with and without a key. Yields what was killed."""
        with_key = (True, False)
        for path, keyed in itertools.product(BODIES, with_key) if SOAKING else zip(BODIES, with_key, strict=True):
            for point in range(self.MOST_POINTS):
                headers = {"Idempotency-Key": f"{path}-{point}"} if keyed else {}
                if not dies_in(
                    dying, point, partial(FlaskClient.post, path=path, json=BODIES[path](), headers=headers)
                ):
                    assert point >= 14
                    break
                yield path, headers

    @pytest.mark.soak
    def test_it_ends_well_wherever_a_process_is_killed(
        self, app: Flask, short_lease: Settings, stand_ins: StandIns, db: Connection
    ) -> None:
        """kill -9 before and after each upstream call and each commit, one process a point.

        Fails when the accept, the ask or the take isn't committed before what follows it, when recovery doesn't read
        the run before it adds a cost, or when orphan runs aren't looked for.
        """
        dying = create_app(short_lease)
        killed = list(self._sweep(dying))
        dispose(dying)
        recovering = create_app(short_lease)
        recover_until_quiet(recovering.extensions[EXTENSION_KEY], db)
        assert_balanced(db, stand_ins)
        assert len(killed) > amount(30, 60)
        client = recovering.test_client()
        for path, headers in killed:
            if headers:
                sent = {"X-API-Key": API_KEY, **headers}
                first, again = (client.post(path, json=BODIES[path](), headers=sent) for _ in range(2))
                assert (first.status_code, first.json) == (200, again.json)
        assert_balanced(db, stand_ins)
        dispose(recovering)

    def test_a_process_that_was_stopped_past_its_lease_writes_and_sends_nothing(
        self, environment: dict[str, str], app: Flask, short_lease: Settings, stand_ins: StandIns, db: Connection
    ) -> None:
        """SIGSTOP in the middle of a create, recovery by another process, SIGCONT.

        Fails when the deadline isn't looked at before each send.
        """
        stand_ins.fault("runs-service", "delay", method="POST", seconds=0.4, executed=True)
        lease = environment | {"WEB_CONCURRENCY": "1", "PAYMENT_LEASE_SECONDS": "1.5"}
        with WebProcess.start(lease) as web:
            thread = threading.Thread(target=lambda: web.post("/payment-intent/create", intent(), **ONCE))
            thread.start()
            wait_until(lambda: "run.create" in stand_ins.effects(), seconds=10, what="the run")
            workers = web.workers()
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)
            recovering = create_app(short_lease)
            services = recovering.extensions[EXTENSION_KEY]
            wait_until(
                lambda: (
                    RecoveryOutcome.ABANDONED
                    in [
                        one.outcome
                        for one in recover_operations(services, KINDS, command="flask recover", at_once=True)
                    ]
                ),
                seconds=10,
                what="the lease to lapse",
            )
            before = db.execute(ROWS).one()
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
            thread.join(20)

            assert db.execute(ROWS).one() == before
            assert stand_ins.ledger("stripe") == []
            dispose(recovering)


class TestTime:
    def test_it_ends_within_its_deadline_when_every_upstream_hangs(
        self, short_lease: Settings, app: Flask, stand_ins: StandIns
    ) -> None:
        slow = create_app(short_lease)
        for service in ("runs-service", "stripe", "key-service"):
            stand_ins.fault(service, "hang", times=0)
        started = time.monotonic()
        response = slow.test_client().post("/payment-intent/create", json=intent(), headers={"X-API-Key": API_KEY})

        assert response.status_code == 504
        assert time.monotonic() - started < 1.5
        dispose(slow)
