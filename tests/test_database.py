"""The database is slow, locked, or away: what waits is bounded, and what was acknowledged is stored."""

import threading
import time
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

from app import create_app
from app.config import Settings
from app.database import Message, borrow_cursor, send
from app.request_context import EXTENSION_KEY
from tests.databases import dispose
from tests.factories import intent
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import API_KEY, WebProcess, free_port
from tests.webhooks import deliver, event, try_to_deliver


class TestBounds:
    BOUNDS = select(func.current_setting("statement_timeout"), func.current_setting("lock_timeout"))

    def test_no_statement_runs_for_long(self, app: Flask) -> None:
        with app.extensions[EXTENSION_KEY].database.connect() as connection:
            assert tuple(connection.execute(self.BOUNDS).one()) == ("10s", "3s")

    def test_no_statement_of_a_message_runs_for_long(self, app: Flask) -> None:
        with borrow_cursor(app.extensions[EXTENSION_KEY].database) as cursor:
            for message in (Message(self.BOUNDS), Message("BEGIN", self.BOUNDS), Message("COMMIT", self.BOUNDS)):
                assert [tuple(row) for row in message.send(cursor, {})] == [("10s", "3s")]

    def test_the_session_keeps_nothing_of_it(self, app: Flask) -> None:
        """A pooler in transaction mode would hand the setting to somebody else, or lose it."""
        bounded = app.extensions[EXTENSION_KEY].database
        with bounded.connect() as connection:
            connection.execute(text("SELECT 1"))
            cursor = connection.connection.cursor()
            cursor.execute("SHOW statement_timeout")
            assert cursor.fetchone() == ("0",)

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
        assert db.execute(text("SELECT count(*) FROM stripe_events")).scalar_one() == 0


class TestMessage:
    def test_it_sends_values_and_constants_as_they_are(self, app: Flask) -> None:
        odd = "100% 'odd' \\ %(name)s ü"
        message = Message(select(literal("50%").label("constant"), bindparam("odd", type_=JSONB).label("given")))

        (row,) = send(app.extensions[EXTENSION_KEY].database, message, {"odd": {odd: [odd]}})

        assert (row.constant, row.given) == ("50%", {odd: [odd]})

    def test_it_ends_a_transaction_that_was_begun_when_something_fails(self, app: Flask, db: Connection) -> None:
        """Fails when the connection goes back to the pool with the transaction open, and its locks held."""
        database = app.extensions[EXTENSION_KEY].database
        begun: list[Any] = []
        process_id = func.pg_backend_pid().label("id")
        message = Message("BEGIN", select(process_id, func.pg_advisory_xact_lock(1)))

        def fail_in_the_middle() -> None:
            with borrow_cursor(database) as cursor:
                begun.extend(message.send(cursor, {}))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail_in_the_middle()

        assert [row.id for row in begun] == [row.id for row in send(database, Message(select(process_id)), {})]
        assert db.execute(text("SELECT pg_try_advisory_lock(1)")).scalar_one()
        db.execute(text("SELECT pg_advisory_unlock(1)"))

    def test_a_connection_that_is_cut_in_a_transaction_is_nobody_elses(self, app: Flask, db: Connection) -> None:
        """Fails when a connection on which even the ROLLBACK failed is put back into the pool."""
        database = app.extensions[EXTENSION_KEY].database
        begin = Message("BEGIN", select(func.pg_backend_pid().label("id")))

        def fail_without_a_server() -> None:
            with borrow_cursor(database) as cursor:
                (process,) = begin.send(cursor, {})
                cut(db, process.id)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail_without_a_server()
        assert len(send(database, Message(select(literal(1))), {})) == 1

    def test_a_connection_that_is_cut_costs_its_own_user_and_nobody_who_waits(
        self, settings: Settings, app: Flask, db: Connection
    ) -> None:
        """Fails when the whole pool is thrown away with it: who waits then fails too, and connections multiply."""
        small = create_app(replace(settings, db_pool_size=2))
        database = small.extensions[EXTENSION_KEY].database
        asleep = Message(select(literal(1), func.pg_sleep(bindparam("seconds"))))
        sleeping = text(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND query LIKE '%pg_sleep%'"
        )

        def sleep() -> bool:
            try:
                return bool(send(database, asleep, {"seconds": 0.3}))
            except OperationalError:
                return False

        with ThreadPoolExecutor(8) as threads:
            slept = [threads.submit(sleep) for _ in range(8)]
            wait_until(lambda: len(db.execute(sleeping).all()) == 2, seconds=10, what="two that sleep")
            cut(db, db.execute(sleeping).scalars().first())
            assert sorted(each.result(10) for each in slept) == [False] + [True] * 7
        assert len(db.execute(sleeping).all()) <= 2
        dispose(small)


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
        with small.extensions[EXTENSION_KEY].database.connect() as held:
            held.execute(text("SELECT 1"))
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
        for connection in [database.raw_connection() for _ in range(3)]:
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
