"""Runs the migrations against the application's database, each in a transaction of its own.

An index on a table that may be large is made `with op.get_context().autocommit_block()` and `postgresql_concurrently`.
"""

from alembic import context
from flask import current_app
from sqlalchemy import Connection, event

from app.cli.configured import exit_when_database_fails, require_database

# A migration that can't have its lock at once gives up and is run again, rather than queue every request behind it.
LOCK_TIMEOUT = "5s"

db = current_app.extensions["migrate"].db


def run_migrations() -> None:
    with db.engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
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
