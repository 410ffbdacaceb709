"""kill -9 at random times, under load from two processes; then recovery, and the books."""

import itertools
import os
import random
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app import create_app
from app.config import Settings
from app.request_context import EXTENSION_KEY
from tests.books import KIND_OF_OBJECT, assert_balanced, made_by_us, objects_of, recover_until_quiet
from tests.databases import dispose
from tests.factories import checkout, intent
from tests.services.test_whole_life import expected_status
from tests.soak import amount
from tests.stand_ins import StandIns
from tests.web import API_KEY, WebProcess
from tests.webhooks import deliver

# What a caller may do with a payment that it has made, after the customer did the first of these.
ACTIONS: list[tuple[str | None, str, dict[str, Any]]] = [
    ("pay", "refund", {}),
    ("pay", "refund", {"amountInCents": 300}),
    ("authorize", "capture", {"amountInCents": 1500}),
    ("authorize", "cancel", {}),
    (None, "cancel", {"reason": "abandoned"}),
]
BODIES = {"/checkout/create": checkout, "/payment-intent/create": intent}
KILLS = amount(5, 200)
MOST_SECONDS_BETWEEN_KILLS = 0.8
CALLERS = 6
LEASE_SECONDS = 4.0


@dataclass
class Callers:
    """Callers that create payments, and do something with them, until they are told to stop, on any of the services."""

    webs: Sequence[WebProcess]
    shared_run: str
    stand_ins: StandIns
    stopping: threading.Event = field(default_factory=threading.Event)
    sent: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: int = 0

    def call(self, number: int) -> None:
        """Create one payment after another, three in four with a key; some of those that fail are tried again."""
        for turn in itertools.count():
            if self.stopping.is_set():
                return
            path = random.choice(list(BODIES))
            body = BODIES[path](**random.choice([{}, {"orgId": ..., "runId": self.shared_run}]))
            key = f"{number}-{turn}" if random.random() < 0.75 else None
            if key:
                self.sent[key] = (path, body)
            for _ in range(random.randint(1, 3) if key else 1):
                self._try(path, body, key)
            if key and "paymentIntentId" in self.answers.get(key, {}):
                self._act(key)

    def _act(self, key: str) -> None:
        """The customer does something with an intent, and the caller once or more often what then can be done."""
        made = self.answers[key]
        by_customer, action, body = random.choice(ACTIONS)
        if by_customer:
            self.stand_ins.control(f"intents/{made['paymentIntentId']}/{by_customer}")
        for number in range(random.randint(1, 2)):
            path, action_key = f"/payments/{made['paymentId']}/{action}", f"{key}-{action}-{number % 2}"
            self.sent[action_key] = (path, {"appId": "shop", **body})
            self._try(path, self.sent[action_key][1], action_key)

    def _try(self, path: str, body: dict[str, Any], key: str | None) -> None:
        try:
            response = random.choice(self.webs).post(path, body, **({"Idempotency-Key": key} if key else {}))
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            self.lost += 1
            return
        assert response.status_code in (200, 409, 502, 503, 504) or is_refused(response.json(), path), response.text
        if key and response.status_code == 200:
            assert response.json() == self.answers.setdefault(key, response.json())


def is_refused(answer: Any, path: str) -> bool:
    """Whether Stripe refuses what can't be done with a payment any more: a second full refund."""
    return path.endswith("/refund") and answer.get("code") == "charge_already_refunded"


def kill_at_random(webs: Sequence[WebProcess], stand_ins: StandIns, stopping: threading.Event) -> None:
    """Kill workers, which gunicorn replaces, and now and then have Stripe keep a 5xx for what it did."""
    for number in range(KILLS):
        stopping.wait(random.uniform(0, MOST_SECONDS_BETWEEN_KILLS))
        if number % 4 == 0:
            stand_ins.fault("stripe", "status", method="POST", status=500, executed=True)
        if workers := random.choice(webs).workers():
            os.kill(random.choice(workers), signal.SIGKILL)


def hear_all(client: FlaskClient, stand_ins: StandIns) -> None:
    """Stripe delivers all its events."""
    for each in objects_of(stand_ins, "event"):
        assert deliver(client, each).status_code == 200


def assert_told_as_stripe_has_it(db: Connection, stand_ins: StandIns) -> None:
    """The status of each payment is what a person would say who looks at Stripe's objects."""
    told = {str(row.id): row.status for row in db.execute(text("SELECT id, status FROM payments"))}
    accounts = stand_ins.state()["accounts"].values()
    owners = {
        each["id"]: account
        for account in accounts
        for kind in KIND_OF_OBJECT
        for each in account["objects"].get(kind, [])
    }
    made = made_by_us(stand_ins)
    expected = {payment_id: expected_status(each[0], owners[each[0]["id"]]) for payment_id, each in made.items()}
    assert {payment_id: told[payment_id] for payment_id in expected} == expected


@pytest.mark.soak
def test_the_books_balance_after_kills_at_random_times(
    app: Flask, environment: dict[str, str], settings: Settings, stand_ins: StandIns, db: Connection
) -> None:
    """Each refund, capture and cancel is done once as well, and shown as Stripe has it.

    Fails when the accept, the ask or the take isn't committed before what follows it, or when recovery doesn't read
    the run before it adds a cost, or doesn't list what Stripe has after a 5xx that is replayed.
    """
    lease = environment | {"WEB_CONCURRENCY": "1", "PAYMENT_LEASE_SECONDS": str(LEASE_SECONDS)}
    with WebProcess.start(lease) as one, WebProcess.start(lease) as other:
        callers = Callers((one, other), stand_ins.new_run(), stand_ins)
        with ThreadPoolExecutor(CALLERS) as threads:
            calling = [threads.submit(callers.call, number) for number in range(CALLERS)]
            try:
                kill_at_random(callers.webs, stand_ins, callers.stopping)
            finally:
                callers.stopping.set()
            for each in calling:
                each.result(60)
    assert callers.lost

    stand_ins.heal()
    recovering = create_app(replace(settings, payment_lease_seconds=LEASE_SECONDS))
    # Each time that an operation is put off, it waits for twenty seconds: for what may still be under way.
    recover_until_quiet(recovering.extensions[EXTENSION_KEY], db, seconds=150)
    assert_balanced(db, stand_ins)

    client = recovering.test_client()
    client.environ_base["HTTP_X_API_KEY"] = API_KEY
    for key, (path, body) in callers.sent.items():
        again = client.post(path, json=body, headers={"Idempotency-Key": key})
        assert again.status_code == 200 or is_refused(again.json, path), again.json
        assert again.json == callers.answers.get(key, again.json)
    assert_balanced(db, stand_ins)
    hear_all(client, stand_ins)
    assert_told_as_stripe_has_it(db, stand_ins)
    dispose(recovering)
