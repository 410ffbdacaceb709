"""Databases of the tests: copies of a migrated template, emptied before each test."""

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flask import Flask
from sqlalchemy import Connection, create_engine, make_url, text

from tests.proxy import Proxy

ROOT = Path(__file__).parents[1]
SOCKET = ".s.PGSQL.5432"
# Far longer than a migration of the tests takes.
MIGRATION_SECONDS = 60


@contextmanager
def migrated_database(server_url: str) -> Iterator[str]:
    """Copy the template, and drop the copy in the end."""
    admin = create_engine(_psycopg2(server_url), isolation_level="AUTOCOMMIT")
    template = _template(admin.url.render_as_string(hide_password=False))
    name = f"stripe_service_{uuid.uuid4().hex[:12]}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy"))
    yield make_url(admin.url).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def _psycopg2(url: str) -> str:
    return "postgresql+psycopg2://" + url.partition("://")[2]


def _template(server_url: str) -> str:
    """The name of a database with this checkout's migrations, made by the first process that needs it."""
    migrations = sorted((ROOT / "migrations" / "versions").glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in migrations)).hexdigest()[:12]
    name = f"stripe_service_template_{digest}"
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with (Path(tempfile.gettempdir()) / f"{name}.lock").open("w") as lock, admin.connect() as connection:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = text("SELECT 1 FROM pg_database WHERE datname = :name")
        if not connection.execute(found, {"name": name}).scalar():
            building = f"{name}_building"
            connection.execute(text(f"DROP DATABASE IF EXISTS {building}"))
            connection.execute(text(f"CREATE DATABASE {building}"))
            migrate(make_url(server_url).set(database=building).render_as_string(hide_password=False))
            connection.execute(text(f"ALTER DATABASE {building} RENAME TO {name}"))
    admin.dispose()
    return name


def migrate(url: str, *, directory: Path = ROOT / "migrations") -> None:
    """Bring a database to the newest revision of a directory's."""
    command = [sys.executable, "-m", "flask", "db", "upgrade", "--directory", str(directory)]
    environment = {**os.environ, "STRIPE_SERVICE_DATABASE_URL": url}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=MIGRATION_SECONDS)


def dispose(application: Flask) -> None:
    """Close an application's connections."""
    with application.app_context():
        application.extensions["sqlalchemy"].engine.dispose()


# How many wait for a lock, of a row or of anything else, also as seen by the transaction that holds it. Tests of other
# processes wait in databases of their own.
WAITING = text(
    "SELECT count(*) FROM pg_locks AS wanted WHERE NOT granted AND EXISTS (SELECT FROM pg_locks AS held"
    " JOIN pg_database ON oid = held.database WHERE held.pid = wanted.pid AND datname = current_database())"
)
# What refers to others comes first.
TABLES = (
    "app_events",
    "event_endpoints",
    "money_movements",
    "customers",
    "operations",
    "stripe_objects",
    "stripe_events",
    "subscriptions",
    "payments",
    "event_cursors",
    "api_keys",
    "app_accounts",
    "accounts",
)


def empty(connection: Connection) -> None:
    """Delete all rows, which is quicker here than to truncate."""
    connection.execute(text("; ".join(f"DELETE FROM {table}" for table in TABLES)))


def database_address(database_url: str) -> tuple[str, int] | Path:
    """Where a database listens: a host and a port, or the path of a socket."""
    url = make_url(database_url)
    return (url.host, url.port or 5432) if url.host else Path(str(url.query["host"])) / SOCKET


def through(proxy: Proxy, database_url: str) -> str:
    """The URL of the same database, reached through the proxy."""
    url = make_url(database_url).set(host="127.0.0.1", port=proxy.port).difference_update_query(["host"])
    return url.render_as_string(hide_password=False)
