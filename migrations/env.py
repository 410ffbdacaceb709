"""Runs the migrations against the application's database, each in a transaction of its own.

An index on a table that may be large is made `with op.get_context().autocommit_block()` and `postgresql_concurrently`.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from alembic import context
from flask import current_app
from sqlalchemy import Connection, NullPool, create_engine, event, text

from app.cli.configured import exit_when_database_fails, require_database
from app.database import connect_twice

# A migration that can't have its lock at once gives up and is run again, rather than queue every request behind it.
LOCK_TIMEOUT = "5s"

# Of the advisory lock of upgrades: any number that nothing else in this database locks.
UPGRADE = 7_403_118_652_971_004
TRY_AGAIN_SECONDS = 0.2

db = current_app.extensions["migrate"].db


@contextmanager
def only_upgrade() -> Iterator[None]:
    """Wait until no other upgrade runs, and keep others waiting until the block ends.

    The lock is a transaction's, since a pooler keeps no session, and of a connection of its own, since each migration
    ends its transaction. A waiting one asks again and again: a statement that waits has a snapshot, and for its end an
    index that is made concurrently waits. https://www.postgresql.org/docs/current/sql-createindex.html
    """
    connect_args = current_app.config["SQLALCHEMY_ENGINE_OPTIONS"]["connect_args"]
    engine = create_engine(
        db.engine.url, poolclass=NullPool, isolation_level="READ COMMITTED", connect_args=connect_args
    )
    connect_twice(engine)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        while not connection.scalar(text(f"SELECT pg_try_advisory_xact_lock({UPGRADE})")):
            time.sleep(TRY_AGAIN_SECONDS)
        yield


def run_migrations() -> None:
    with only_upgrade(), db.engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
        # An index over a large table takes as long as it takes.
        connection.connection.dbapi_connection.answer_timeout_seconds = None
        event.listen(connection, "begin", bound_waits_for_locks)
        context.configure(
            connection=connection,
            target_metadata=db.metadata,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()


def bound_waits_for_locks(connection: Connection) -> None:
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")


if context.is_offline_mode():
    raise SystemExit("Migrations run on a database: set STRIPE_SERVICE_DATABASE_URL.")
require_database()
with exit_when_database_fails():
    run_migrations()
