"""The database is slow, locked, or away: what waits is bounded, and what was acknowledged is stored."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, bindparam, create_engine, func, literal, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app import create_app
from app.config import Settings
from app.database import Batch, Database, Queue
from app.request_context import EXTENSION_KEY
from tests.databases import dispose
from tests.factories import intent
from tests.soak import amount
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import API_KEY, WebProcess, free_port
from tests.webhooks import deliver, event, try_to_deliver


@pytest.fixture
def database(app: Flask) -> Database:
    found = app.extensions[EXTENSION_KEY].database
    assert isinstance(found, Database)
    return found


class TestBounds:
    BOUNDS = select(func.current_setting("statement_timeout"), func.current_setting("lock_timeout"))

    def test_no_statement_runs_for_long(self, database: Database) -> None:
        bounds = Batch(self.BOUNDS)
        assert [tuple(row) for row in database.run(bounds)] == [("10s", "3s")]
        with database.transaction() as transaction:
            for _ in range(2):
                assert [tuple(row) for row in transaction.run(bounds)] == [("10s", "3s")]

    def test_nor_one_that_is_all_of_its_transaction(self, database: Database) -> None:
        with database.transaction() as transaction:
            transaction.run_and_commit(
                Batch(text("CREATE TEMP TABLE seen AS SELECT current_setting('statement_timeout')"))
            )
        assert [tuple(row) for row in database.run(Batch(text("TABLE seen")))] == [("10s",)]

    def test_the_session_keeps_nothing_of_it(self, database: Database) -> None:
        """A pooler in transaction mode would hand the setting to somebody else, or lose it."""
        database.run(Batch(self.BOUNDS))
        connection = database.engine.raw_connection()
        cursor = connection.cursor()
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("0",)
        connection.close()

    def test_a_webhook_does_not_wait_for_ever_for_a_locked_payment(
        self, client: FlaskClient, app: Flask, db: Connection, settings: Settings
    ) -> None:
        created = client.post("/payment-intent/create", json=intent()).json
        paid = {"id": created["paymentIntentId"], "object": "payment_intent", "amount_received": 2000}
        holder = create_engine(settings.database_url)
        with holder.begin() as connection:
            connection.execute(text("SELECT 1 FROM payments FOR UPDATE"))
            started = time.monotonic()
            response = deliver(client, event("payment_intent.succeeded", paid))
            assert (response.status_code, response.json["code"]) == (503, "database_unavailable")
            assert 2 < time.monotonic() - started < 6
        holder.dispose()
        assert db.execute(text("SELECT count(*) FROM stripe_events WHERE id LIKE 'evt_%'")).scalar_one() == 0


class TestBatch:
    def test_it_sends_values_and_constants_as_they_are(self, database: Database) -> None:
        odd = "100% 'odd' \\ %(name)s ü"
        batch = Batch(select(literal("50%").label("constant"), bindparam("odd", type_=JSONB).label("given")))

        (row,) = database.run(batch, odd={odd: [odd]})

        assert (row.constant, row.given) == ("50%", {odd: [odd]})

    def test_it_refuses_what_would_be_compiled_with_each_execution(self) -> None:
        with pytest.raises(ValueError, match="IN over a list"):
            Batch(select(literal(1)).where(bindparam("given").in_(["a", "b"])))

    def test_it_tells_times_in_utc_whatever_the_zone_of_the_server(self, database: Database) -> None:
        told = Batch(select(text("CAST('2026-01-02 03:04:05.000006+05:30' AS timestamptz) AS at")))

        assert database.run(told)[0].at.isoformat() == "2026-01-01T21:34:05.000006+00:00"


class TestTransaction:
    PROCESS_ID = func.pg_backend_pid().label("id")

    def test_an_exception_rolls_back(self, database: Database, db: Connection) -> None:
        """Fails when the connection goes back to the pool with the transaction open, and its locks held."""
        begun: list[Any] = []

        def fail_in_the_middle() -> None:
            with database.transaction() as transaction:
                begun.extend(transaction.run(Batch(select(self.PROCESS_ID, func.pg_advisory_xact_lock(1)))))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail_in_the_middle()

        assert [row.id for row in begun] == [row.id for row in database.run(Batch(select(self.PROCESS_ID)))]
        assert db.execute(text("SELECT pg_try_advisory_lock(1)")).scalar_one()
        db.execute(text("SELECT pg_advisory_unlock(1)"))

    def test_its_end_commits(self, database: Database, db: Connection) -> None:
        with database.transaction() as transaction:
            transaction.run(Batch(text("CREATE TABLE made (id int)")))
        db.execute(text("DROP TABLE made"))

    def test_a_connection_that_is_cut_in_a_transaction_is_nobody_elses(
        self, database: Database, db: Connection
    ) -> None:
        """Fails when a connection on which even the ROLLBACK failed is put back into the pool."""

        def fail_without_a_server() -> None:
            with database.transaction() as transaction:
                (process,) = transaction.run(Batch(select(self.PROCESS_ID)))
                cut(db, process.id)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail_without_a_server()
        assert len(database.run(Batch(select(literal(1))))) == 1

    def test_a_connection_that_is_cut_costs_its_own_user_and_nobody_who_waits(
        self, settings: Settings, app: Flask, db: Connection
    ) -> None:
        """Fails when the whole pool is thrown away with it: who waits then fails too, and connections multiply."""
        small = create_app(replace(settings, db_pool_size=2))
        database = small.extensions[EXTENSION_KEY].database
        asleep = Batch(select(literal(1), func.pg_sleep(bindparam("seconds"))))
        sleeping = text(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND query LIKE '%pg_sleep%'"
        )

        def sleep() -> bool:
            try:
                return bool(database.run(asleep, seconds=0.3))
            except OperationalError:
                return False

        with ThreadPoolExecutor(8) as threads:
            slept = [threads.submit(sleep) for _ in range(8)]
            wait_until(lambda: len(db.execute(sleeping).all()) == 2, seconds=10, what="two that sleep")
            cut(db, db.execute(sleeping).scalars().first())
            assert sorted(each.result(10) for each in slept) == [False] + [True] * 7
        assert len(db.execute(sleeping).all()) <= 2
        dispose(small)


class TestWaitForAnswer:
    ASLEEP = Batch(select(literal(1), func.pg_sleep(bindparam("seconds"))))

    def test_it_gives_up_an_answer_that_does_not_come(self, database: Database) -> None:
        started = time.monotonic()
        with pytest.raises(OperationalError):
            database.giving_up_after(0.5).run(self.ASLEEP, seconds=5)
        assert 0.5 <= time.monotonic() - started < 3
        assert len(database.run(self.ASLEEP, seconds=0)) == 1

    def test_it_bounds_each_answer_and_not_all_of_a_connections(self, database: Database) -> None:
        with database.giving_up_after(0.5).transaction() as transaction:
            for _ in range(4):
                assert len(transaction.run(self.ASLEEP, seconds=0.25)) == 1

    def test_it_leaves_others_their_own_time(self, app: Flask) -> None:
        small = create_app(replace(app.extensions[EXTENSION_KEY].settings, db_pool_size=1))
        database = small.extensions[EXTENSION_KEY].database
        database.giving_up_after(0.2).run(self.ASLEEP, seconds=0)
        assert len(database.run(self.ASLEEP, seconds=0.5)) == 1
        dispose(small)

    def test_a_migration_waits_for_as_long_as_it_takes(self, database: Database) -> None:
        connection = database.engine.raw_connection()
        connection.driver_connection.answer_timeout_seconds = None
        cursor = connection.cursor()
        cursor.execute("SELECT pg_sleep(0.2)")
        connection.close()


def cut(db: Connection, process_id: int | None) -> None:
    """End a connection's process, and wait until it is gone."""
    db.execute(text("SELECT pg_terminate_backend(:id, 5000)"), {"id": process_id})


class TestAway:
    def test_it_answers_503_and_says_so_when_the_database_is_away(self, settings: Settings) -> None:
        url = f"postgresql+psycopg2://u:hidden@127.0.0.1:{free_port()}/x"
        app = create_app(replace(settings, database_url=url))
        client = app.test_client()

        response = client.get("/stats", headers={"X-API-Key": API_KEY})
        ready = client.get("/health/ready")

        assert (response.status_code, response.json["code"]) == (503, "database_unavailable")
        assert int(response.headers["Retry-After"]) > 0
        assert client.get("/health").status_code == 200
        assert (ready.status_code, ready.json["checks"]["database"]) == (503, "unavailable")
        assert "hidden" not in response.text + ready.text
        dispose(app)

    def test_it_waits_two_seconds_for_a_connection_and_no_longer(self, settings: Settings, app: Flask) -> None:
        small = create_app(replace(settings, db_pool_size=1))
        with small.extensions[EXTENSION_KEY].database.transaction() as held:
            held.run(Batch(select(literal(1))))
            started = time.monotonic()
            response = small.test_client().get("/stats", headers={"X-API-Key": API_KEY})

        assert response.status_code == 503
        assert 1.5 < time.monotonic() - started < 4
        dispose(small)

    def test_it_tries_a_first_connection_twice(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        import psycopg2

        connect, tries = psycopg2.connect, []

        def refuse_first(*arguments: object, **options: object) -> object:
            tries.append(1)
            if len(tries) == 1:
                raise psycopg2.OperationalError("the database is starting up")
            return connect(*arguments, **options)

        monkeypatch.setattr("app.database.psycopg2.connect", refuse_first)
        app = create_app(settings)

        assert app.test_client().get("/stats", headers={"X-API-Key": API_KEY}).status_code == 200
        assert len(tries) == 2
        dispose(app)

    def test_one_read_fails_and_no_more_when_every_connection_in_the_pool_was_cut(
        self, client: FlaskClient, app: Flask, db: Connection
    ) -> None:
        database = app.extensions[EXTENSION_KEY].database
        for connection in [database.engine.raw_connection() for _ in range(3)]:
            connection.close()
        db.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                 " WHERE datname = current_database() AND pid <> pg_backend_pid()")
        )  # fmt: skip

        assert [client.get("/stats").status_code for _ in range(4)] == [503, 200, 200, 200]

    def test_every_event_that_was_acknowledged_is_stored_though_connections_are_killed(
        self, web: WebProcess, db: Connection, settings: Settings
    ) -> None:
        """All of the service's connections are cut 20 times during a stream of webhooks."""
        bodies = [event("customer.created", {"id": f"cus_{n}", "object": "customer"}) for n in range(600)]
        done = threading.Event()

        def cut() -> int:
            admin = create_engine(settings.database_url, isolation_level="AUTOCOMMIT")
            cuts = 0
            with admin.connect() as connection:
                while not done.is_set() and cuts < 20:
                    done.wait(0.05)
                    connection.execute(
                        text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                             " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                             " AND application_name <> 'test'")
                    )  # fmt: skip
                    cuts += 1
            admin.dispose()
            return cuts

        with ThreadPoolExecutor(9) as threads:
            cutting = threads.submit(cut)
            statuses = list(threads.map(lambda body: try_to_deliver(web, body), bodies))
            done.set()
            assert cutting.result(10) > 3

        acknowledged = {b["id"] for b, status in zip(bodies, statuses, strict=True) if status == 200}
        assert set(statuses) <= {200, 503}, web.printed()[-6000:]
        assert acknowledged
        engine = create_engine(settings.database_url)
        with engine.connect() as connection:
            stored = set(connection.execute(text("SELECT id FROM stripe_events")).scalars())
        engine.dispose()
        assert acknowledged <= stored
        assert [try_to_deliver(web, body) for body in bodies[:20]] == [200] * 20


class TestOnlyReads:
    @pytest.fixture
    def only_reads(self, db: Connection) -> Iterator[Callable[[bool], None]]:
        """Lets every connection that is made from now on read only, as one to a former primary does, or write again."""
        name = db.engine.url.database

        def set_it(is_on: bool) -> None:
            db.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = {'on' if is_on else 'off'}"))

        yield set_it
        db.execute(text(f"ALTER DATABASE {name} RESET default_transaction_read_only"))

    def test_it_answers_503_and_says_why_in_the_log(
        self, settings: Settings, only_reads: Callable[[bool], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        only_reads(True)
        former = create_app(settings)
        client = former.test_client()
        refused = client.post("/payment-intent/create", json=intent(), headers={"X-API-Key": API_KEY})
        told = deliver(client, event("customer.created", {"id": "cus_1", "object": "customer"}))

        assert (refused.status_code, refused.json["code"]) == (503, "database_unavailable")
        assert (told.status_code, told.json["code"]) == (503, "database_unavailable")
        assert [record.reason for record in caplog.records] == ["SQLSTATE 25006"] * 2
        assert client.get("/stats", headers={"X-API-Key": API_KEY}).status_code == 200
        dispose(former)

    def test_it_writes_on_a_new_connection_when_the_primary_is_another(
        self, settings: Settings, only_reads: Callable[[bool], None]
    ) -> None:
        """Fails when the pool keeps a connection to a former primary, which only reads for as long as it is kept."""
        only_reads(True)
        service = create_app(replace(settings, db_pool_size=1))
        client = service.test_client()
        body = event("customer.created", {"id": "cus_1", "object": "customer"})
        assert deliver(client, body).status_code == 503
        only_reads(False)

        assert deliver(client, body).status_code == 200
        dispose(service)

    def test_one_write_finds_out_about_all_connections(
        self, settings: Settings, only_reads: Callable[[bool], None]
    ) -> None:
        """Fails when each connection to a former primary costs a write of its own."""
        only_reads(True)
        service = create_app(replace(settings, db_pool_size=3))
        with service.app_context():
            engine = service.extensions["sqlalchemy"].engine
        with engine.connect(), engine.connect(), engine.connect():
            pass
        only_reads(False)

        told = [event("customer.created", {"id": f"cus_{number}", "object": "customer"}) for number in range(3)]
        assert [deliver(service.test_client(), each).status_code for each in told] == [503, 200, 200]
        dispose(service)


class TestOverload:
    def test_reads_and_webhooks_are_served_while_creates_hang(self, web: WebProcess, stand_ins: StandIns) -> None:
        """Fails when creates may take every thread."""
        stand_ins.fault("stripe", "hang", times=0, seconds=4)
        with ThreadPoolExecutor(100) as threads:
            creates = [threads.submit(web.post, "/payment-intent/create", intent()) for _ in range(100)]
            wait_until(lambda: any(each.done() for each in creates), seconds=10, what="a refusal")
            body = event("customer.created", {"id": "cus_1", "object": "customer"})
            started = time.monotonic()
            assert try_to_deliver(web, body) == 200
            assert requests.get(f"{web.url}/health/ready", timeout=5).status_code == 200
            assert time.monotonic() - started < 2
            assert not all(each.done() for each in creates)
            refused = [each.result(60).json()["code"] for each in creates if each.result(60).status_code == 503]
        assert "overloaded" in refused


def test_an_operational_error_is_an_outage() -> None:
    from app.errors import is_database_outage

    assert is_database_outage(OperationalError("x", None, Exception()))


class TestQueue:
    def test_who_has_waited_the_longest_comes_before_who_comes_back(self) -> None:
        """Fails when a place that is given back is free for whoever is quickest."""
        queue, order = Queue(1), []
        waits = threading.Event()

        def wait_once() -> None:
            waits.set()
            with queue.place(wait_seconds=10):
                order.append("who waited")

        with queue.place(wait_seconds=10):
            waiting = threading.Thread(target=wait_once)
            waiting.start()
            waits.wait(10)
            wait_until(lambda: queue._waiting, seconds=10, what="the other to wait")
        with queue.place(wait_seconds=10):
            order.append("who came back")
        waiting.join(10)

        assert order == ["who waited", "who came back"]

    def test_it_gives_up_in_time_and_leaves_no_trace(self) -> None:
        queue = Queue(1)
        with queue.place(wait_seconds=1), pytest.raises(PoolTimeoutError), queue.place(wait_seconds=0.05):
            pytest.fail("there is no place")
        with queue.place(wait_seconds=0):
            assert not queue._waiting

    @pytest.mark.parametrize("places", [1, 3])
    def test_never_more_are_held_than_there_are(self, places: int) -> None:
        queue, held, most, lock = Queue(places), [0], [0], threading.Lock()

        def work() -> None:
            for _ in range(200):
                with queue.place(wait_seconds=20):
                    with lock:
                        held[0] += 1
                        most[0] = max(most[0], held[0])
                    with lock:
                        held[0] -= 1

        with ThreadPoolExecutor(12) as threads:
            for done in [threads.submit(work) for _ in range(12)]:
                done.result(60)
        assert most[0] <= places
        assert queue._free == places


@pytest.mark.soak
def test_no_reader_waits_in_vain_while_others_come_back(
    settings: Settings, client: FlaskClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """64 threads that only read, on a pool of 8: none hears 503."""
    created = client.post("/payment-intent/create", json=intent()).json
    app = create_app(replace(settings, db_pool_size=8))
    ends_at = time.monotonic() + amount(2, 60)

    def read() -> list[float]:
        reader, taken = app.test_client(), []
        reader.environ_base["HTTP_X_API_KEY"] = API_KEY
        while (began := time.monotonic()) < ends_at:
            assert reader.get(f"/status/{created['paymentId']}").status_code == 200
            taken.append(time.monotonic() - began)
        return taken

    with ThreadPoolExecutor(64) as threads:
        taken = sorted(seconds for done in [threads.submit(read) for _ in range(64)] for seconds in done.result(120))
    dispose(app)
    with capsys.disabled():
        print(
            f"\n{len(taken)} reads, p99 {taken[len(taken) * 99 // 100] * 1000:.0f} ms, most {taken[-1] * 1000:.0f} ms"
        )
