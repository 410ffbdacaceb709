"""`flask recover`: what it prints, and when it fails."""

import json
from collections.abc import Callable

from sqlalchemy import Connection, text

from app.services import Services
from tests.cli import Run
from tests.stand_ins import StandIns

STEP = text("SELECT step FROM operations WHERE id = :id")


class TestRecover:
    def test_it_walks_all_that_nobody_holds_to_their_end(
        self, flask: Run, leave_asked: Callable[..., list[str]], db: Connection
    ) -> None:
        """Also what the worker has put off until later."""
        left = leave_asked(2)
        db.execute(text("UPDATE operations SET recover_at = now() + interval '1 hour'"))

        result = flask("recover")

        *done, summary = result.stdout.splitlines()
        assert sorted(done) == [f"taken operation={operation_id}" for operation_id in left]
        assert summary == "2 taken"
        assert result.exit_code == 0
        assert [db.execute(STEP, {"id": operation_id}).scalar_one() for operation_id in left] == ["finished"] * 2

    def test_it_ends_runs_that_no_operation_knows(self, flask: Run, orphan_run: str, stand_ins: StandIns) -> None:
        assert flask("recover").stdout == f"ended orphan run run={orphan_run}\n1 ended orphan run\n"
        assert stand_ins.runs()[orphan_run]["status"] == "failed"

    def test_it_looks_at_one_payment_and_nothing_else_with_id(
        self, flask: Run, leave_asked: Callable[..., list[str]], orphan_run: str, db: Connection, stand_ins: StandIns
    ) -> None:
        one, other = leave_asked(2)

        assert flask("recover", "--id", one).stdout == f"taken operation={one}\n1 taken\n"
        assert db.execute(STEP, {"id": other}).scalar_one() == "asked"
        assert stand_ins.runs()[orphan_run]["status"] == "running"

    def test_it_fails_when_a_payment_is_stuck(
        self, flask: Run, leave_asked: Callable[..., list[str]], services: Services, stand_ins: StandIns
    ) -> None:
        (left,) = leave_asked()
        stand_ins.control("keys", appId="shop", key=None)
        services.keys._keys.clear()

        result = flask("recover")

        reason = "No Stripe key configured for appId 'shop'"
        assert result.stdout == f"stuck operation={left} reason={reason}\n1 stuck\n"
        assert result.exit_code == 1

    def test_it_does_not_fail_when_a_payment_is_only_put_off(
        self, flask: Run, leave_asked: Callable[..., list[str]], stand_ins: StandIns
    ) -> None:
        (left,) = leave_asked()
        stand_ins.fault("stripe", "reset", method="POST", times=0)

        result = flask("recover")

        assert result.stdout == f"put off operation={left} reason=Stripe the connection broke\n1 put off\n"
        assert result.exit_code == 0

    def test_it_says_that_there_is_nothing(self, flask: Run) -> None:
        result = flask("recover")
        assert (result.stdout, result.exit_code) == ("nothing to recover\n", 0)

    def test_it_prints_json_for_programs(self, flask: Run, leave_asked: Callable[..., list[str]]) -> None:
        (left,) = leave_asked()

        assert [json.loads(line) for line in flask("recover", "--json").stdout.splitlines()] == [
            {"kind": "taken", "operation": left},
            {"kind": "summary", "taken": 1},
        ]
