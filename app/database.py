"""How the database is reached: a small pool, bounded waits, and no session state that a pooler would lose."""

from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any, cast

import orjson
import psycopg2
import psycopg2.extensions
from sqlalchemy import Connection, Engine, PoolProxiedConnection, Select, event, make_url

from app.config import Settings

# A request without a connection for this long is answered with 503, rather than late.
POOL_WAIT_SECONDS = 2
CONNECT_TIMEOUT_SECONDS = 5

# The execution option of connections on which no statement may wait for long. Migrations run without it.
BOUNDED = "bounded_waits"
# The execution option of connections whose statements belong to a transaction, until it is committed.
TRANSACTIONAL = "transactional"

# In the same message as the statement, and so in its transaction: a pooler in transaction mode keeps no session, and
# no round trip is spent. https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT
_BOUNDS = "SET LOCAL lock_timeout = '3s'; SET LOCAL statement_timeout = '10s'; "

_DRIVER = "postgresql+psycopg2://"
_DIALECT = make_url(_DRIVER).get_dialect()()


def database_config(settings: Settings) -> dict[str, Any]:
    """Flask-SQLAlchemy's configuration."""
    return {
        "SQLALCHEMY_DATABASE_URI": settings.database_url or _DRIVER,
        "SQLALCHEMY_ENGINE_OPTIONS": {
            "pool_size": settings.db_pool_size,
            "max_overflow": 0,
            "pool_timeout": POOL_WAIT_SECONDS,
            "connect_args": {
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
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
            # Once for each connection: to change it, and change it back, would be a message for each use of one.
            "isolation_level": "AUTOCOMMIT",
            "skip_autocommit_rollback": True,
        },
    }


def _dump_json(value: object) -> str:
    return orjson.dumps(value).decode()


def prepare_engine(engine: Engine) -> None:
    """Bound what statements may wait for, and begin and end the transactions of those that belong to one.

    A first connection is tried twice: a database that slept may refuse one.
    """
    event.listen(engine, "before_cursor_execute", _prefix, retval=True)
    event.listen(engine, "commit", _end_with("COMMIT"))
    event.listen(engine, "rollback", _end_with("ROLLBACK"))
    event.listen(engine, "do_connect", _connect)


class Query:
    """A statement that reads, compiled once and run by the driver alone: SQLAlchemy's own way there takes longer.

    Each run is a transaction by itself, whose waits are bounded. Values are as psycopg2 takes them: an id is text.
    """

    def __init__(self, statement: Select[Any]) -> None:
        compiled = statement.compile(dialect=_DIALECT)
        self.sql = str(compiled)
        self.constants = {name: value for name, value in compiled.params.items() if value is not None}
        row: Any = namedtuple("Row", statement.selected_columns.keys())  # type: ignore[misc] # known only here
        self._as_row = row._make

    def run(self, database: Engine, values: Mapping[str, object]) -> list[Any]:
        """The rows, each with the statement's columns by name."""
        connection = database.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute(_BOUNDS + self.sql, {**self.constants, **values})
            return list(map(self._as_row, cursor.fetchall()))
        except psycopg2.Error:
            if _driver(connection).closed:
                # The server has gone away, and with it whatever else the pool holds.
                database.dispose()
            raise
        finally:
            connection.close()


def _prefix(
    connection: Connection, _cursor: object, statement: str, parameters: object, *_: object
) -> tuple[str, object]:
    options = connection.get_execution_options()
    if options.get(BOUNDED):
        statement = _BOUNDS + statement
    # In the first statement's message, too; the driver would send it in one of its own.
    if options.get(TRANSACTIONAL) and not _has_begun(connection):
        statement = "BEGIN; " + statement
    return statement, parameters


def _end_with(statement: str) -> Callable[[Connection], None]:
    def end(connection: Connection) -> None:
        if connection.invalidated or not _has_begun(connection):
            return
        try:
            with _driver(connection.connection).cursor() as cursor:
                cursor.execute(statement)
        except psycopg2.Error:
            connection.invalidate()
            raise

    return end


def _has_begun(connection: Connection) -> bool:
    return _driver(connection.connection).info.transaction_status != psycopg2.extensions.TRANSACTION_STATUS_IDLE


def _driver(connection: PoolProxiedConnection) -> psycopg2.extensions.connection:
    return cast(psycopg2.extensions.connection, connection.dbapi_connection)


def _connect(_dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]) -> Any:
    try:
        return psycopg2.connect(*arguments, **options)
    except psycopg2.OperationalError:
        return psycopg2.connect(*arguments, **options)
