"""The benchmarks' own databases: made on a durable PostgreSQL, migrated, and dropped at the end."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine, make_url, text

from app.sandbox.postgres import start
from tests.web import ROOT, clean_environment

# The embedded server that commits durably; that of the tests doesn't.
SERVER = "bench"
# By this PostgreSQL tells the benchmarks' own connections from those of the service.
APPLICATION_NAME = "bench"


@contextmanager
def fresh_database(*, keep: bool = False) -> Iterator[str]:
    """Make a database with this checkout's migrations; the value is its URL.

    :param keep: leave it where it is at the end
    """
    admin = _engine(os.environ.get("STRIPE_SERVICE_DATABASE_URL") or start(SERVER))
    name = f"stripe_service_bench_{uuid.uuid4().hex[:12]}"
    url = admin.url.set(database=name).render_as_string(hide_password=False)
    _execute(admin, f"CREATE DATABASE {name}")
    # As docs/operations.md advises for the database in production.
    _execute(admin, f"ALTER DATABASE {name} SET random_page_cost = 1.1")
    try:
        _migrate(url)
        yield url
    finally:
        if not keep:
            _execute(admin, f"DROP DATABASE {name} WITH (FORCE)")
        admin.dispose()


def connect(url: str) -> Engine:
    """An engine on which every statement commits by itself."""
    return _engine(url)


def _engine(url: str) -> Engine:
    # SQLAlchemy 2.1 takes a bare postgresql:// to mean psycopg 3.
    driver_url = make_url(url).set(drivername="postgresql+psycopg2")
    return create_engine(driver_url, isolation_level="AUTOCOMMIT", connect_args={"application_name": APPLICATION_NAME})


def _execute(engine: Engine, statement: str) -> None:
    with engine.connect() as connection:
        connection.execute(text(statement))


def _migrate(url: str) -> None:
    environment = {**clean_environment(), "STRIPE_SERVICE_DATABASE_URL": url}
    subprocess.run(
        [sys.executable, "-m", "flask", "db", "upgrade"], cwd=ROOT, env=environment, check=True, stdout=sys.stderr
    )
