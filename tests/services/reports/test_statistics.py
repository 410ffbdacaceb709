"""Statistics that take long leave the database to others."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, false, func, literal, select, text

from app import create_app
from app.config import Settings
from app.database import Batch
from tests.databases import dispose
from tests.waiting import wait_until
from tests.web import API_KEY
from tests.webhooks import deliver, event

CONNECTIONS, THREADS = 4, 8
# How many statistics such a process computes at once, and how many more may wait for their turn.
RUN, WAIT = 2, 5
ASKED = 10
LOCK = 20_261_125
SLOW = Batch(select(func.pg_advisory_xact_lock_shared(LOCK)), select(literal(1)).where(false()))
AT_WORK = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'")


@pytest.fixture
def small(settings: Settings, app: Flask) -> Iterator[Flask]:
    """The service with few connections, on the database that `app` has emptied."""
    application = create_app(replace(settings, db_pool_size=CONNECTIONS, web_threads=THREADS))
    yield application
    dispose(application)


def client_of(application: Flask) -> FlaskClient:
    client = application.test_client()
    client.environ_base["HTTP_X_API_KEY"] = API_KEY
    return client


class TestComputeStatistics:
    def test_they_leave_half_of_the_connections_to_webhooks(
        self, small: Flask, db: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are as slow as another transaction lets them be.

        Fails when nothing bounds them, or when those that wait for their turn hold a connection, or are any number.
        """
        monkeypatch.setattr("app.services.reports.statistics._sums_by_currency", lambda _: SLOW)

        def refused() -> list[str]:
            return [each.result().json["code"] for each in asked if each.done()]

        with ThreadPoolExecutor(ASKED) as threads:
            db.execute(select(func.pg_advisory_lock(LOCK)))
            asked = [threads.submit(client_of(small).get, "/stats") for _ in range(ASKED)]
            wait_until(lambda: len(refused()) >= ASKED - RUN - WAIT, seconds=10, what="those that find no place")
            told = deliver(client_of(small), event("customer.created", {"id": "cus_1", "object": "customer"}))
            at_work, codes = db.execute(AT_WORK).scalar_one(), refused()
            db.execute(select(func.pg_advisory_unlock(LOCK)))

        assert (told.status_code, at_work, codes) == (200, RUN, ["overloaded"] * (ASKED - RUN - WAIT))
        assert client_of(small).get("/stats").status_code == 200
