"""Comparing the books: what the stand-ins executed with what the database says."""

from collections import Counter, defaultdict
from typing import Any

from sqlalchemy import Connection, text

from tests.stand_ins import StandIns

KIND_OF_OBJECT = {"checkout.session": "stripe_checkout_session_id", "payment_intent": "stripe_payment_intent_id"}


def made_by_us(stand_ins: StandIns) -> dict[str, list[dict[str, Any]]]:
    """Stripe's sessions and intents by the payment that their metadata names; an intent of a session isn't ours."""
    made = defaultdict(list)
    for account in stand_ins.state()["accounts"].values():
        sessions = account["objects"].get("checkout.session", [])
        of_sessions = {session["payment_intent"] for session in sessions}
        intents = [i for i in account["objects"].get("payment_intent", []) if i["id"] not in of_sessions]
        for stripe_object in (*sessions, *intents):
            if payment_id := stripe_object["metadata"].get("paymentId"):
                made[payment_id].append(stripe_object)
    return made


def assert_balanced(db: Connection, stand_ins: StandIns) -> None:
    """At most one Stripe object a payment, known to its row; its cost once; every run of ours ended."""
    payments = {str(row.id): row for row in db.execute(text("SELECT * FROM payments"))}
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
    expected: Counter[str] = Counter(row.run_id for row in payments.values() if row.status != "rejected" and row.run_id)
    found = Counter({run_id: len(run["costs"]) for run_id, run in runs.items() if run["costs"]})
    assert found == expected
    for row in payments.values():
        if row.run_id in ours:
            assert ours[row.run_id]["status"] == ("failed" if row.status == "rejected" else "completed")
