"""kill -9 in the middle of a charge: the customer is charged once, and no invoice is left that anybody could pay."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from app.services.kinds import KINDS
from app.services.operations.recovery import recover_operations
from tests.books import assert_balanced, end_orphan_runs_at_once
from tests.crashing import dies_in
from tests.services.payments.conftest import Json, Payer, state_of
from tests.soak import amount
from tests.stand_ins import StandIns

MOST_POINTS = 90
# Every point in `make soak`; between, each scene tries others.
STRIDE = amount(6, 1)


@dataclass(frozen=True)
class Scene:
    """A charge of a method that behaves so, the answer, and what becomes of it: status, received; its invoices."""

    behaves: str
    status_code: int
    state: tuple[str, int]
    invoices: set[str] = field(default_factory=set)

    @property
    def more(self) -> Json:
        return {"invoice": True, "description": "Credit"} if self.invoices else {}


SCENES = {
    "charge": Scene("visa", 200, ("succeeded", 2000)),
    "declined": Scene("chargeCustomerFail", 402, ("failed", 0)),
    "with an invoice": Scene("visa", 200, ("succeeded", 2000), {"paid"}),
    "declined with an invoice": Scene("chargeCustomerFail", 402, ("canceled", 0), {"void"}),
}


class TestCrash:
    def sweep(self, payer: Payer, dying: Flask, scene: Scene, first: int) -> Iterator[str]:
        """Every point of a charge, or every so many; yields the keys under which a process was killed."""
        for point in range(first % STRIDE, MOST_POINTS, STRIDE):
            key = f"charge-{point}"

            def charge(child: FlaskClient, key: str = key) -> Any:
                answer = Payer(child, payer.stand_ins).charge(key, **scene.more)
                return SimpleNamespace(status_code=200 if answer.status_code == scene.status_code else 500)

            if not dies_in(dying, point, charge):
                assert point >= 16
                return
            yield key
        pytest.fail("a charge has more points than this")

    @pytest.mark.soak
    @pytest.mark.parametrize("name", SCENES)
    def test_it_is_charged_once_wherever_a_process_is_killed(
        self, payer: Payer, dying: Flask, services: Services, stand_ins: StandIns, db: Connection, name: str
    ) -> None:
        """Before and after each statement and each call; half of the callers ask again before recovery does its work.

        Fails when a call of a charge has no idempotency key or one of its own for each try, when what a refusal has
        made isn't taken with the step, and when a declined invoice isn't voided before that.
        """
        scene = SCENES[name]
        payer.save(behaves=scene.behaves)
        killed = list(self.sweep(payer, dying, scene, first=list(SCENES).index(name)))
        db.execute(text("UPDATE operations SET lease_until = now() WHERE step <> 'finished'"))
        answers = {key: payer.charge(key, **scene.more) for key in killed[::2]}
        list(recover_operations(services, KINDS, command="flask recover", at_once=True))
        end_orphan_runs_at_once(services, db)
        assert_balanced(db, stand_ins)

        payments = []
        for key in killed:
            answer = payer.charge(key, **scene.more)
            assert (answer.status_code, told(answer)) == (scene.status_code, told(answers.get(key, answer)))
            payments.append(answer.json if answer.status_code == 200 else answer.json["details"])
        payer.hear()
        assert_balanced(db, stand_ins)
        for payment in payments:
            shown = payer.status(payment)
            assert state_of(shown)[:2] == scene.state
            assert len(shown["events"]["successes"]) + len(shown["events"]["failures"]) == 1
        assert set(payer.invoices()) == scene.invoices
        taken = db.execute(text("SELECT count(*) FROM operations WHERE answer_status IS NOT NULL")).scalar_one()
        assert len(payer.invoices()) == (taken if scene.invoices else 0)
        assert len(killed) >= 16 // STRIDE


def told(answer: Any) -> Json:
    return {name: value for name, value in answer.json.items() if name != "requestId"}
