"""SIGTERM: what was accepted is answered, and nothing is left behind."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from flask import Flask
from sqlalchemy import Connection

from tests.books import assert_balanced
from tests.factories import intent
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import WebProcess

CREATES = 8


def test_what_was_accepted_is_answered(
    app: Flask, environment: dict[str, str], stand_ins: StandIns, db: Connection
) -> None:
    """Fails when gunicorn's graceful timeout is shorter than a request may take."""
    stand_ins.fault("stripe", "delay", method="POST", seconds=2, executed=True, times=0)
    with WebProcess.start(environment | {"WEB_CONCURRENCY": "2"}) as web, ThreadPoolExecutor(CREATES) as threads:
        creates = [threads.submit(web.post, "/payment-intent/create", intent()) for _ in range(CREATES)]
        wait_until(lambda: stand_ins.effects().count("run.create") == CREATES, seconds=10, what="the creates")
        web.process.terminate()

        assert [create.result(30).status_code for create in creates] == [200] * CREATES, web.printed()
        assert web.process.wait(10) == 0
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{web.url}/health", timeout=5)
    assert_balanced(db, stand_ins)
