"""How the database is reached: a small pool, bounded waits, and no session state that a pooler would lose."""

from functools import partial
from typing import Any

import orjson
import psycopg2
from sqlalchemy import Connection, Engine, event

from app.config import Settings
from app.patience import PatientConnection, PatientCursor

# A request without a connection for this long is answered with 503, rather than late.
POOL_WAIT_SECONDS = 2
CONNECT_TIMEOUT_SECONDS = 5
# Longer than a statement may run: only an answer that nobody sends is waited for until then. Neither wait takes more
# than half of a request's deadline, since a first connection is tried twice.
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
