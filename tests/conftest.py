"""What tests share: a database copied from a migrated template, the stand-ins, and applications that use both."""

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

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, create_engine, make_url, text

from app import create_app
from app.config import Settings
from tests.stand_ins import StandIns
from tests.web import API_KEY, WebProcess

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that uses the database or the stand-ins is an integration test; nobody has to remember to say so."""
    for item in items:
        if {"database_url", "stand_ins", "app"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def server_url() -> str:
    """PostgreSQL: the one that the environment names, or one of the tests' own."""
    if url := os.environ.get("STRIPE_SERVICE_DATABASE_URL"):
        return url
    from app.sandbox.postgres import start

    return start("tests")


@pytest.fixture(scope="session")
def database_url(server_url: str) -> Iterator[str]:
    """A migrated database of this process's own."""
    with migrated_database(server_url) as url:
        yield url


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
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)


@pytest.fixture(scope="session")
def stand_ins_process() -> Iterator[StandIns]:
    with StandIns.start() as stand_ins:
        yield stand_ins


@pytest.fixture
def stand_ins(stand_ins_process: StandIns) -> StandIns:
    """The stand-ins for Stripe, key-service and runs-service, as new; webhooks stay where they are."""
    stand_ins_process.reset()
    return stand_ins_process


@pytest.fixture
def environment(database_url: str, stand_ins: StandIns) -> dict[str, str]:
    """What a process of the service is started with."""
    return {
        "STRIPE_SERVICE_DATABASE_URL": database_url,
        "STRIPE_SERVICE_API_KEY": API_KEY,
        "STRIPE_WEBHOOK_SECRET": "whsec_tests",
        **stand_ins.environment,
    }


@pytest.fixture
def settings(environment: dict[str, str]) -> Settings:
    return Settings.from_environment(environment).require_valid()


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    """An application in this process, on an empty database."""
    application = create_app(settings)
    with application.app_context():
        engine = application.extensions["sqlalchemy"].engine
        with engine.begin() as connection:
            empty(connection)
    yield application
    dispose(application)


def dispose(application: Flask) -> None:
    """Close an application's connections."""
    with application.app_context():
        application.extensions["sqlalchemy"].engine.dispose()


def empty(connection: Connection) -> None:
    """Delete all rows, which is quicker here than to truncate."""
    connection.execute(text("DELETE FROM stripe_events"))
    connection.execute(text("DELETE FROM payments"))
    connection.execute(text("DELETE FROM event_cursors"))


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A caller that sends the API key."""
    client = app.test_client()
    client.environ_base["HTTP_X_API_KEY"] = API_KEY
    return client


@pytest.fixture
def db(app: Flask) -> Iterator[Connection]:
    """A connection on which each statement sees what is committed."""
    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        yield connection


@pytest.fixture
def web(environment: dict[str, str], app: Flask) -> Iterator[WebProcess]:
    """The service under gunicorn, in two processes, as in production."""
    with WebProcess.start(environment | {"WEB_CONCURRENCY": "2"}) as process:
        yield process
