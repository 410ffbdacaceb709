"""kill -9 of web and worker at random, while payments change and endpoints fail, hang, drip and break."""

import os
import random
import signal
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import psutil
import pytest
import requests
from sqlalchemy import text

from app.services.notifications import deliver as delivery
from tests.cli.processes import Command
from tests.receivers import Receiver, Told
from tests.services.notifications.conftest import Shop
from tests.soak import amount
from tests.web import WebProcess
from tests.webhooks import event, paid_intent, try_to_deliver

CALLERS = 4
KILLS = amount(6, 120)
MOST_SECONDS_BETWEEN_KILLS = 0.8
ANSWERS = ("200", "slow 0.02", "500", "503 Retry-After: 1", "302 Location: /elsewhere", "reset", "hang", "drip")
WEIGHTS = (60, 20, 6, 4, 2, 5, 2, 1)


def send_until_taken(web: WebProcess, body: dict[str, Any], stopped: threading.Event) -> None:
    """What Stripe does: it delivers until it hears 200."""
    while True:
        with suppress(requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            if try_to_deliver(web, body) == 200:
                return
        stopped.wait(0.05)


def live(web: WebProcess, stopping: threading.Event) -> None:
    """One payment after the other is made, paid and refunded in parts."""
    while not stopping.is_set():
        body = {"appId": "shop", "amountInCents": 2000}
        with suppress(requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            made = web.post("/payment-intent/create", body, **{"Idempotency-Key": uuid.uuid4().hex}).json()
            if "paymentIntentId" not in made:
                continue
            intent_id = made["paymentIntentId"]
            send_until_taken(web, event("payment_intent.processing", paid_intent(intent_id), created=1), stopping)
            send_until_taken(web, event("payment_intent.succeeded", paid_intent(intent_id)), stopping)
            for _ in range(random.randint(0, 3)):
                refund = {"id": f"re_{uuid.uuid4().hex}", "object": "refund", "amount": 100, "status": "succeeded"}
                send_until_taken(web, event("refund.created", refund | {"payment_intent": intent_id}), stopping)


def kill_at_random(web: WebProcess, start_worker: Callable[[], Command], stopping: threading.Event) -> None:
    worker = start_worker()
    for _ in range(KILLS):
        stopping.wait(random.random() * MOST_SECONDS_BETWEEN_KILLS)
        if random.random() < 0.5:
            worker.process.kill()
            worker.process.wait()
            worker = start_worker()
        else:
            with suppress(ProcessLookupError, IndexError, psutil.NoSuchProcess):
                os.kill(random.choice(web.workers()), signal.SIGKILL)
    worker.process.kill()
    worker.process.wait()


def without_repeats(told: list[Told]) -> list[Told]:
    """Each event once, where it came first."""
    return list({each.webhook_id: each for each in reversed(told)}.values())[::-1]


@pytest.mark.soak
def test_each_app_is_told_each_state_in_order_whatever_is_killed(
    environment: dict[str, str],
    shop: Shop,
    listening: Callable[..., str],
    endpoint: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = ("/takes", "/fails", "/fails-too")
    listening("/takes")
    for path in paths[1:]:
        listening(path, *random.choices(ANSWERS, WEIGHTS, k=3 * KILLS), "200")
    stopping = threading.Event()
    with ExitStack() as stack, ThreadPoolExecutor(CALLERS) as callers:
        web = stack.enter_context(WebProcess.start(environment | {"WEB_CONCURRENCY": "2"}))
        lives = [callers.submit(live, web, stopping) for _ in range(CALLERS)]
        kill_at_random(
            web, lambda: stack.enter_context(Command.start("worker", environment=environment)), threading.Event()
        )
        stopping.set()
        for each in lives:
            each.result(60)

    # Nobody is killed any more, and time goes by.
    monkeypatch.setattr(delivery, "SEND_SECONDS", 1.0)
    while any(row.state in ("waiting", "sending") for row in shop.deliveries()):
        shop.make_due()
        shop.tell()

    states = defaultdict(list)
    for row in shop.db.execute(text("SELECT * FROM app_events ORDER BY number")):
        states[str(row.payment_id)].append((str(row.id), row.state_number))
    assert states
    for path in paths:
        told = defaultdict(list)
        for each in without_repeats(endpoint.told_at(path)):
            told[each.event["data"]["payment"]["id"]].append(each)
        assert {of: [each.webhook_id for each in own] for of, own in told.items()} == {
            of: [event_id for event_id, _ in own] for of, own in states.items()
        }
        for payment_id, own in told.items():
            shown = shop.client.get(f"/status/{payment_id}").json["payment"]
            # What is told of no state, such as an id that was learned, is written as well.
            besides = {"tracking": None, "updatedAt": None}
            assert own[-1].event["data"]["payment"] | besides == shown | besides
    for own in states.values():
        numbers = [number for _, number in own]
        assert sorted(set(numbers)) == list(range(1, numbers[-1] + 1))
    bodies = defaultdict(set)
    for each in endpoint.told:
        bodies[each.webhook_id].add(each.body)
    assert all(len(each) == 1 for each in bodies.values())
    assert endpoint.most_at_once == 1
