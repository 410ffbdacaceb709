"""Refund, capture and cancel that were left in the middle: done once, found again, and never done twice."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app import create_app
from app.config import Settings
from app.request_context import EXTENSION_KEY
from app.services import Services
from app.services.kinds import KINDS
from app.services.operations.recovery import recover_operations
from tests.books import assert_balanced, recover_until_quiet
from tests.crashing import dies_in
from tests.databases import dispose
from tests.factories import checkout, intent
from tests.soak import amount
from tests.stand_ins import StandIns
from tests.web import API_KEY
from tests.webhooks import deliver

Json = dict[str, Any]
KEYED = {"X-API-Key": API_KEY, "Idempotency-Key": "key"}


def tell(client: FlaskClient, stand_ins: StandIns, intent_id: str) -> None:
    """Stripe tells what happened to an intent."""
    for account in stand_ins.state()["accounts"].values():
        for told in account["objects"].get("event", []):
            about = told["data"]["object"]
            if intent_id in (about["id"], about.get("payment_intent")):
                assert deliver(client, told).status_code == 200


@dataclass(frozen=True)
class Case:
    """An action, and how a payment comes to where it is possible.

    :param brought_by: what the customer does first
    :param effect: what the stand-in for Stripe writes down when it is done
    :param ends_as: the status of the payment then
    """

    action: str
    path: str
    brought_by: str | None
    effect: str
    ends_as: str
    body: Json

    def make(self, client: FlaskClient, stand_ins: StandIns) -> str:
        """A payment of which the action is possible; the value is its id."""
        sent = checkout(**self.body) if self.path == "/checkout/create" else intent(**self.body)
        made = client.post(self.path, json=sent, headers={"X-API-Key": API_KEY}).json
        if self.brought_by:
            of = f"checkout/{made['sessionId']}" if "sessionId" in made else f"intents/{made['paymentIntentId']}"
            stand_ins.control(f"{of}/{self.brought_by}")
            tell(client, stand_ins, made["paymentIntentId"])
        return str(made["paymentId"])

    def ask(self, client: FlaskClient, payment_id: str, key: str = "key") -> Any:
        sent = {"appId": "shop", "amountInCents": 500} if self.action == "refund" else {"appId": "shop"}
        headers = {**KEYED, "Idempotency-Key": key}
        return client.post(f"/payments/{payment_id}/{self.action}", json=sent, headers=headers)


HELD = {"captureMethod": "manual"}
CASES = [
    Case("refund", "/payment-intent/create", "pay", "refund.create", "partially_refunded", {}),
    Case("capture", "/payment-intent/create", "authorize", "payment_intent.capture", "succeeded", HELD),
    Case("cancel", "/payment-intent/create", None, "payment_intent.cancel", "canceled", {}),
    Case("cancel", "/checkout/create", None, "checkout.session.expire", "expired", {}),
]
of_each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.effect)


def lapse(db: Connection) -> None:
    db.execute(text("UPDATE operations SET lease_until = now() - interval '1 second' WHERE step <> 'finished'"))


def recover(services: Services, db: Connection) -> list[tuple[str, str]]:
    lapse(db)
    recovered = recover_operations(services, KINDS, command="flask recover", at_once=True)
    return [(str(one.outcome), one.reason) for one in recovered]


def action_of(client: FlaskClient, payment_id: str) -> tuple[str, str]:
    """The state of the payment's one action, and the payment's status."""
    shown = client.get(f"/status/{payment_id}").json
    (action,) = shown["actions"]
    return action["state"], shown["payment"]["status"]


class TestCrash:
    MOST_POINTS = 60
    # Each takes a process: all of them are tried in the soak.
    STRIDE = amount(3, 1)

    @pytest.fixture
    def short_lease(self, settings: Settings) -> Settings:
        return replace(settings, payment_lease_seconds=1.5, upstream_timeout_seconds=1)

    def _sweep(self, dying: Flask, case: Case, make: Callable[[], str]) -> Iterator[tuple[str, str]]:
        """Every point of an action; yields the payments whose process was killed, and the action's key."""
        for point in itertools.count(0, self.STRIDE):
            payment_id, key = make(), f"{case.effect}-{point}"
            if not dies_in(dying, point, partial(case.ask, payment_id=payment_id, key=key)):
                assert point >= 14
                return
            assert point < self.MOST_POINTS
            yield payment_id, key

    @of_each_case
    def test_it_ends_well_wherever_a_process_is_killed(
        self, client: FlaskClient, short_lease: Settings, stand_ins: StandIns, db: Connection, case: Case
    ) -> None:
        """kill -9 before and after each statement and each upstream call, one process a point.

        Fails when the ask isn't committed before Stripe is asked, or the fact of the answer with the take.
        """
        dying = create_app(short_lease)
        killed = list(self._sweep(dying, case, partial(case.make, client, stand_ins)))
        dispose(dying)
        recovering = create_app(short_lease)
        recover_until_quiet(recovering.extensions[EXTENSION_KEY], db)
        assert_balanced(db, stand_ins)
        for payment_id, key in killed:
            first, again = (case.ask(client, payment_id, key) for _ in range(2))
            assert (first.status_code, first.json) == (200, again.json)
            assert action_of(client, payment_id) == ("done", case.ends_as)
        assert stand_ins.effects().count(case.effect) == len(killed) + 1
        assert_balanced(db, stand_ins)
        dispose(recovering)


class TestLostAnswer:
    FAULTS: tuple[Json, ...] = (
        {"kind": "reset", "executed": True},
        {"kind": "half_body", "executed": True},
        {"kind": "status", "status": 500, "executed": True},
        {"kind": "reset"},
        {"kind": "status", "status": 503},
    )

    @of_each_case
    @pytest.mark.parametrize("by", ["retry", "recovery"])
    @pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: "-".join(map(str, fault.values())))
    def test_it_is_done_once(
        self,
        client: FlaskClient,
        services: Services,
        stand_ins: StandIns,
        db: Connection,
        case: Case,
        by: str,
        fault: Json,
    ) -> None:
        """A 5xx that Stripe keeps for the idempotency key is among them: then Stripe's own objects tell.

        Fails when `find` of the kind finds nothing.
        """
        payment_id = case.make(client, stand_ins)
        stand_ins.fault("stripe", method="POST", **fault)
        assert case.ask(client, payment_id).status_code in (502, 503)
        if by == "recovery" or fault.get("status") == 500:
            assert [outcome for outcome, _ in recover(services, db)] == ["taken"]

        answer = case.ask(client, payment_id)

        assert answer.status_code == 200
        assert action_of(client, payment_id) == ("done", case.ends_as)
        assert stand_ins.effects().count(case.effect) == 1
        assert_balanced(db, stand_ins)


class TestOldAsk:
    @of_each_case
    @pytest.mark.parametrize("is_executed", [True, False])
    def test_after_a_day_stripes_objects_tell(
        self,
        client: FlaskClient,
        services: Services,
        stand_ins: StandIns,
        db: Connection,
        case: Case,
        is_executed: bool,
    ) -> None:
        """Stripe has forgotten the idempotency key: to ask under it again would do it a second time."""
        payment_id = case.make(client, stand_ins)
        stand_ins.fault("stripe", "reset", method="POST", executed=is_executed)
        case.ask(client, payment_id)
        stand_ins.control("clock", advance=25 * 3600)
        db.execute(text("UPDATE operations SET asked_at = asked_at - interval '25 hours' WHERE step = 'asked'"))

        # A session has expired by itself by then: it is as it should be.
        is_there = is_executed or case.ends_as == "expired"
        assert [outcome for outcome, _ in recover(services, db)] == ["taken" if is_there else "rejected"]
        assert action_of(client, payment_id)[0] == ("done" if is_there else "refused")
        assert_balanced(db, stand_ins)
        assert case.ask(client, payment_id).status_code == 200
        if case.ends_as != "expired":
            assert stand_ins.effects().count(case.effect) == 1

    def test_another_refund_of_the_intent_is_not_taken_for_it(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        case = CASES[0]
        payment_id = case.make(client, stand_ins)
        assert case.ask(client, payment_id, "other").status_code == 200
        stand_ins.fault("stripe", "reset", method="POST")
        case.ask(client, payment_id)
        db.execute(text("UPDATE operations SET asked_at = asked_at - interval '25 hours' WHERE step = 'asked'"))

        assert [outcome for outcome, _ in recover(services, db)] == ["rejected"]
        assert case.ask(client, payment_id).status_code == 200
        assert stand_ins.effects().count("refund.create") == 2


class TestStuck:
    @of_each_case
    def test_without_the_apps_key_it_is_stuck_until_that_is_back(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection, case: Case
    ) -> None:
        payment_id = case.make(client, stand_ins)
        stand_ins.fault("stripe", "reset", method="POST", executed=True)
        case.ask(client, payment_id)
        stand_ins.control("keys", appId="shop", key=None)
        services.keys._keys.clear()
        ((outcome, reason),) = recover(services, db)
        assert (outcome, reason) == ("stuck", "No Stripe key configured for appId 'shop'")
        assert action_of(client, payment_id)[0] == "stuck"

        stand_ins.control("keys", appId="shop", key="sk_test_sandbox_shop")
        assert [outcome for outcome, _ in recover(services, db)] == ["taken"]
        assert action_of(client, payment_id) == ("done", case.ends_as)
