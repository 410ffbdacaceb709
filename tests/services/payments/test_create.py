"""The steps under concurrency, over HTTP to two processes."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests.factories import checkout, intent
from tests.stand_ins import StandIns
from tests.web import WebProcess

THREADS = 50
EFFECTS = {"/checkout/create": "checkout.session.create", "/payment-intent/create": "payment_intent.create"}


class TestOneIdempotencyKey:
    @pytest.mark.parametrize(("path", "body"), [("/checkout/create", checkout()), ("/payment-intent/create", intent())])
    def test_it_makes_one_object_one_run_and_one_cost_for_50_threads_on_two_processes(
        self, web: WebProcess, stand_ins: StandIns, db: Connection, path: str, body: dict[str, Any]
    ) -> None:
        """Fails when `ACCEPT` inserts without ON CONFLICT, or `_continue` doesn't ask whether the lease lapsed."""
        stand_ins.fault("stripe", "delay", seconds=0.3)

        with ThreadPoolExecutor(THREADS) as threads:
            answers = list(threads.map(lambda _: web.post_until_answered(path, body, "once"), range(THREADS)))

        assert {answer.status_code for answer in answers} == {200}
        assert all(answer.json() == answers[0].json() for answer in answers)
        assert sorted(stand_ins.effects()) == sorted(["run.create", EFFECTS[path], "costs.add", "run.update"])
        assert db.execute(text("SELECT count(*), min(step) FROM operations")).one() == (1, "finished")

    def test_it_never_refuses_24_creates_at_a_time(self, web: WebProcess, stand_ins: StandIns) -> None:
        stand_ins.fault("stripe", "delay", seconds=0.3, times=0)

        with ThreadPoolExecutor(24) as threads:
            answers = list(threads.map(lambda _: web.post("/payment-intent/create", intent()).status_code, range(48)))

        assert answers == [200] * 48
