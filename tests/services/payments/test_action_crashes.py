"""kill -9 in the middle of a refund, a capture or a cancel: it is done once, and the caller has the one answer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from app.services.kinds import KINDS
from app.services.operations.recovery import recover_operations
from tests.books import assert_balanced
from tests.crashing import dies_in
from tests.services.payments.test_actions import Actor, Json, state_of
from tests.soak import amount
from tests.stand_ins import StandIns

MOST_POINTS = 80
# Every point in `make soak`; between, each scene tries others.
STRIDE = amount(6, 1)


@dataclass(frozen=True)
class Scene:
    """A payment, what is done with it, and what it has become then: status, received, refunded, returned."""

    make: Callable[[Actor], Json]
    action: str
    body: Json
    state: tuple[Any, ...]


def held_checkout(actor: Actor) -> Json:
    return actor.checkout("pay", captureMethod="manual")


SCENES = {
    "refund": Scene(
        lambda actor: actor.intent("pay"), "refund", {"amountInCents": 700}, ("partially_refunded", 2000, 700, 700)
    ),
    "refund of a checkout": Scene(
        lambda actor: actor.checkout("pay"), "refund", {"reason": "duplicate"}, ("refunded", 4000, 4000, 4000)
    ),
    "capture": Scene(
        lambda actor: actor.intent("authorize", captureMethod="manual"),
        "capture",
        {"amountInCents": 1500},
        ("succeeded", 1500, 0, 0),
    ),
    "capture of a checkout": Scene(held_checkout, "capture", {}, ("succeeded", 4000, 0, 0)),
    "cancel": Scene(lambda actor: actor.intent(), "cancel", {"reason": "abandoned"}, ("canceled", 0, 0, 0)),
    "cancel of a session": Scene(lambda actor: actor.checkout(), "cancel", {}, ("expired", 0, 0, 0)),
    "cancel of a hold": Scene(held_checkout, "cancel", {}, ("canceled", 0, 0, 0)),
}


class TestCrash:
    def sweep(self, actor: Actor, dying: Flask, scene: Scene, first: int) -> Iterator[Json]:
        """Every point of an action, or every so many; yields the payments of which a process was killed."""
        for point in range(first % STRIDE, MOST_POINTS, STRIDE):
            payment = scene.make(actor)
            actor.hear()

            def act(child: FlaskClient, payment: Json = payment) -> Any:
                return Actor(child, actor.stand_ins).act(payment, scene.action, payment["paymentId"], **scene.body)

            if not dies_in(dying, point, act):
                assert point >= 16
                return
            yield payment
        pytest.fail("an action has more points than this")

    @pytest.mark.soak
    @pytest.mark.parametrize("name", SCENES)
    def test_it_is_done_once_wherever_a_process_is_killed(
        self,
        actor: Actor,
        dying: Flask,
        services: Services,
        stand_ins: StandIns,
        db: Connection,
        name: str,
    ) -> None:
        """Before and after each statement and each call; half of the callers ask again before recovery does its work.

        Fails when the accept or the ask isn't committed before Stripe is asked, when recovery asks under another key,
        and when the answer isn't folded with the step.
        """
        scene = SCENES[name]
        killed = list(self.sweep(actor, dying, scene, first=list(SCENES).index(name)))
        db.execute(text("UPDATE operations SET lease_until = now() WHERE step <> 'finished'"))
        answers = {number: self.ask(actor, scene, killed[number]) for number in range(0, len(killed), 2)}
        list(recover_operations(services, KINDS, command="flask recover", at_once=True))
        assert_balanced(db, stand_ins)

        for number, payment in enumerate(killed):
            answer = self.ask(actor, scene, payment)
            assert (answer.status_code, answer.json) == (200, answers.get(number, answer).json)
        before_webhooks = [self.shown(actor, payment) for payment in killed]
        actor.hear()
        assert_balanced(db, stand_ins)
        assert before_webhooks == [self.shown(actor, payment) for payment in killed]
        assert {state for state, _ in before_webhooks} == {scene.state}
        assert {states for _, states in before_webhooks} == {("done",)}
        assert len(killed) >= 16 // STRIDE

    def ask(self, actor: Actor, scene: Scene, payment: Json) -> Any:
        return actor.act(payment, scene.action, payment["paymentId"], **scene.body)

    def shown(self, actor: Actor, payment: Json) -> tuple[Any, ...]:
        """What the payment has become, and what became of the actions."""
        shown = actor.status(payment)
        return state_of(shown), tuple(action["state"] for action in shown["actions"])
