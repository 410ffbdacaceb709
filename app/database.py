"""How the database is reached: a small pool, bounded waits, and no session state that a pooler would lose."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, cast

import orjson
import psycopg2
import psycopg2.extensions
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, adapt
from sqlalchemy import Connection, Engine, PoolProxiedConnection, Select, UpdateBase, event
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.engine import result_tuple
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError

from app.config import Settings
from app.patience import PatientConnection, PatientCursor

# A request without a connection for this long is answered with 503, rather than late.
POOL_WAIT_SECONDS = 2
CONNECT_TIMEOUT_SECONDS = 5
# For the answer to a message: longer than a statement of it may run, so that mostly nothing but an answer that nobody
# sends is waited for until then. Neither wait takes more than half of a request's deadline, since a first connection is
# tried twice.
PATIENCE_SECONDS = 12

# The execution option of connections on which no statement may wait for long. Migrations run without it.
BOUNDED = "bounded_waits"

# In the same message as the statement, and so in its transaction: a pooler in transaction mode keeps no session, and
# no round trip is spent. https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT
_BOUNDS = "SET LOCAL lock_timeout = '3s'; SET LOCAL statement_timeout = '10s'; "


def database_config(settings: Settings) -> dict[str, Any]:
    """Flask-SQLAlchemy's configuration."""
    return {
        "SQLALCHEMY_DATABASE_URI": settings.database_url or "postgresql+psycopg2://",
        "SQLALCHEMY_ENGINE_OPTIONS": {
            # Every statement commits by itself; a transaction of several is begun by a message, or by a migration.
            "isolation_level": "AUTOCOMMIT",
            "pool_size": settings.db_pool_size,
            "max_overflow": 0,
            "pool_timeout": POOL_WAIT_SECONDS,
            "connect_args": {
                "connect_timeout": _connect_timeout(settings),
                "connection_factory": partial(PatientConnection, patience=_patience(settings)),
                "cursor_factory": PatientCursor,
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


def _patience(settings: Settings) -> float:
    return min(PATIENCE_SECONDS, settings.request_deadline_seconds / 2)


def _connect_timeout(settings: Settings) -> int:
    """libpq counts whole seconds, and takes 0 for no limit."""
    return max(1, min(CONNECT_TIMEOUT_SECONDS, int(settings.request_deadline_seconds / 2)))


def _dump_json(value: object) -> str:
    return orjson.dumps(value).decode()


_DIALECT = PGDialect_psycopg2(json_serializer=_dump_json)  # type: ignore[no-untyped-call]
_PLACEHOLDER = re.compile(r"%\((\w+)\)s")


class Message:
    """What is sent to the database in one go: statements of SQLAlchemy Core, compiled when this is made.

    Each has its own bounds, and outside of REPEATABLE READ a snapshot of its own; the rows of the last one come back.
    The driver sends it as it is, which takes a third of the CPU of an execution by SQLAlchemy. A message without a
    BEGIN commits at its end, unless an earlier one has begun a transaction.
    """

    def __init__(self, *parts: Select[*tuple[Any, ...]] | UpdateBase | Literal["BEGIN", "COMMIT"]) -> None:
        self._bind_processors: dict[str, Any] = {}
        self._text = "; ".join(part if isinstance(part, str) else self._compile(part) for part in parts)
        last = parts[-1]
        self._row = result_tuple([] if isinstance(last, str) else list(map(str, last.exported_columns.keys())))

    def send(self, cursor: DBAPICursor, values: Mapping[str, Any]) -> list[Any]:
        """Send it with values for its bind parameters; the last statement's rows come back as the driver reads them."""
        processed = {name: process(values[name]) for name, process in self._bind_processors.items()}
        try:
            cursor.execute(self._text, {**values, **processed})
        except psycopg2.Error as error:
            # As SQLAlchemy raises it: with the statement, and without the values.
            raise DBAPIError.instance(
                self._text, None, error, psycopg2.Error, hide_parameters=True, dialect=_DIALECT
            ) from error
        return [self._row(row) for row in cursor.fetchall()] if cursor.description else []

    def _compile(self, statement: Select[Any] | UpdateBase) -> str:
        compiled = statement.compile(dialect=_DIALECT)
        constants = {}
        for name in set(_PLACEHOLDER.findall(compiled.string)):
            bind = compiled.binds[name]
            process = bind.type.dialect_impl(_DIALECT).bind_processor(_DIALECT)
            if not bind.required:
                constants[name] = _quote(process(bind.value) if process else bind.value)
            elif process:
                self._bind_processors[name] = process
        return _BOUNDS + _PLACEHOLDER.sub(lambda found: constants.get(found[1], found[0]), compiled.string)


def _quote(value: object) -> str:
    quoted: bytes = adapt(value).getquoted()
    return quoted.decode().replace("%", "%%")


@contextmanager
def borrow_cursor(engine: Engine) -> Iterator[DBAPICursor]:
    """A cursor on a connection of the pool, to send messages. What they have begun ends with an error of the block."""
    connection = engine.raw_connection()
    try:
        yield connection.cursor()
    except BaseException as error:
        _clean_up(connection, engine, error)
        raise
    finally:
        connection.close()


def _clean_up(connection: PoolProxiedConnection, engine: Engine, error: BaseException) -> None:
    driver = cast(psycopg2.extensions.connection, connection.driver_connection)
    if not driver.closed and driver.info.transaction_status != TRANSACTION_STATUS_IDLE:
        with suppress(psycopg2.Error):
            driver.cursor().execute("ROLLBACK")
    if driver.closed:
        # As SQLAlchemy does: this one is dropped, and those as old are replaced when their turn comes.
        engine.pool._invalidate(connection, error)


def send(engine: Engine, message: Message, values: Mapping[str, Any]) -> list[Any]:
    """Send one message on a connection of its own."""
    with borrow_cursor(engine) as cursor:
        return message.send(cursor, values)


def bound_waits(engine: Engine) -> None:
    """Bound what statements may wait for, and try a first connection twice: a database that slept may refuse one."""
    event.listen(engine, "before_cursor_execute", _prefix_with_bounds, retval=True)
    event.listen(engine, "do_connect", _connect)


def _prefix_with_bounds(
    connection: Connection, _cursor: object, statement: str, parameters: object, *_: object
) -> tuple[str, object]:
    if connection.get_execution_options().get(BOUNDED):
        statement = _BOUNDS + statement
    return statement, parameters


def _connect(_dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]) -> Any:
    try:
        return psycopg2.connect(*arguments, **options)
    except psycopg2.OperationalError:
        return psycopg2.connect(*arguments, **options)
