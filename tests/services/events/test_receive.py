"""Joining events to payments, whichever becomes known first."""

import itertools
import json
import random
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.models import PaymentKind
from app.services import Services
from app.services.events import receive as events
from app.services.events.receive import fold_again, receive_event
from app.services.events.stripe_event import Event
from tests.bench.plans import explain
from tests.factories import checkout, intent
from tests.lives import AMOUNT, CHARGE, INTENT, INVOICE, SESSION, SUBSCRIPTION, Life
from tests.soak import amount
from tests.stand_ins import StandIns
from tests.web import WebProcess
from tests.webhooks import deliver, event, paid_intent, sign


def status_of(client: FlaskClient, payment_id: str) -> Any:
    return client.get(f"/status/{payment_id}").json


def told(db: Connection, column: str, condition: str = "true") -> list[str]:
    """What stands in a column of the events that Stripe told, without what it answered."""
    query = f"SELECT {column} FROM stripe_events WHERE id NOT LIKE 'op_%' AND {condition}"
    return list(db.execute(text(query)).scalars())


def refund_of(intent_id: str, amount: int = 500) -> dict[str, Any]:
    return {"id": "re_1", "object": "refund", "amount": amount, "status": "succeeded", "payment_intent": intent_id}


class TestFinding:
    def test_it_folds_what_is_about_an_object_that_a_payment_knows(self, client: FlaskClient) -> None:
        created = client.post("/payment-intent/create", json=intent()).json
        deliver(client, event("payment_intent.succeeded", paid_intent(created["paymentIntentId"])))
        deliver(client, event("refund.created", refund_of(created["paymentIntentId"])))

        answer = status_of(client, created["paymentId"])
        assert answer["payment"]["status"] == "partially_refunded"
        assert answer["payment"]["amountReceivedInCents"] == 2000
        assert answer["payment"]["amountRefundedInCents"] == 500
        assert [refund["stripeRefundId"] for refund in answer["events"]["refunds"]] == ["re_1"]

    def test_it_is_not_paid_by_a_one_cent_intent_that_copies_its_metadata(self, client: FlaskClient) -> None:
        """Fails when the fold takes an intent for the payment's own though no id says so."""
        for path, body in (("/payment-intent/create", intent()), ("/checkout/create", checkout())):
            created = client.post(path, json=body).json
            before = status_of(client, created["paymentId"])
            copied = {"paymentId": created["paymentId"], "appId": "shop"}
            cheap = paid_intent("pi_cheap", amount=1, amount_received=1, currency="usd", metadata=copied)
            for kind in ("created", "succeeded"):
                assert deliver(client, event(f"payment_intent.{kind}", cheap)).status_code == 200

            assert status_of(client, created["paymentId"]) == before

    def test_it_is_not_paid_by_an_intent_of_the_right_amount_that_copies_its_metadata(
        self, client: FlaskClient
    ) -> None:
        created = client.post("/checkout/create", json=checkout()).json
        copied = {"paymentId": created["paymentId"]}
        twin = paid_intent("pi_twin", amount=4000, amount_received=4000, currency="usd", metadata=copied)
        deliver(client, event("payment_intent.succeeded", twin))

        assert status_of(client, created["paymentId"])["payment"]["status"] == "checkout_created"

    def test_it_lets_go_what_was_joined_wrongly_when_the_true_intent_becomes_known(
        self, client: FlaskClient, db: Connection
    ) -> None:
        created = client.post("/checkout/create", json=checkout()).json
        twin = paid_intent("pi_twin", amount=4000, currency="usd", metadata={"paymentId": created["paymentId"]})
        deliver(client, event("payment_intent.payment_failed", twin))
        assert status_of(client, created["paymentId"])["payment"]["status"] == "failed"

        session = {"id": created["sessionId"], "object": "checkout.session", "payment_status": "paid"}
        deliver(client, event("checkout.session.completed", session | {"payment_intent": "pi_true"}))

        answer = status_of(client, created["paymentId"])
        assert (answer["payment"]["status"], answer["events"]["failures"]) == ("succeeded", [])
        assert told(db, "type", "payment_id IS NOT NULL") == ["checkout.session.completed"]

    def test_it_keeps_events_of_payments_that_are_not_ours(self, client: FlaskClient, db: Connection) -> None:
        foreign = paid_intent("pi_foreign", metadata={"paymentId": str(uuid.uuid4())})
        assert deliver(client, event("payment_intent.succeeded", foreign)).status_code == 200

        stored = db.execute(text("SELECT app_id, payment_id FROM stripe_events")).one()
        assert tuple(stored) == ("", None)

    def test_it_counts_an_event_once_by_whichever_path_it_comes(
        self, client: FlaskClient, services: Services, db: Connection
    ) -> None:
        created = client.post("/payment-intent/create", json=intent()).json
        failed = Event("evt_f", "payment_intent.payment_failed", 1, paid_intent(created["paymentIntentId"]))
        for app_id in (None, "shop", None):
            receive_event(failed, app_id=app_id, services=services)

        assert len(status_of(client, created["paymentId"])["events"]["failures"]) == 1
        assert told(db, "app_id") == [""]


class TestEarlyEvents:
    @pytest.mark.parametrize("path", ["/payment-intent/create", "/checkout/create"])
    def test_it_keeps_a_webhook_that_comes_before_stripes_answer(
        self, client: FlaskClient, stand_ins: StandIns, db: Connection, path: str
    ) -> None:
        """Stripe executes the request and the answer is lost; the customer's events come before the retry."""
        body, headers = (checkout() if "checkout" in path else intent()), {"Idempotency-Key": "once"}
        stand_ins.fault("stripe", "reset", method="POST", executed=True)
        assert client.post(path, json=body, headers=headers).status_code == 503
        (account,) = stand_ins.state()["accounts"].values()
        kind = "checkout.session" if "checkout" in path else "payment_intent"
        (made,) = account["objects"][kind]
        action = f"checkout/{made['id']}/pay" if "checkout" in path else f"intents/{made['id']}/pay"
        stand_ins.control(action)
        (account,) = stand_ins.state()["accounts"].values()
        for told in account["objects"]["event"]:
            assert deliver(client, told).status_code == 200
        assert db.execute(text("SELECT status FROM payments")).scalar_one() == "creating"

        created = client.post(path, json=body, headers=headers).json

        assert status_of(client, created["paymentId"])["payment"]["status"] == "succeeded"

    def test_it_joins_events_that_only_a_later_one_explains(self, client: FlaskClient) -> None:
        """A refund names an intent that no event has tied to the checkout yet."""
        created = client.post("/checkout/create", json=checkout()).json
        deliver(client, event("refund.created", refund_of("pi_9", 4000)))
        deliver(client, event("payment_intent.succeeded", paid_intent("pi_9", amount_received=4000)))
        session = {"id": created["sessionId"], "object": "checkout.session", "payment_status": "paid"}
        deliver(client, event("checkout.session.completed", session | {"payment_intent": "pi_9"}))

        assert status_of(client, created["paymentId"])["payment"]["status"] == "refunded"

    def test_it_follows_a_chain_of_ids(self, client: FlaskClient) -> None:
        """Session -> invoice -> intent -> refund: each event but the last came before what explains it."""
        items = [{"priceId": "price_sandbox_monthly", "quantity": 1}]
        created = client.post("/checkout/create", json=checkout(mode="subscription", lineItems=items)).json
        deliver(client, event("refund.created", refund_of("pi_s", 2000)))
        deliver(client, event("payment_intent.succeeded", paid_intent("pi_s")))
        payment = {"type": "payment_intent", "payment_intent": "pi_s"}
        deliver(client, event("invoice_payment.paid", {"object": "invoice_payment", "id": "inpay_1",
                                                       "invoice": "in_s", "payment": payment}))  # fmt: skip
        session = {"id": created["sessionId"], "object": "checkout.session", "payment_status": "paid"}
        deliver(client, event("checkout.session.completed", session | {"subscription": "sub_s", "invoice": "in_s"}))

        payment_now = status_of(client, created["paymentId"])["payment"]
        assert (payment_now["status"], payment_now["stripePaymentIntentId"]) == ("refunded", "pi_s")
        assert payment_now["stripeSubscriptionId"] == "sub_s"

    @pytest.mark.parametrize("first", ["event", "payment"])
    def test_it_joins_both_when_they_are_committed_at_the_same_time(
        self, client: FlaskClient, services: Services, monkeypatch: pytest.MonkeyPatch, first: str
    ) -> None:
        """Two transactions that don't see each other: the one that commits last looks after its commit.

        Fails when `receive_event` doesn't look again, or adopts before it commits.
        """
        created = client.post("/checkout/create", json=checkout()).json
        session = {"id": created["sessionId"], "object": "checkout.session", "payment_status": "paid"}
        teaching = Event("evt_t", "checkout.session.completed", 2, session | {"payment_intent": "pi_x"})
        waiting = Event("evt_w", "refund.created", 1, refund_of("pi_x", 4000))
        inside, other_is_done = threading.Barrier(2), threading.Event()
        payment_of = events._payment_of

        def store_together(stored: Any, told: Event, *rest: Any) -> Any:
            """Both are stored, and have looked for each other and not found; then one commits before the other."""
            inside.wait(10)
            is_first = (told is waiting) == (first == "event")
            if not is_first:
                assert other_is_done.wait(10)
            return payment_of(stored, told, *rest)

        monkeypatch.setattr(events, "_payment_of", store_together)

        def receive(told: Event) -> None:
            receive_event(told, app_id=None, services=services)
            other_is_done.set()

        with ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(receive, told) for told in (teaching, waiting)]:
                done.result(20)

        assert status_of(client, created["paymentId"])["payment"]["status"] == "refunded"


class TestPlans:
    def test_what_waits_is_found_by_its_ids_however_much_waits(
        self, client: FlaskClient, services: Services, db: Connection
    ) -> None:
        """Fails with EXISTS: where much waits, the planner expects to find one soon, and reads all of it."""
        made = client.post("/payment-intent/create", json=intent()).json
        db.execute(
            text("INSERT INTO stripe_events (app_id, id, type, created, object, refs)"
                 " SELECT '', 'evt_w' || n, 'x', 1, jsonb_build_object('text', repeat('x', 1000)), ARRAY['pi_w' || n]"
                 " FROM generate_series(1, 30000) n")
        )  # fmt: skip
        db.execute(text("ANALYZE stripe_events"))

        plans = explain(
            services.database.engine, lambda: services.database.run(events._WAITED_FOR, refs=[made["paymentIntentId"]])
        )
        assert len(plans) == 1
        assert "Seq Scan on stripe_events" not in plans[0]


class TestRedelivery:
    def test_it_stores_nothing_of_a_transaction_that_fails_in_the_middle(
        self, client: FlaskClient, db: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when the event is committed before the work that it stands for."""
        created = client.post("/payment-intent/create", json=intent()).json
        paid = event("payment_intent.succeeded", paid_intent(created["paymentIntentId"]))
        with monkeypatch.context() as patch:
            patch.setattr(events, "fold_and_commit", lambda *_: 1 / 0)
            assert deliver(client, paid).status_code == 500
        assert told(db, "type") == []

        assert deliver(client, paid).status_code == 200
        assert status_of(client, created["paymentId"])["payment"]["status"] == "succeeded"

    def test_it_joins_an_event_that_was_stored_before_its_payment_was_known(
        self, client: FlaskClient, db: Connection
    ) -> None:
        created = client.post("/payment-intent/create", json=intent()).json
        paid = event("payment_intent.succeeded", paid_intent(created["paymentIntentId"]))
        deliver(client, paid)
        db.execute(text("UPDATE stripe_events SET payment_id = NULL"))
        db.execute(text("UPDATE payments SET status = 'requires_payment_method'"))

        deliver(client, paid)

        assert status_of(client, created["paymentId"])["payment"]["status"] == "succeeded"


LIVES: tuple[Callable[[Life], None], ...] = (
    lambda life: (life.fail(), life.fail(), life.pay(), life.refund(1000), life.refund(4000)),
    lambda life: (life.pay(), life.dispute("needs_response"), life.move_dispute("won")),
    lambda life: (life.pay(), life.refund(700), life.move_refund(0, "failed")),
    lambda life: (life.ask_action(), life.process(), life.fail_later()),
    lambda life: (life.process(), life.pay(), life.dispute("needs_response"), life.move_dispute("lost")),
    lambda life: (life.fail(), life.expire(), life.cancel()),
)  # type: ignore[assignment]


def payments_and_their_events(count: int, db: Connection) -> tuple[dict[str, Life], list[dict[str, Any]]]:
    """Payments as Stripe took them, and the events of a life for each: one payment's in any order, at one time."""
    lives: dict[str, Life] = {}
    told: list[dict[str, Any]] = []
    any_order = random.Random(7)
    for number, (kind, live) in zip(range(count), itertools.cycle(itertools.product(range(3), LIVES)), strict=False):
        is_intent = kind == 0
        life = Life(PaymentKind.PAYMENT_INTENT if is_intent else PaymentKind.CHECKOUT_SESSION, subscription=kind == 2)
        live(life)
        payment_id = str(uuid.uuid4())
        lives[payment_id] = life
        insert_taken(db, payment_id, life, number)
        events_of_life = [renamed(e, payment_id, number) for e in life.events]
        told += any_order.sample(events_of_life, len(events_of_life))
    return lives, told


NAMES = (INTENT, SESSION, SUBSCRIPTION, INVOICE, CHARGE, "in_2")


def renamed(told: Event, payment_id: str, number: int) -> dict[str, Any]:
    """The event of a life as one of this payment's."""

    def rename(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rename(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [rename(inner) for inner in value]
        is_name = value in NAMES or (isinstance(value, str) and value.startswith(("re_", "du_", "ch_")))
        return f"{value}_{number}" if is_name else value

    stripe_object = rename(dict(told.object))
    if stripe_object["object"] in ("payment_intent", "checkout.session"):
        stripe_object["metadata"] = {"paymentId": payment_id}
    return event(told.type, stripe_object, created=told.created, id=f"{told.id}_{number}")


def insert_taken(db: Connection, payment_id: str, life: Life, number: int) -> None:
    """Insert a payment as it is when Stripe has made its object."""
    made = {**life.creation.object, "id": f"{life.creation.object['id']}_{number}"}
    is_intent = life.kind is PaymentKind.PAYMENT_INTENT
    values = {
        "id": payment_id,
        "kind": life.kind,
        "fact_id": f"op_{payment_id}:1",
        "type": life.creation.type,
        "created": life.creation.created,
        "made": json.dumps(made),
        "made_id": made["id"],
        "status": "requires_payment_method" if is_intent else "checkout_created",
        "intent": made["id"] if is_intent else None,
        "session": None if is_intent else made["id"],
        "amount": AMOUNT,
    }
    for statement in (
        "INSERT INTO payments (id, kind, app_id, org_id, status, stripe_payment_intent_id, stripe_checkout_session_id,"
        " amount_in_cents, currency) VALUES (:id, :kind, 'shop', 'org_1', :status, :intent, :session, :amount, 'usd')",
        "INSERT INTO stripe_objects (id, app_id, payment_id) VALUES (:made_id, 'shop', :id)",
        "INSERT INTO stripe_events (app_id, id, payment_id, type, created, object, refs)"
        " VALUES ('shop', :fact_id, :id, :type, :created, CAST(:made AS jsonb), ARRAY[:made_id])",
    ):
        db.execute(text(statement), values)


def deliver_all(web: WebProcess, told: list[dict[str, Any]], *, threads: int) -> None:
    """Deliver events over HTTP from many threads at once, as Stripe does."""
    sessions = threading.local()

    def send(body: dict[str, Any]) -> int:
        if not hasattr(sessions, "http"):
            sessions.http = requests.Session()
        payload = json.dumps(body).encode()
        headers = {"Stripe-Signature": sign(payload), "Content-Type": "application/json"}
        url = f"{web.url}/webhooks/stripe"
        return int(sessions.http.post(url, data=payload, headers=headers, timeout=60).status_code)

    with ThreadPoolExecutor(threads) as pool:
        assert set(pool.map(send, told)) == {200}


@pytest.mark.soak
class TestConcurrency:
    PAYMENTS = amount(120, 2000)

    def test_it_comes_to_one_state_whatever_is_delivered_at_the_same_time(
        self, web: WebProcess, client: FlaskClient, db: Connection
    ) -> None:
        """Two processes, sixteen threads, every event of every life in any order.

        Fails when `LOCK` doesn't lock: two events of a payment fold without each other, and the last wins.
        """
        lives, told = payments_and_their_events(self.PAYMENTS, db)
        deliver_all(web, told + told[::7], threads=16)

        found = {str(row.id): row for row in db.execute(text("SELECT * FROM payments"))}
        wrong = [
            (life.kind, life.subscription, found[payment_id].status, life.expected_status)
            for payment_id, life in lives.items()
            if (found[payment_id].status, found[payment_id].amount_received_in_cents,
                found[payment_id].amount_refunded_in_cents, found[payment_id].success_count,
                found[payment_id].refund_count, found[payment_id].dispute_count)
            != (life.expected_status, life.received, life.refunded, int(life.paid),
                len(life.refunds), len(life.disputes))
        ]  # fmt: skip
        assert wrong == []

    def test_it_adopts_nothing_more_once_all_is_joined(
        self, client: FlaskClient, services: Services, db: Connection
    ) -> None:
        created = client.post("/payment-intent/create", json=intent()).json
        deliver(client, event("payment_intent.succeeded", paid_intent(created["paymentIntentId"])))
        before = db.execute(text("SELECT xmin, * FROM payments")).one()
        fold_again(uuid.UUID(created["paymentId"]), services=services)

        assert tuple(db.execute(text("SELECT xmin, * FROM payments")).one())[1:] == tuple(before)[1:]
