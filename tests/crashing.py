"""A process that kills itself: a request in a forked child, with SIGKILL at a chosen point."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg2.extensions
from sqlalchemy import event

from app import create_app
from app.config import Settings
from app.services.upstreams.http import Transport
from tests.web import API_KEY


@dataclass
class Points:
    """Counts the points at which a process can die: before and after each upstream call and each statement."""

    die_at: int
    passed: int = 0

    def reach(self) -> None:
        if self.passed == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1


def create_and_die(settings: Settings, path: str, body: dict[str, Any], headers: dict[str, str], die_at: int) -> bool:
    """Create a payment in a process that is killed at a point; False when the request ended before it got there."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
        return os.WIFSIGNALED(status)
    try:
        app = create_app(settings)
        points = Points(die_at)
        _watch(app, points)
        response = app.test_client().post(path, json=body, headers={"X-API-Key": API_KEY, **headers})
        os._exit(0 if response.status_code == 200 else 1)
    finally:
        os._exit(1)


def _watch(app: Any, points: Points) -> None:
    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine

    def watch_statements(connection: Any, _: object) -> None:
        class Watched(connection.cursor_factory or psycopg2.extensions.cursor):  # type: ignore[misc]
            def execute(self, *args: Any) -> None:
                points.reach()
                super().execute(*args)
                points.reach()

        connection.cursor_factory = Watched

    event.listen(engine, "connect", watch_statements)
    exchange: Callable[..., Any] = Transport.send

    def send(self: Transport, *args: Any, **kwargs: Any) -> Any:
        points.reach()
        answer = exchange(self, *args, **kwargs)
        points.reach()
        return answer

    Transport.send = send  # type: ignore[method-assign]
