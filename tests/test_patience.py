"""Connections on which no answer is waited for without end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import pytest

from app.patience import PatientConnection, PatientCursor

PATIENCE = 0.5


@contextmanager
def connected(server_url: str, *, patience: float | None) -> Iterator[PatientConnection]:
    connection = PatientConnection(server_url.replace("+psycopg2", ""), patience)
    connection.autocommit = True
    try:
        yield connection
    finally:
        connection.close()


def sleep(connection: PatientConnection, seconds: float) -> None:
    with connection.cursor(cursor_factory=PatientCursor) as cursor:
        cursor.execute("SELECT pg_sleep(%s)", (seconds,))


@pytest.mark.integration
class TestPatience:
    def test_an_answer_that_does_not_come_is_given_up(self, server_url: str) -> None:
        started = time.monotonic()
        with connected(server_url, patience=PATIENCE) as connection:
            with pytest.raises(psycopg2.OperationalError):
                sleep(connection, 10)
            assert connection.closed
        assert PATIENCE <= time.monotonic() - started < 5

    def test_a_connection_on_which_nothing_is_awaited_is_left_alone(self, server_url: str) -> None:
        """Fails when what was awaited is not forgotten with its answer."""
        with (
            connected(server_url, patience=PATIENCE) as idle,
            connected(server_url, patience=PATIENCE) as busy,
        ):
            sleep(idle, 0)
            for _ in range(4):
                sleep(busy, PATIENCE / 2)
            sleep(idle, 0)

    def test_a_migration_waits_for_as_long_as_it_takes(self, server_url: str) -> None:
        with connected(server_url, patience=None) as connection:
            sleep(connection, 2 * PATIENCE)
