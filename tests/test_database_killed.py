"""PostgreSQL itself is killed, again and again, while webhooks come in."""

import itertools
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from app.sandbox.postgres import start
from tests.databases import migrate
from tests.soak import amount
from tests.waiting import wait_until
from tests.web import WebProcess
from tests.webhooks import event, try_to_deliver

KILLS = amount(2, 20)
SENDERS = 8
# A server that loses nothing when it is killed; that of the other tests may.
SERVER = "crashes"


@pytest.fixture
def durable() -> Iterator[Engine]:
    """A migrated database on a server that commits durably."""
    server = make_url(start(SERVER)).set(drivername="postgresql+psycopg2")
    admin = create_engine(server, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
    name = f"stripe_service_{uuid.uuid4().hex[:12]}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = server.set(database=name)
    migrate(url.render_as_string(hide_password=False))
    engine = create_engine(url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
    yield engine
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def kill_server(engine: Engine) -> None:
    """kill -9 of the process that all others of the server are children of; then it is started again."""
    with engine.connect() as connection:
        backend = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    os.kill(psutil.Process(backend).ppid(), signal.SIGKILL)
    start(SERVER)


@pytest.mark.soak
def test_every_event_that_was_acknowledged_is_stored(environment: dict[str, str], durable: Engine) -> None:
    """Fails when an event is acknowledged before its transaction is committed, or is committed without being durable.

    The service recovers by itself: what is sent after each start is acknowledged again.
    """
    url = durable.url.render_as_string(hide_password=False)
    answers: dict[str, int] = {}
    numbers = itertools.count()
    ended = threading.Event()

    def acknowledged() -> set[str]:
        return {event_id for event_id, status in answers.copy().items() if status == 200}

    def wait_for_more(count: int) -> None:
        enough = len(acknowledged()) + count
        wait_until(lambda: len(acknowledged()) >= enough, seconds=30, what="events that are acknowledged")

    def send() -> None:
        while not ended.is_set():
            body = event("customer.created", {"id": f"cus_{next(numbers)}", "object": "customer"})
            answers[body["id"]] = try_to_deliver(web, body)

    durably = environment | {"STRIPE_SERVICE_DATABASE_URL": url, "WEB_CONCURRENCY": "2"}
    with WebProcess.start(durably) as web, ThreadPoolExecutor(SENDERS) as threads:
        senders = [threads.submit(send) for _ in range(SENDERS)]
        try:
            for _ in range(KILLS):
                wait_for_more(50)
                kill_server(durable)
            wait_for_more(1)
        finally:
            ended.set()
        for each in senders:
            each.result(60)

    assert set(answers.values()) == {200, 503}
    with durable.connect() as connection:
        stored = set(connection.execute(text("SELECT id FROM stripe_events")).scalars())
    assert acknowledged() <= stored
