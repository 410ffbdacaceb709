"""Recovery of refunds, captures and cancels: by Stripe's answer again, by its list, or by the state of the object."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, text

from app.services import Services
from app.services.upstreams.stripe import Stripe
from tests.books import assert_balanced, executed_actions
from tests.services.payments.conftest import Recovering
from tests.services.payments.test_action_crashes import SCENES, Scene
from tests.services.payments.test_actions import Actor, Json, state_of
from tests.soak import amount

PATHS = {"refund": "/v1/refunds$", "capture": "/capture$", "cancel": "/cancel$|/expire$"}
KEY = "sk_test_sandbox_shop"
WAYS_TO_LOSE_AN_ANSWER = ("reset", "hang", "half_body")
each_action = pytest.mark.parametrize(
    "scene", [pytest.param(SCENES[name], id=name) for name in ("refund", "capture", "cancel", "cancel of a session")]
)


class Recovery(Recovering):
    """An action whose caller has no answer, and what becomes of it."""

    def begin(self, scene: Scene) -> Json:
        payment = scene.make(self.actor)
        self.actor.hear()
        return payment

    def break_stripe(self, scene: Scene, kind: str, **options: Any) -> None:
        self.stand_ins.fault("stripe", kind, method="POST", path=PATHS[scene.action], **options)

    def ask(self, scene: Scene, payment: Json) -> Any:
        return self.actor.act(payment, scene.action, **scene.body)

    def lose(self, scene: Scene, *, executed: bool, kind: str = "reset", **options: Any) -> Json:
        """Ask, and hear nothing."""
        payment = self.begin(scene)
        self.break_stripe(scene, kind, executed=executed, **options)
        assert self.ask(scene, payment).status_code in (502, 503, 504)
        return payment

    def executed(self, scene: Scene) -> int:
        """How many of such actions Stripe has executed."""
        return sum(kinds.count(scene.action) for kinds in executed_actions(self.stand_ins).values())

    def of_operation(self, column: str) -> Any:
        return self.db.execute(text(f"SELECT {column} FROM operations WHERE id <> payment_id")).scalar_one()

    def action(self, payment: Json) -> tuple[str, str | None]:
        """What is shown of the payment's only action."""
        (action,) = self.actor.status(payment)["actions"]
        return action["state"], action["error"]

    def assert_done(self, scene: Scene, payment: Json) -> None:
        """Once, and shown before any webhook; the caller's retry has the answer of it."""
        assert self.action(payment) == ("done", None)
        assert self.executed(scene) == 1
        assert state_of(self.actor.status(payment)) == scene.state
        first, again = self.ask(scene, payment), self.ask(scene, payment)
        assert (first.status_code, first.json) == (200, again.json)
        assert_balanced(self.db, self.stand_ins)
        self.actor.hear()
        assert state_of(self.actor.status(payment)) == scene.state
        assert self.executed(scene) == 1


@pytest.fixture
def recovery(actor: Actor, services: Services, db: Connection) -> Recovery:
    return Recovery(actor, services, db)


class TestAccepted:
    @each_action
    def test_it_abandons_what_stripe_was_never_asked_and_a_retry_restarts_the_row(
        self, recovery: Recovery, scene: Scene
    ) -> None:
        payment = recovery.begin(scene)
        recovery.break_stripe(scene, "status", status=429)
        assert recovery.ask(scene, payment).status_code == 429
        assert recovery.of_operation("step") == "accepted"

        assert recovery.recover() == ["abandoned"]
        assert recovery.action(payment)[0] == "refused"
        assert recovery.executed(scene) == 0
        assert_balanced(recovery.db, recovery.stand_ins)
        assert recovery.ask(scene, payment).status_code == 200
        recovery.assert_done(scene, payment)


class TestAsked:
    @pytest.mark.soak
    @each_action
    @pytest.mark.parametrize("kind", WAYS_TO_LOSE_AN_ANSWER[: amount(1, 3)])
    @pytest.mark.parametrize("executed", [True, False])
    def test_it_asks_again_under_the_same_key(
        self, recovery: Recovery, scene: Scene, kind: str, executed: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when recovery asks under another key: Stripe would do it twice."""
        with monkeypatch.context() as patch:
            if kind == "hang":
                patch.setattr(recovery.services.stripe, "_timeout_seconds", 0.2)
            payment = recovery.lose(scene, kind=kind, executed=executed)

        assert recovery.recover() == ["taken"]
        recovery.assert_done(scene, payment)

    @each_action
    @pytest.mark.parametrize("executed", [True, False])
    def test_it_looks_for_what_stripe_did_where_a_failure_is_given_again(
        self, recovery: Recovery, scene: Scene, executed: bool
    ) -> None:
        """Stripe keeps a 5xx for the key: what was not executed is asked anew, under another key, once."""
        payment = recovery.lose(scene, kind="status", status=500, executed=executed)
        recovery.break_stripe(scene, "status", status=500, headers={"Idempotent-Replayed": "true"})

        assert recovery.recover() == ["taken"]
        recovery.assert_done(scene, payment)
        assert recovery.of_operation("attempt") == (1 if executed else 2)

    @each_action
    def test_it_finds_what_was_done_a_day_ago(self, recovery: Recovery, scene: Scene) -> None:
        """Asking again would do it twice: Stripe has forgotten the key."""
        payment = recovery.lose(scene, executed=True)
        recovery.pass_a_day()

        assert recovery.recover() == ["taken"]
        recovery.assert_done(scene, payment)

    @each_action
    def test_it_ends_what_was_not_done_a_day_ago(self, recovery: Recovery, scene: Scene) -> None:
        """Nobody waits for it any more; a caller who still wants it restarts the row."""
        # Stripe's clock stands still: a session would expire by itself, which is what was wanted.
        payment = recovery.lose(scene, executed=False)
        before = state_of(recovery.actor.status(payment))
        recovery.db.execute(text("UPDATE operations SET asked_at = asked_at - interval '24 hours'"))

        assert recovery.recover() == ["rejected"]
        assert (recovery.action(payment)[0], recovery.executed(scene)) == ("refused", 0)
        assert state_of(recovery.actor.status(payment)) == before
        assert_balanced(recovery.db, recovery.stand_ins)
        assert recovery.ask(scene, payment).status_code == 200
        recovery.assert_done(scene, payment)

    @pytest.mark.parametrize("after_a_day", [True, False])
    def test_it_takes_no_refund_but_its_own(self, recovery: Recovery, after_a_day: bool) -> None:
        """Others of the same amount, by the dashboard and by another request, are there; it is told by its metadata."""
        scene = SCENES["refund"]
        payment = recovery.lose(scene, executed=True)
        recovery.stand_ins.control(f"charges/{payment['paymentIntentId']}/refund", amount=700)
        other = recovery.actor.act(payment, "refund", "other", amountInCents=600).json["refundId"]
        if after_a_day:
            recovery.pass_a_day()

        assert recovery.recover() == ["taken"]
        refund_id = recovery.ask(scene, payment).json["refundId"]
        assert refund_id != other
        assert_balanced(recovery.db, recovery.stand_ins)
        assert recovery.executed(scene) == 2

    def test_it_asks_for_the_refunds_of_its_intent_only(
        self, recovery: Recovery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A busy account's other refunds would fill pages. Fails when the list isn't filtered."""
        asked: list[Any] = []
        list_as_shown = Stripe.list_as_shown

        def remember(stripe: Stripe, resource: Any, app_id: str, filters: Any, **options: Any) -> Iterator[object]:
            asked.append(filters)
            return list_as_shown(stripe, resource, app_id, filters, **options)

        payment = recovery.lose(SCENES["refund"], executed=True)
        recovery.pass_a_day()
        monkeypatch.setattr(Stripe, "list_as_shown", remember)

        assert recovery.recover() == ["taken"]
        assert [filters["payment_intent"] for filters in asked] == [payment["paymentIntentId"]]

    def test_a_capture_that_others_made_of_another_amount_is_not_its_own(self, recovery: Recovery) -> None:
        payment = recovery.lose(SCENES["capture"], executed=False)
        recovery.stand_ins.control(f"intents/{payment['paymentIntentId']}/capture", amount=1200)

        assert recovery.recover() == ["rejected"]
        assert recovery.action(payment)[0] == "refused"
        recovery.actor.hear()
        assert state_of(recovery.actor.status(payment)) == ("succeeded", 1200, 0, 0)
        assert_balanced(recovery.db, recovery.stand_ins)

    @pytest.mark.parametrize("after_a_day", [True, False])
    def test_a_cancel_that_came_too_late_is_refused(self, recovery: Recovery, after_a_day: bool) -> None:
        payment = recovery.lose(SCENES["cancel"], executed=False)
        recovery.stand_ins.control(f"intents/{payment['paymentIntentId']}/pay")
        if after_a_day:
            recovery.pass_a_day()

        assert recovery.recover() == ["rejected"]
        recovery.actor.hear()
        assert state_of(recovery.actor.status(payment)) == ("succeeded", 2000, 0, 0)
        assert_balanced(recovery.db, recovery.stand_ins)

    @pytest.mark.parametrize("name", ["capture", "cancel", "cancel of a session"])
    def test_what_others_brought_to_where_it_should_be_is_done(self, recovery: Recovery, name: str) -> None:
        scene = SCENES[name]
        payment = recovery.lose(scene, executed=False)
        self.do_in_the_dashboard(recovery, scene, payment)

        assert recovery.recover() == ["taken"]
        assert recovery.action(payment) == ("done", None)
        assert state_of(recovery.actor.status(payment)) == scene.state
        assert_balanced(recovery.db, recovery.stand_ins)

    def do_in_the_dashboard(self, recovery: Recovery, scene: Scene, payment: Json) -> None:
        if "sessionId" in payment:
            recovery.stand_ins.control(f"checkout/{payment['sessionId']}/expire")
        else:
            captured = {"amount": scene.body["amountInCents"]} if scene.action == "capture" else {}
            recovery.stand_ins.control(f"intents/{payment['paymentIntentId']}/{scene.action}", **captured)

    def test_a_balance_that_does_not_suffice_is_tried_again_by_the_caller(self, recovery: Recovery) -> None:
        scene = SCENES["refund"]
        payment = recovery.lose(scene, executed=False)
        error = {"code": "balance_insufficient", "message": "Insufficient funds.", "type": "invalid_request_error"}
        recovery.break_stripe(scene, "json", status=400, body={"error": error})

        assert recovery.recover() == ["rejected"]
        assert recovery.action(payment) == ("refused", "Insufficient funds.")
        assert recovery.ask(scene, payment).status_code == 200
        recovery.assert_done(scene, payment)


class TestStuck:
    @each_action
    @pytest.mark.parametrize("after_a_day", [True, False])
    def test_it_is_stuck_while_the_app_has_no_key_and_walks_on_when_it_has(
        self, recovery: Recovery, scene: Scene, after_a_day: bool
    ) -> None:
        payment = recovery.lose(scene, executed=True)
        if after_a_day:
            recovery.pass_a_day()
        recovery.set_key(None)

        assert recovery.recover() == ["stuck"]
        assert recovery.action(payment) == ("stuck", "No Stripe key configured for appId 'shop'")

        recovery.set_key(KEY)
        assert recovery.recover() == ["taken"]
        recovery.assert_done(scene, payment)

    @pytest.mark.parametrize("name", ["refund", "capture"])
    def test_it_is_stuck_when_stripe_knows_the_key_with_other_parameters(self, recovery: Recovery, name: str) -> None:
        payment = recovery.lose(SCENES[name], executed=True)
        recovery.db.execute(
            text("UPDATE operations SET stripe_params = convert_to('{\"amount\": 7}', 'UTF8') WHERE id <> payment_id")
        )

        assert recovery.recover() == ["stuck"]
        assert (recovery.action(payment)[0], recovery.executed(SCENES[name])) == ("stuck", 1)

    @each_action
    def test_a_key_of_another_account_does_nothing(self, recovery: Recovery, scene: Scene) -> None:
        """Stripe knows no such object there, and says so: that is the answer."""
        payment = recovery.lose(scene, executed=False)
        recovery.set_key("sk_test_sandbox_elsewhere")

        assert recovery.recover() == ["rejected"]
        state, error = recovery.action(payment)
        assert (state, str(error)[:7], recovery.executed(scene)) == ("refused", "No such", 0)
        assert_balanced(recovery.db, recovery.stand_ins)

    @each_action
    def test_a_key_of_another_account_tells_nothing_of_a_day_ago(self, recovery: Recovery, scene: Scene) -> None:
        """Whether it was done can only be seen with the key of then: until that is back, it is stuck.

        Fails when what isn't found in the wrong account is abandoned: a retry would do it a second time.
        """
        payment = recovery.lose(scene, executed=True)
        recovery.pass_a_day()
        recovery.set_key("sk_test_sandbox_elsewhere")

        assert recovery.recover() == ["stuck"]
        state, error = recovery.action(payment)
        assert (state, str(error)[:7]) == ("stuck", "No such")

        recovery.set_key(KEY)
        assert recovery.recover() == ["taken"]
        recovery.assert_done(scene, payment)


class TestLease:
    @contextmanager
    def handed_over(self, recovery: Recovery, monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
        """When Stripe has answered, another process has the operation."""
        called = getattr(Stripe, name)

        def call(*arguments: Any, **options: Any) -> Any:
            made = called(*arguments, **options)
            query = "UPDATE operations SET lease_token = :token WHERE id <> payment_id"
            recovery.db.execute(text(query), {"token": uuid.uuid4()})
            return made

        with monkeypatch.context() as patch:
            patch.setattr(Stripe, name, call)
            yield

    @each_action
    def test_whose_lease_was_lost_writes_nothing(
        self, recovery: Recovery, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither the step nor the fact. Fails when the UPDATE of the step doesn't ask for the lease's token."""
        payment = recovery.begin(scene)
        before = state_of(recovery.actor.status(payment))
        with self.handed_over(recovery, monkeypatch, "create" if scene.action == "refund" else "act"):
            answer = recovery.ask(scene, payment)

        assert (answer.status_code, answer.json["code"]) == (503, "payment_handed_over")
        assert recovery.action(payment) == ("pending", None)
        assert state_of(recovery.actor.status(payment)) == before
        assert recovery.recover() == ["taken"]
        recovery.assert_done(scene, payment)

    @each_action
    def test_recovery_that_lost_its_lease_writes_nothing(
        self, recovery: Recovery, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        payment = recovery.lose(scene, executed=True)
        recovery.pass_a_day()
        with self.handed_over(recovery, monkeypatch, "find" if scene.action == "refund" else "retrieve"):
            assert recovery.recover() == ["put off"]

        assert recovery.action(payment)[0] == "pending"
        assert recovery.recover() == ["taken"]
        recovery.assert_done(scene, payment)
