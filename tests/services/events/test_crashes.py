"""kill -9 in the middle of a webhook: Stripe delivers it again, and all is as if nothing had happened."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from app.services.kinds import KINDS
from app.services.operations.recovery import recover_operations
from app.services.reconciliation.waiting_events import rejoin_waiting_events
from tests.books import assert_balanced, end_orphan_runs_at_once
from tests.crashing import dies_in
from tests.databases import empty
from tests.factories import checkout, intent
from tests.stand_ins import StandIns
from tests.webhooks import deliver, event, paid_intent

MOST_POINTS = 60


@dataclass
class Scene:
    """An event, and what was there and was delivered before it.

    :param names: what the ids that differ from one scene to the next are called
    """

    told: dict[str, Any]
    before: list[dict[str, Any]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)


def told(number: int, name: str, kind: str, stripe_object: dict[str, Any]) -> dict[str, Any]:
    return event(kind, stripe_object, id=f"evt_{name}_{number}", created=1_700_000_000)


def new_intent(client: FlaskClient) -> tuple[str, dict[str, str]]:
    created = client.post("/payment-intent/create", json=intent(orgId=...)).json
    return created["paymentIntentId"], {created["paymentId"]: "PAYMENT", created["paymentIntentId"]: "INTENT"}


def new_checkout(client: FlaskClient) -> tuple[str, dict[str, str]]:
    created = client.post("/checkout/create", json=checkout(orgId=...)).json
    return created["sessionId"], {created["paymentId"]: "PAYMENT", created["sessionId"]: "SESSION"}


def completed(number: int, session_id: str, intent_id: str) -> dict[str, Any]:
    session = {"id": session_id, "object": "checkout.session", "payment_status": "paid", "payment_intent": intent_id}
    return told(number, "completed", "checkout.session.completed", session | {"amount_total": 4000, "currency": "usd"})


def failed(number: int, intent_id: str, names: dict[str, str]) -> dict[str, Any]:
    payment_id = next(iter(names))
    shown = paid_intent(intent_id, amount=4000, amount_received=0, currency="usd", metadata={"paymentId": payment_id})
    return told(number, "failed", "payment_intent.payment_failed", shown)


def pays(client: FlaskClient, number: int) -> Scene:
    intent_id, names = new_intent(client)
    return Scene(told(number, "paid", "payment_intent.succeeded", paid_intent(intent_id)), names=names)


def teaches(client: FlaskClient, number: int) -> Scene:
    session_id, names = new_checkout(client)
    intent_id = f"pi_{number}"
    refund = {
        "id": f"re_{number}",
        "object": "refund",
        "amount": 500,
        "status": "succeeded",
        "payment_intent": intent_id,
    }
    before = [
        told(number, "paid", "payment_intent.succeeded", paid_intent(intent_id, amount=4000, amount_received=4000)),
        told(number, "refunded", "refund.created", refund),
    ]
    return Scene(completed(number, session_id, intent_id), before, names)


def waits(client: FlaskClient, number: int) -> Scene:
    return Scene(told(number, "paid", "payment_intent.succeeded", paid_intent(f"pi_{number}")))


def comes_again(client: FlaskClient, number: int) -> Scene:
    scene = pays(client, number)
    return Scene(scene.told, [scene.told], scene.names)


def is_hinted(client: FlaskClient, number: int) -> Scene:
    _, names = new_checkout(client)
    return Scene(failed(number, f"pi_{number}", names), names=names)


def detaches(client: FlaskClient, number: int) -> Scene:
    session_id, names = new_checkout(client)
    return Scene(completed(number, session_id, f"pi_{number}"), [failed(number, f"pi_twin_{number}", names)], names)


SCENES = (pays, teaches, waits, comes_again, is_hinted, detaches)


def state_of(db: Connection, number: int, names: dict[str, str]) -> list[list[str]]:
    """All that is stored about a scene's payment and events, with the scene's own ids replaced by their names."""
    payment_ids = [payment_id for payment_id, name in names.items() if name == "PAYMENT"]
    rows = [
        db.execute(text(query), {"number": f"%\\_{number}", "ids": payment_ids}).scalars()
        for query in (
            "SELECT (to_jsonb(p) - 'created_at' - 'updated_at')::text FROM payments p WHERE id::text = ANY(:ids)",
            "SELECT to_jsonb(o)::text FROM stripe_objects o WHERE payment_id::text = ANY(:ids)",
            "SELECT jsonb_build_array(id, app_id, payment_id)::text FROM stripe_events"
            " WHERE id LIKE :number OR (id LIKE 'op\\_%' AND payment_id::text = ANY(:ids))",
        )
    ]

    def named(row: str) -> str:
        for shown, name in names.items():
            row = row.replace(shown, name)
        return re.sub(rf"_{number}\b", "_N", row)

    return [sorted(map(named, each)) for each in rows]


class TestReceiveEvent:
    def sweep(self, client: FlaskClient, dying: Flask, make: Callable[[FlaskClient, int], Scene]) -> Iterator[int]:
        """Every point of an event's way; yields the numbers of the scenes, of which the first was left undisturbed."""
        self.scenes: dict[int, Scene] = {}
        for number in range(MOST_POINTS):
            scene = self.scenes[number] = make(client, number)
            for earlier in scene.before:
                assert deliver(client, earlier).status_code == 200
            if number == 0:
                assert deliver(client, scene.told).status_code == 200
            elif not dies_in(dying, number - 1, lambda child, body=scene.told: deliver(child, body)):
                break
            yield number

    @pytest.mark.parametrize("make", SCENES)
    def test_it_ends_well_wherever_it_is_killed(
        self,
        client: FlaskClient,
        dying: Flask,
        services: Services,
        db: Connection,
        make: Callable[[FlaskClient, int], Scene],
    ) -> None:
        """Fails when the event is committed before the work that it stands for, or nobody joins what waits."""
        numbers = list(self.sweep(client, dying, make))
        for number in numbers[1:]:
            assert deliver(client, self.scenes[number].told).status_code == 200
        list(rejoin_waiting_events(services))

        undisturbed, *others = [state_of(db, number, self.scenes[number].names) for number in numbers]
        assert len(others) > 3
        assert [(point, state) for point, state in enumerate(others) if state != undisturbed] == []

    def test_the_worker_joins_what_has_waited_for_days(
        self, client: FlaskClient, dying: Flask, services: Services, db: Connection
    ) -> None:
        """What teaches a checkout its intent is delivered late, and its process dies.

        Fails when what waits is looked at again only for an hour after it came.
        """
        numbers = list(self.sweep(client, dying, teaches))
        db.execute(text("UPDATE stripe_events SET received_at = received_at - interval '2 days'"))
        for number in numbers[1:]:
            assert deliver(client, self.scenes[number].told).status_code == 200
        # As a running worker does.
        list(rejoin_waiting_events(services, since=datetime.now(UTC) - timedelta(hours=1, minutes=5)))

        undisturbed, *others = [state_of(db, number, self.scenes[number].names) for number in numbers]
        assert [point for point, state in enumerate(others) if state != undisturbed] == []


BODIES = {"/payment-intent/create": (intent(), "intents"), "/checkout/create": (checkout(), "checkout")}
KIND_OF_OBJECT = {"intents": "payment_intent", "checkout": "checkout.session"}
ONCE = {"Idempotency-Key": "once"}


class TestStoreAnswer:
    def lose_the_answer_and_pay(self, client: FlaskClient, stand_ins: StandIns, path: str) -> None:
        """Stripe makes the object and its answer is lost; the customer pays, and the events come before any retry."""
        body, sort = BODIES[path]
        stand_ins.fault("stripe", "reset", method="POST", executed=True)
        assert client.post(path, json=body, headers=ONCE).status_code == 503
        (account,) = stand_ins.state()["accounts"].values()
        (made,) = account["objects"][KIND_OF_OBJECT[sort]]
        stand_ins.control(f"{sort}/{made['id']}/pay")
        (account,) = stand_ins.state()["accounts"].values()
        for each in account["objects"]["event"]:
            assert deliver(client, each).status_code == 200

    def state(self, client: FlaskClient, db: Connection) -> tuple[Any, ...]:
        payment_id = db.execute(text("SELECT id FROM payments")).scalar_one()
        shown = client.get(f"/status/{payment_id}").json["payment"]
        facts = db.execute(text("SELECT type, app_id, payment_id IS NOT NULL FROM stripe_events ORDER BY 1, 2")).all()
        objects = db.execute(text("SELECT left(id, 3) FROM stripe_objects ORDER BY 1")).scalars().all()
        money = {name: shown[name] for name in ("status", "amountReceivedInCents", "amountInCents", "tracking")}
        return money, facts, objects

    @pytest.mark.parametrize("path", BODIES)
    def test_it_ends_well_wherever_it_is_killed(
        self, client: FlaskClient, dying: Flask, services: Services, stand_ins: StandIns, db: Connection, path: str
    ) -> None:
        """Events that came before the answer are adopted by recovery, whether or not the worker looks at what waits.

        Fails when recovery doesn't look for them, or when the fact isn't stored with the answer.
        """
        body, _ = BODIES[path]
        states: list[tuple[Any, ...]] = []
        for number in range(MOST_POINTS):
            stand_ins.reset()
            empty(db)
            self.lose_the_answer_and_pay(client, stand_ins, path)
            was_killed = number > 0 and dies_in(
                dying, number - 1, lambda child: child.post(path, json=body, headers=ONCE)
            )
            if number == 0:
                assert client.post(path, json=body, headers=ONCE).status_code == 200
            db.execute(text("UPDATE operations SET lease_until = now() WHERE step <> 'finished'"))
            list(recover_operations(services, KINDS, command="flask recover", at_once=True))
            end_orphan_runs_at_once(services, db)
            assert_balanced(db, stand_ins)
            states.append(self.state(client, db))
            if number > 0 and not was_killed:
                break

        assert len(states) > 20
        assert states[0][0]["status"] == "succeeded"
        assert [(point, state) for point, state in enumerate(states[1:]) if state != states[0]] == []
