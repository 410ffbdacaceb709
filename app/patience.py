"""Connections to PostgreSQL on which no answer is waited for without end.

PostgreSQL bounds its own statements (`statement_timeout`), but a pooler or a network in between may swallow one, or its
answer: libpq then waits for ever. Here a thread shuts the socket of a connection that has kept its user waiting for too
long, and libpq reports what it reports of every connection that was lost.
"""

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from psycopg2.extensions import connection, cursor

# How late a connection may be noticed.
TICK_SECONDS = 0.25

# Reentrant, since a connection that nobody returned may be rolled back by the garbage collector at any moment.
_lock = threading.RLock()
_awaited: dict["PatientConnection", float] = {}
_watcher: threading.Thread | None = None


class PatientConnection(connection):
    """Waits for each answer for `patience` seconds at most; None waits for ever, as a migration must."""

    def __init__(self, dsn: str, patience: float | None, **options: Any) -> None:
        super().__init__(dsn, **options)
        self.patience = patience

    def commit(self) -> None:
        """Commit, and wait for the answer within bounds."""
        with _Awaited(self):
            super().commit()

    def rollback(self) -> None:
        """Roll back, and wait for the answer within bounds."""
        with _Awaited(self):
            super().rollback()


class PatientCursor(cursor):
    """The cursor of a `PatientConnection`."""

    def execute(self, query: Any, vars: Any = None) -> None:
        """Execute, and wait for the answer within bounds."""
        with _Awaited(self.connection):
            super().execute(query, vars)


class _Awaited:
    """While it is entered, somebody waits for an answer on this connection."""

    __slots__ = ("connection",)

    def __init__(self, awaited: Any) -> None:
        self.connection = awaited

    def __enter__(self) -> None:
        if self.connection.patience is not None:
            _awaited[self.connection] = time.monotonic() + self.connection.patience
            if _watcher is None:
                _start()

    def __exit__(self, *_: object) -> None:
        # Under the lock: a socket that is shut now is still that of this connection, and of nobody after it.
        with _lock:
            _awaited.pop(self.connection, None)


def _start() -> None:
    global _watcher
    with _lock:
        if _watcher is None:
            _watcher = threading.Thread(target=_watch, name="patience", daemon=True)
            _watcher.start()


def _watch() -> None:
    while True:
        time.sleep(TICK_SECONDS)
        now = time.monotonic()
        with _lock:
            for awaited in [each for each, until in _awaited.copy().items() if until < now]:
                del _awaited[awaited]
                _shut(awaited)


def _shut(awaited: PatientConnection) -> None:
    # An error means that the connection was lost at this moment anyway.
    with suppress(OSError), socket.socket(fileno=os.dup(awaited.fileno())) as shared:
        shared.shutdown(socket.SHUT_RDWR)


def _forget() -> None:
    """A forked child has no watcher yet, and waits for nothing."""
    global _lock, _watcher
    _lock, _watcher = threading.RLock(), None
    _awaited.clear()


os.register_at_fork(after_in_child=_forget)
