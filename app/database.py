"""The one way to PostgreSQL: a small pool, statements compiled once, and a bound for every wait.

A pooler in transaction mode keeps no session, so nothing here needs one: bounds are set with each transaction, and no
statement is prepared by the server.
"""

import re
import select
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import orjson
import psycopg2
import psycopg2.errors
from psycopg2.extensions import (
    POLL_OK,
    POLL_READ,
    TRANSACTION_STATUS_IDLE,
    adapt,
    connection,
    new_type,
    register_type,
    set_wait_callback,
)
from sqlalchemy import Engine, Executable, PoolProxiedConnection, event, text
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.engine import result_tuple
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.config import Settings

# A request without a connection for this long is answered with 503, rather than late.
POOL_WAIT_SECONDS = 2
CONNECT_TIMEOUT_SECONDS = 4
# Longer than a statement may run, so that mostly nothing but an answer that nobody sends is waited for until then.
ANSWER_TIMEOUT_SECONDS = 12

# In the same message as what they bound: a pooler would lose them otherwise, and no round trip is spent on them.
# https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT
_BOUNDS = "SET LOCAL lock_timeout = '3s'; SET LOCAL statement_timeout = '10s'; "
_BEGIN = f"BEGIN; {_BOUNDS}"

_TIMESTAMPTZ = 1184


def _in_utc(told: str | bytes | None, _: object) -> datetime | None:
    """A time as all of the service tells it, whatever time zone the server is in."""
    return datetime.fromisoformat(told).astimezone(UTC) if isinstance(told, str) else None


_UTC_TIMESTAMPTZ = new_type((_TIMESTAMPTZ,), "UTC_TIMESTAMPTZ", _in_utc)


class BoundedConnection(connection):
    """A connection on which no answer is waited for without end; None waits for ever, as a migration must."""

    def __init__(self, dsn: str, *, longest_wait_seconds: float, **options: Any) -> None:
        self.answer_timeout_seconds: float | None = min(CONNECT_TIMEOUT_SECONDS, longest_wait_seconds)
        super().__init__(dsn, **options)
        self.answer_timeout_seconds = min(ANSWER_TIMEOUT_SECONDS, longest_wait_seconds)
        register_type(_UTC_TIMESTAMPTZ, self)


def wait_for_answer(waiting: connection) -> None:
    """Wait until the driver has what it waits for: its own hook, called for every connection of the process.

    PostgreSQL bounds its own statements; a pooler or a network in between may swallow one, or its answer.
    https://www.psycopg.org/docs/extensions.html#psycopg2.extensions.set_wait_callback

    :raises psycopg2.OperationalError: when it takes too long; the driver then closes the connection
    """
    timeout = getattr(waiting, "answer_timeout_seconds", None)
    ends_at = None if timeout is None else time.monotonic() + timeout
    while (state := waiting.poll()) != POLL_OK:
        ready = select.poll()
        ready.register(waiting.fileno(), select.POLLIN if state == POLL_READ else select.POLLOUT)
        if not ready.poll(None if ends_at is None else max(0.0, ends_at - time.monotonic()) * 1000):
            raise psycopg2.OperationalError("the database did not answer in time")


set_wait_callback(wait_for_answer)


def database_config(settings: Settings) -> dict[str, Any]:
    """Flask-SQLAlchemy's configuration."""
    return {
        "SQLALCHEMY_DATABASE_URI": settings.database_url or "postgresql+psycopg2://",
        "SQLALCHEMY_ENGINE_OPTIONS": {
            # Every statement commits by itself; what takes several begins a transaction.
            "isolation_level": "AUTOCOMMIT",
            "pool_size": settings.db_pool_size,
            "max_overflow": 0,
            "pool_timeout": POOL_WAIT_SECONDS,
            "connect_args": {
                # A first connection is tried twice, so neither try takes more than half of a request's deadline.
                "connection_factory": partial(
                    BoundedConnection, longest_wait_seconds=settings.request_deadline_seconds / 2
                ),
                # A server that vanished without a word is noticed, rather than waited for.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 2,
                "tcp_user_timeout": 10_000,
            },
            "json_serializer": _dump_json,
            "json_deserializer": orjson.loads,
            # Statements are logged with errors; what callers sent, and what Stripe answered, is not.
            "hide_parameters": True,
            "skip_autocommit_rollback": True,
        },
    }


def _dump_json(value: object) -> str:
    return orjson.dumps(value).decode()


_DIALECT = PGDialect_psycopg2(json_serializer=_dump_json)  # type: ignore[no-untyped-call]
_PLACEHOLDER = re.compile(r"%\((\w+)\)s")


class Batch:
    """Statements of SQLAlchemy Core that are sent in one message, compiled when this is made.

    Outside of REPEATABLE READ each has a snapshot of its own; the rows of the last one come back. The driver sends it
    as it is, which takes a third of the CPU of an execution by SQLAlchemy. Outside of a transaction, a batch is one.
    """

    def __init__(self, *statements: Executable) -> None:
        self._bind_processors: dict[str, Any] = {}
        self._row: Any = None
        self._text = "; ".join(map(self._compile, statements))

    def send(self, cursor: DBAPICursor, values: Mapping[str, Any], *, before: str = "", after: str = "") -> list[Any]:
        """Send it with values for its bind parameters; return the last statement's rows.

        :param before: statements that go before it in the same message
        :param after: statements that go after it
        """
        try:
            cursor.execute(before + self._text + after, self.processed(values))
        except psycopg2.Error as error:
            # As SQLAlchemy raises it: with the statement, and without the values.
            raise DBAPIError.instance(
                self._text, None, error, psycopg2.Error, hide_parameters=True, dialect=_DIALECT
            ) from error
        if not cursor.description:
            return []
        if self._row is None:
            self._row = result_tuple([column[0] for column in cursor.description])
        return [self._row(row) for row in cursor.fetchall()]

    def processed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values as the driver takes them."""
        return {**values, **{name: process(values[name]) for name, process in self._bind_processors.items()}}

    def _compile(self, statement: Any) -> str:
        compiled = statement.compile(dialect=_DIALECT)
        constants = {}
        for name in set(_PLACEHOLDER.findall(compiled.string)):
            bind = compiled.binds[name]
            process = bind.type.dialect_impl(_DIALECT).bind_processor(_DIALECT)
            if not bind.required:
                constants[name] = _quote(process(bind.value) if process else bind.value)
            elif process:
                self._bind_processors[name] = process
        if "POSTCOMPILE" in compiled.string:
            raise ValueError("IN over a list of constants is compiled with each execution: compare with each of them")
        return _PLACEHOLDER.sub(lambda found: constants.get(found[1], found[0]), str(compiled.string))


def _quote(value: object) -> str:
    quoted: bytes = adapt(value).getquoted()
    return quoted.decode().replace("%", "%%")


class Transaction:
    """One transaction: begun with its first batch, and committed with its last, or at the end of its block."""

    def __init__(self, cursor: DBAPICursor) -> None:
        self._cursor = cursor
        self.is_open = False

    def run(self, batch: Batch, /, **values: Any) -> list[Any]:
        """Send a batch; return the rows of its last statement."""
        return self._send(batch, values)

    def run_and_commit(self, batch: Batch, /, **values: Any) -> None:
        """Send the transaction's last batch, and its end in the same message."""
        self._send(batch, values, after="; COMMIT")
        self.is_open = False

    def _send(self, batch: Batch, values: Mapping[str, Any], *, after: str = "") -> list[Any]:
        before = "" if self.is_open else _BEGIN
        self.is_open = True
        return batch.send(self._cursor, values, before=before, after=after)


_COMMIT = Batch(text("COMMIT"))


class Queue:
    """Places that are had in the order of asking.

    SQLAlchemy's pool gives a connection to whoever is quickest: of many threads, those that come back for more let one
    that waits wait in vain.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def place(self, *, wait_seconds: float) -> Iterator[None]:
        """Hold a place for the time of a block.

        :raises sqlalchemy.exc.TimeoutError: when none comes in time, as the pool itself says it
        """
        with self._lock:
            turn = None if self._free else threading.Event()
            if turn is None:
                self._free -= 1
            else:
                self._waiting.append(turn)
        if turn is not None and not turn.wait(wait_seconds) and self._leave(turn):
            raise PoolTimeoutError("no connection of the pool was free in time")
        try:
            yield
        finally:
            self._give_back()

    def _leave(self, turn: threading.Event) -> bool:
        """Wait no longer; return whether it was in vain: a place may have come in this very instant."""
        with self._lock:
            if turn.is_set():
                return False
            self._waiting.remove(turn)
            return True

    def _give_back(self) -> None:
        """Hand the place to whoever has waited the longest: it is free only when nobody waits."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


class Database:
    """Sends batches on connections of the pool, none of which is held longer than a transaction.

    :param queue: where threads wait for one of the pool's connections
    :param answer_timeout_seconds: instead of the connections' own
    """

    def __init__(self, engine: Engine, queue: Queue, *, answer_timeout_seconds: float | None = None) -> None:
        self.engine = engine
        self._queue = queue
        self._answer_timeout_seconds = answer_timeout_seconds

    def giving_up_after(self, seconds: float) -> "Database":
        """The same database, for somebody who can't wait for an answer as long as others."""
        return Database(self.engine, self._queue, answer_timeout_seconds=seconds)

    def run(self, batch: Batch, /, **values: Any) -> list[Any]:
        """Send a batch as a transaction of its own; return the rows of its last statement."""
        with self._cursor() as cursor:
            return batch.send(cursor, values, before=_BOUNDS)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction that ends with the block: an exception in it rolls back."""
        with self._cursor() as cursor:
            transaction = Transaction(cursor)
            yield transaction
            if transaction.is_open:
                _COMMIT.send(cursor, {})

    @contextmanager
    def _cursor(self) -> Iterator[DBAPICursor]:
        with self._queue.place(wait_seconds=POOL_WAIT_SECONDS), self._borrowed_cursor() as cursor:
            yield cursor

    @contextmanager
    def _borrowed_cursor(self) -> Iterator[DBAPICursor]:
        borrowed = self.engine.raw_connection()
        driver = cast(BoundedConnection, borrowed.driver_connection)
        own_timeout = driver.answer_timeout_seconds
        driver.answer_timeout_seconds = self._answer_timeout_seconds or own_timeout
        try:
            yield borrowed.cursor()
        except BaseException as error:
            self._clean_up(borrowed, error)
            raise
        finally:
            driver.answer_timeout_seconds = own_timeout
            borrowed.close()

    def _clean_up(self, borrowed: PoolProxiedConnection, error: BaseException) -> None:
        driver = cast(connection, borrowed.driver_connection)
        if not driver.closed and driver.info.transaction_status != TRANSACTION_STATUS_IDLE:
            with suppress(psycopg2.Error):
                driver.cursor().execute("ROLLBACK")
        only_reads = isinstance(error, DBAPIError) and isinstance(error.orig, psycopg2.errors.ReadOnlySqlTransaction)
        if driver.closed or only_reads:
            # As SQLAlchemy does: this one is dropped, and those as old are replaced when their turn comes. The name may
            # lead to another primary by now, and a session that began while there was none only reads for ever.
            self.engine.pool._invalidate(borrowed, error)


def refuse_connections(engine: Engine) -> None:
    """Let nobody connect: where no database is named, libpq would take one from its own defaults."""
    event.listen(engine, "do_connect", _refuse)


def _refuse(*_: object) -> None:
    raise psycopg2.OperationalError("no database is named")


def connect_twice(engine: Engine) -> None:
    """Try a first connection twice: a database that was asleep may refuse one."""
    event.listen(engine, "do_connect", _connect)


def _connect(_dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]) -> Any:
    try:
        return psycopg2.connect(*arguments, **options)
    except psycopg2.OperationalError:
        return psycopg2.connect(*arguments, **options)
