"""What tests of commands share: a runner of commands in this process, and operations whose lease has lapsed."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from app.services.kinds import KINDS
from app.services.operations.recovery import recover_operations
from tests.cli import Run
from tests.factories import intent
from tests.stand_ins import StandIns

OPERATIONS = text("SELECT id::text FROM operations")


@pytest.fixture
def flask(app: Flask) -> Run:
    return lambda *arguments: app.test_cli_runner().invoke(args=[str(argument) for argument in arguments])


@pytest.fixture
def leave_asked(client: FlaskClient, stand_ins: StandIns, db: Connection) -> Callable[..., list[str]]:
    """Leaves operations whose answer from Stripe was lost, and which nobody holds; returns their ids."""

    def leave(count: int = 1, **changes: Any) -> list[str]:
        before = set(db.execute(OPERATIONS).scalars())
        stand_ins.fault("stripe", "reset", method="POST", executed=True, times=count)
        for _ in range(count):
            assert client.post("/payment-intent/create", json=intent(**changes)).status_code == 503
        return sorted(set(db.execute(OPERATIONS).scalars()) - before)

    return leave


@pytest.fixture
def orphan_run(
    client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A run that was made although its answer was lost, as if that were more than a lease ago; the value is its id."""
    stand_ins.fault("runs-service", "reset", method="POST", executed=True)
    assert client.post("/payment-intent/create", json=intent()).status_code == 503
    list(recover_operations(services, KINDS, command="flask recover"))
    db.execute(text("UPDATE operations SET run_search_until = now()"))
    anywhere = timedelta(days=40)
    monkeypatch.setattr("app.services.payments.orphan_runs.RUNS_CLOCK_SKEW", anywhere)
    monkeypatch.setattr("app.services.payments.orphan_runs.lease_of", lambda _: -anywhere)
    (run_id,) = stand_ins.runs()
    return run_id
