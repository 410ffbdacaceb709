"""What tests share: a database copied from a migrated template, the stand-ins, and applications that use both."""

import os
from collections.abc import Iterator
from functools import cache

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection

from app import create_app
from app.config import Settings
from app.request_context import EXTENSION_KEY
from app.services import Services
from tests.databases import dispose, empty, migrated_database
from tests.stand_ins import StandIns
from tests.web import API_KEY, WebProcess


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


@pytest.fixture(scope="session")
def stand_ins_process() -> Iterator[StandIns]:
    with StandIns.start() as stand_ins:
        yield stand_ins


@pytest.fixture
def stand_ins(stand_ins_process: StandIns) -> StandIns:
    """The stand-ins for Stripe, key-service and runs-service, as new; webhooks stay where they are."""
    stand_ins_process.reset()
    return stand_ins_process


def environment_of(database_url: str, stand_ins: StandIns) -> dict[str, str]:
    """What a process of the service is started with."""
    return {
        "STRIPE_SERVICE_DATABASE_URL": database_url,
        "STRIPE_SERVICE_API_KEY": API_KEY,
        "STRIPE_WEBHOOK_SECRET": "whsec_tests",
        **stand_ins.environment,
    }


@pytest.fixture
def environment(database_url: str, stand_ins: StandIns) -> dict[str, str]:
    """What a process of the service is started with."""
    return environment_of(database_url, stand_ins)


@pytest.fixture
def settings(environment: dict[str, str]) -> Settings:
    return Settings.from_environment(environment).require_valid()


@cache
def application_of(settings: Settings) -> Flask:
    """An application that many tests use, one after the other: what it knows is in its services."""
    return create_app(settings)


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    """An application in this process, as new, on an empty database."""
    application = application_of(settings)
    with application.app_context():
        engine = application.extensions["sqlalchemy"].engine
        application.extensions[EXTENSION_KEY] = Services.connect(settings, engine)
        with engine.begin() as connection:
            empty(connection)
    yield application
    dispose(application)


@pytest.fixture
def dying(settings: Settings) -> Iterator[Flask]:
    """The application of children that are killed; the parent never uses it."""
    application = create_app(settings)
    yield application
    dispose(application)


@pytest.fixture
def services(app: Flask) -> Services:
    found = app.extensions[EXTENSION_KEY]
    assert isinstance(found, Services)
    return found


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
