"""A process that kills itself: a request in a forked child, with SIGKILL at a chosen point."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg2.extensions
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event

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


def dies_in(app: Flask, die_at: int, work: Callable[[FlaskClient], Any]) -> bool:
    """Work in a forked child that is killed at a point; False when the work ended before it got there.

    :param app: one that the parent never uses, so that they share no connection
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
        return os.WIFSIGNALED(status)
    try:
        _watch(app, Points(die_at))
        client = app.test_client()
        client.environ_base["HTTP_X_API_KEY"] = API_KEY
        os._exit(0 if work(client).status_code == 200 else 1)
    finally:
        os._exit(1)


def _watch(app: Flask, points: Points) -> None:
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
