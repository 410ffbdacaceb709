"""kill -9 at random times, under load from two processes; then recovery, and the books.

Callers create payments, and refund, capture and cancel what they have created.
"""

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
from sqlalchemy import Connection

from app import create_app
from app.config import Settings
from app.request_context import EXTENSION_KEY
from tests.books import assert_balanced, recover_until_quiet
from tests.databases import dispose
from tests.factories import checkout, intent
from tests.soak import amount
from tests.stand_ins import StandIns
from tests.web import API_KEY, WebProcess

BODIES = {"/checkout/create": checkout, "/payment-intent/create": intent}
KILLS = amount(8, 200)
MOST_SECONDS_BETWEEN_KILLS = 0.8
CALLERS = 6
LEASE_SECONDS = 4.0


@dataclass
class Callers:
    """Callers that create payments and do something with them until they are told to stop, each try on any service."""

    webs: Sequence[WebProcess]
    stand_ins: StandIns
    shared_run: str
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
            changes = random.choice([{}, {"orgId": ..., "runId": self.shared_run}, {"captureMethod": "manual"}])
            key = f"{number}-{turn}" if random.random() < 0.75 else None
            made = self._send(path, BODIES[path](**changes), key)
            if made and "paymentIntentId" in made and key:
                self._act(made, key, is_held="captureMethod" in changes)

    def _act(self, made: dict[str, Any], key: str, *, is_held: bool) -> None:
        """The customer pays, mostly, and the caller does something with the payment."""
        if random.random() < 0.8:
            self.stand_ins.control(f"intents/{made['paymentIntentId']}/{'authorize' if is_held else 'pay'}")
        action, body = random.choice(
            [("refund", {"amountInCents": 700}), ("refund", {}), ("capture", {}), ("cancel", {})]
        )
        self._send(f"/payments/{made['paymentId']}/{action}", {"appId": "shop", **body}, f"{key}-{action}")

    def _send(self, path: str, body: dict[str, Any], key: str | None) -> dict[str, Any] | None:
        """Send a request, with a key up to three times; the value is an answer of 200, if there was one."""
        if key:
            self.sent[key] = (path, body)
        answers = [self._try(path, body, key) for _ in range(random.randint(1, 3) if key else 1)]
        return next(filter(None, answers), None)

    def _try(self, path: str, body: dict[str, Any], key: str | None) -> dict[str, Any] | None:
        try:
            response = random.choice(self.webs).post(path, body, **({"Idempotency-Key": key} if key else {}))
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            self.lost += 1
            return None
        # What can't be done with a payment, Stripe refuses.
        expected = (200, 400, 409, 502, 503, 504) if path.startswith("/payments/") else (200, 409, 502, 503, 504)
        assert response.status_code in expected, response.text
        if response.status_code != 200:
            return None
        if key:
            assert response.json() == self.answers.setdefault(key, response.json())
        return dict(response.json())


def kill_at_random(webs: Sequence[WebProcess], stand_ins: StandIns, stopping: threading.Event) -> None:
    """Kill workers, which gunicorn replaces, and now and then have Stripe keep a 5xx for what it did."""
    for number in range(KILLS):
        stopping.wait(random.uniform(0, MOST_SECONDS_BETWEEN_KILLS))
        if number % 4 == 0:
            stand_ins.fault("stripe", "status", method="POST", status=500, executed=True)
        if workers := random.choice(webs).workers():
            os.kill(random.choice(workers), signal.SIGKILL)


@pytest.mark.soak
def test_the_books_balance_after_kills_at_random_times(
    app: Flask, environment: dict[str, str], settings: Settings, stand_ins: StandIns, db: Connection
) -> None:
    """Fails when the accept, the ask or the take isn't committed before what follows it, or when recovery doesn't read
    the run before it adds a cost, or doesn't list what Stripe has after a 5xx that is replayed.
    """
    lease = environment | {"WEB_CONCURRENCY": "1", "PAYMENT_LEASE_SECONDS": str(LEASE_SECONDS)}
    with WebProcess.start(lease) as one, WebProcess.start(lease) as other:
        callers = Callers((one, other), stand_ins, stand_ins.new_run())
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
    recover_until_quiet(recovering.extensions[EXTENSION_KEY], db)
    assert_balanced(db, stand_ins)

    client = recovering.test_client()
    for key, (path, body) in callers.sent.items():
        sent = {"X-API-Key": API_KEY, "Idempotency-Key": key}
        again = client.post(path, json=body, headers=sent)
        if again.status_code == 200 or not path.startswith("/payments/"):
            assert (again.status_code, again.json) == (200, callers.answers.get(key, again.json))
        else:
            assert (again.status_code, callers.answers.get(key)) == (400, None)
    assert_balanced(db, stand_ins)
    dispose(recovering)
