"""The outbox: each state that a payment comes to is written with its event, once, and for each endpoint."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from app.services.events.receive import fold_again
from tests.databases import WAITING
from tests.factories import checkout, intent
from tests.webhooks import deliver, event, paid_intent

EVENTS = text("SELECT * FROM app_events ORDER BY number")
ADD_ENDPOINT = text(
    "INSERT INTO event_endpoints (id, app_id, url, types, disabled_at)"
    " VALUES (:id, :app_id, 'https://app.test', :types, CASE WHEN :disabled THEN now() END)"
)


def told(db: Connection) -> list[str]:
    return [row.type.removeprefix("payment.") for row in db.execute(EVENTS)]


def add_endpoint(
    db: Connection, app_id: str = "shop", types: list[str] | None = None, *, disabled: bool = False
) -> uuid.UUID:
    endpoint_id = uuid.uuid4()
    db.execute(ADD_ENDPOINT, {"id": endpoint_id, "app_id": app_id, "types": types, "disabled": disabled})
    return endpoint_id


@pytest.fixture
def created(client: FlaskClient) -> Any:
    return client.post("/payment-intent/create", json=intent()).json


class TestTell:
    def test_each_state_is_told_once_in_its_order_with_what_was_before(
        self, client: FlaskClient, created: Any, db: Connection
    ) -> None:
        intent_id = created["paymentIntentId"]
        refund = {"id": "re_1", "object": "refund", "amount": 500, "payment_intent": intent_id}
        for body in (
            event("payment_intent.succeeded", paid_intent(intent_id), created=10),
            event("payment_intent.payment_failed", paid_intent(intent_id), created=11),
            event("refund.created", refund | {"status": "succeeded"}, created=12),
            event("refund.failed", refund | {"status": "failed"}, created=13),
        ):
            for _ in range(2):
                assert deliver(client, body).status_code == 200

        rows = db.execute(EVENTS).all()
        assert told(db) == ["created", "succeeded", "refunded", "refund_failed"]
        assert [row.state_number for row in rows] == [1, 2, 3, 4]
        assert {(row.app_id, str(row.payment_id)) for row in rows} == {("shop", created["paymentId"])}
        shown = client.get(f"/status/{created['paymentId']}").json["payment"]
        assert rows[-1].data["payment"]["status"] == shown["status"] == "succeeded"
        assert rows[2].data["previous"]["status"] == "succeeded"

    def test_what_is_folded_at_once_is_one_state(self, client: FlaskClient, db: Connection) -> None:
        """Events that waited for their payment are folded together."""
        body = client.post("/checkout/create", json=checkout()).json
        refund = {"id": "re_1", "object": "refund", "amount": 4000, "status": "succeeded", "payment_intent": "pi_c"}
        deliver(client, event("payment_intent.succeeded", paid_intent("pi_c", amount_received=4000)))
        deliver(client, event("refund.created", refund))
        session = {"id": body["sessionId"], "object": "checkout.session", "payment_status": "unpaid"}
        deliver(client, event("checkout.session.completed", session | {"payment_intent": "pi_c"}))

        rows = [row for row in db.execute(EVENTS) if str(row.payment_id) == body["paymentId"]]
        assert [(row.type, row.state_number) for row in rows] == [
            ("payment.created", 1),
            ("payment.processing", 2),
            ("payment.succeeded", 3),
            ("payment.refunded", 3),
        ]

    def test_folding_again_tells_nothing(self, created: Any, db: Connection, services: Services) -> None:
        db.execute(text('UPDATE payments SET refund_statuses = \'{"re_x": "failed"}\''))
        fold_again(uuid.UUID(created["paymentId"]), services=services)
        assert told(db) == ["created"]

    def test_a_rejected_payment_is_not_told(self, client: FlaskClient, stand_ins: Any, db: Connection) -> None:
        stand_ins.fault("stripe", "status", method="POST", status=402)
        assert client.post("/payment-intent/create", json=intent()).status_code == 402
        assert told(db) == []

    def test_events_that_come_at_once_are_told_one_after_the_other(
        self, client: FlaskClient, created: Any, db: Connection
    ) -> None:
        """Fails when the state is counted without the payment's lock."""
        refunds = [
            event(
                "refund.created",
                {"id": f"re_{number}", "object": "refund", "amount": 10, "status": "succeeded"}
                | {"payment_intent": created["paymentIntentId"]},
            )
            for number in range(12)
        ]
        deliver(client, event("payment_intent.succeeded", paid_intent(created["paymentIntentId"])))
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda body: deliver(client.application.test_client(), body), refunds))

        assert {answer.status_code for answer in answers} == {200}
        rows = db.execute(EVENTS).all()
        assert [row.state_number for row in rows] == list(range(1, 15))
        amounts = [row.data["payment"]["amount_refunded_in_cents"] for row in rows[2:]]
        assert amounts == [10 * (number + 1) for number in range(12)]


class TestDeliveries:
    def test_there_is_one_for_each_endpoint_that_wants_it(self, client: FlaskClient, db: Connection) -> None:
        every = add_endpoint(db)
        paid_only = add_endpoint(db, types=["payment.succeeded", "payment.refunded"])
        add_endpoint(db, app_id="other")
        add_endpoint(db, disabled=True)
        created = client.post("/payment-intent/create", json=intent()).json
        deliver(client, event("payment_intent.succeeded", paid_intent(created["paymentIntentId"])))

        found = db.execute(
            text("SELECT endpoint_id, type, subject, state FROM deliveries JOIN app_events ON number = event_number")
        ).all()
        assert {(row.endpoint_id, row.type) for row in found} == {
            (every, "payment.created"),
            (every, "payment.succeeded"),
            (paid_only, "payment.succeeded"),
        }
        assert {(row.subject, row.state) for row in found} == {(created["paymentId"], "waiting")}

    def test_none_is_made_for_an_endpoint_that_is_deleted_meanwhile(
        self, client: FlaskClient, created: Any, db: Connection
    ) -> None:
        """Fails when the endpoint is not waited for: the webhook would fail on its foreign key."""
        add_endpoint(db)
        body = event("payment_intent.succeeded", paid_intent(created["paymentIntentId"]))
        with db.engine.connect() as deleting, ThreadPoolExecutor(1) as pool:
            deleting.exec_driver_sql("BEGIN; DELETE FROM event_endpoints")
            answer = pool.submit(deliver, client, body)
            while not db.execute(WAITING).scalar_one() and not answer.done():
                pass
            deleting.exec_driver_sql("COMMIT")
            assert answer.result().status_code == 200
        assert told(db) == ["created", "succeeded"]
        assert db.execute(text("SELECT count(*) FROM deliveries")).scalar_one() == 0
