"""Comparing the books: what the stand-ins executed with what the database says."""

from collections import Counter, defaultdict
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from sqlalchemy import Connection, text

from app.services import Services
from app.services.kinds import KINDS
from app.services.operations.recovery import recover_operations
from app.services.payments.orphan_runs import end_orphan_runs
from tests.stand_ins import StandIns
from tests.waiting import wait_until

KIND_OF_OBJECT = {"checkout.session": "stripe_checkout_session_id", "payment_intent": "stripe_payment_intent_id"}
# What the stand-in calls the execution of an action.
EFFECTS = {
    "refund.create": "refund",
    "payment_intent.capture": "capture",
    "payment_intent.cancel": "cancel",
    "checkout.session.expire": "cancel",
}
ENDED = ("canceled", "expired")


def made_by_us(stand_ins: StandIns) -> dict[str, list[dict[str, Any]]]:
    """Stripe's sessions and intents by the payment that their metadata names; an intent of a session isn't ours."""
    made = defaultdict(list)
    for account in stand_ins.state()["accounts"].values():
        for kind in ("checkout.session", "payment_intent"):
            for stripe_object in account["objects"].get(kind, []):
                payment_id = stripe_object["metadata"].get("paymentId")
                of_session = kind == "payment_intent" and any(m["object"] != kind for m in made[payment_id])
                if payment_id and not of_session:
                    made[payment_id].append(stripe_object)
    made.pop(None, None)
    return made


def assert_balanced(db: Connection, stand_ins: StandIns) -> None:
    """At most one Stripe object a payment, known to its row; its cost once; each run ended; each action once."""
    payments = {
        str(row.id): row
        for row in db.execute(text("SELECT payments.*, step, answer_status FROM payments JOIN operations USING (id)"))
    }
    made = made_by_us(stand_ins)
    runs = stand_ins.runs()
    assert {payment_id for payment_id, row in payments.items() if row.step != "finished"} == set()
    for payment_id, objects in made.items():
        assert len(objects) == 1, objects
        column = KIND_OF_OBJECT[objects[0]["object"]]
        assert getattr(payments[payment_id], column) == objects[0]["id"]
    for payment_id, row in payments.items():
        assert (payment_id in made) == (row.status != "rejected"), (payment_id, row.status)
    ours = {run_id: run for run_id, run in runs.items() if run["serviceName"] == "stripe-service"}
    assert {run_id: run["status"] for run_id, run in ours.items() if run["status"] == "running"} == {}
    done = [row for row in payments.values() if row.answer_status == 200]
    expected: Counter[str] = Counter(row.run_id for row in done if row.run_id)
    found = Counter({run_id: len(run["costs"]) for run_id, run in runs.items() if run["costs"]})
    assert found == expected
    for row in payments.values():
        if row.run_id in ours:
            assert ours[row.run_id]["status"] == ("completed" if row in done else "failed")
    assert_actions_balanced(db, stand_ins)


def assert_actions_balanced(db: Connection, stand_ins: StandIns) -> None:
    """Each refund, capture and cancel that was answered is done at Stripe, once; what was not answered isn't done.

    A capture or a cancel is also done where others had brought the object to the state that was wanted.
    """
    actions = db.execute(text("SELECT * FROM operations WHERE kind IN ('refund', 'capture', 'cancel')")).all()
    assert [action.id for action in actions if action.step != "finished"] == []
    done = {str(action.id): action for action in actions if action.answer_status == 200}
    executed = executed_actions(stand_ins)
    doubled = [operation_id for operation_id, kinds in executed.items() if len(kinds) != 1]
    assert (doubled, executed.keys() - done.keys()) == ([], set())
    assert {operation_id: [done[operation_id].kind] for operation_id in executed} == executed
    answered = {key: action.answer["refund_id"] for key, action in done.items() if action.kind == "refund"}
    assert refunds_by_us(stand_ins) == {operation_id: [refund_id] for operation_id, refund_id in answered.items()}
    objects = {each["id"]: each for kind in KIND_OF_OBJECT for each in objects_of(stand_ins, kind)}
    for action in done.values():
        shown = objects.get(action.request.get("session_id") or action.request["payment_intent_id"], {})
        if action.kind == "capture":
            captured = (shown["status"], shown["amount_received"])
            assert captured == ("succeeded", action.answer["amount_received_in_cents"])
        elif action.kind == "cancel":
            assert shown["status"] in ENDED


def objects_of(stand_ins: StandIns, kind: str) -> list[dict[str, Any]]:
    """Stripe's objects of a kind, in all accounts."""
    return [each for account in stand_ins.state()["accounts"].values() for each in account["objects"].get(kind, [])]


def refunds_by_us(stand_ins: StandIns) -> dict[str, list[str]]:
    """The ids of Stripe's refunds by the operation that their metadata names."""
    made = defaultdict(list)
    for refund in objects_of(stand_ins, "refund"):
        if operation_id := (refund["metadata"] or {}).get("operationId"):
            made[operation_id].append(refund["id"])
    return dict(made)


def executed_actions(stand_ins: StandIns) -> dict[str, list[str]]:
    """The kinds of what Stripe executed of each operation about a payment, by the ledger."""
    executed = defaultdict(list)
    for entry in stand_ins.ledger("stripe"):
        if entry["effect"] in EFFECTS and not entry["replayed"] and entry["idempotencyKey"]:
            executed[entry["idempotencyKey"].rpartition(":")[0]].append(EFFECTS[entry["effect"]])
    return dict(executed)


def end_orphan_runs_at_once(services: Services, db: Connection) -> list[str]:
    """End orphan runs as if more than a lease had passed since the last call of anybody."""
    db.execute(text("UPDATE operations SET run_search_until = now() WHERE run_search_until IS NOT NULL"))
    # The clock of the stand-ins may have been moved: runs are looked for within 40 days.
    anywhere = timedelta(days=40)
    at_once = {"RUNS_CLOCK_SKEW": anywhere, "lease_of": lambda _: -anywhere}
    with patch.multiple("app.services.payments.orphan_runs", **at_once):
        return list(end_orphan_runs(services, command="flask recover"))


def recover_until_quiet(services: Services, db: Connection, *, seconds: float = 60) -> None:
    """Recover, as a worker does for ever, until nothing is left to do."""
    left = text("SELECT count(*) FROM operations WHERE step <> 'finished' OR run_search_until IS NOT NULL")

    def is_quiet() -> bool:
        list(recover_operations(services, KINDS, command="flask recover", at_once=True))
        list(end_orphan_runs(services, command="flask recover"))
        return db.execute(left).scalar_one() == 0

    wait_until(is_quiet, seconds=seconds, what="recovery")
