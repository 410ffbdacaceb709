"""Runs the migrations against the application's database, each in a transaction of its own."""

from alembic import context
from flask import current_app
from sqlalchemy import text

# A migration that can't have its lock at once gives up and is run again, rather than queue every request behind it.
LOCK_TIMEOUT = "5s"

db = current_app.extensions["migrate"].db


def run_migrations() -> None:
    with db.engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
        context.configure(
            connection=connection,
            target_metadata=db.metadata,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
            context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("Migrations run on a database: set STRIPE_SERVICE_DATABASE_URL.")
run_migrations()
