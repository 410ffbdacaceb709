"""A flood of forged webhooks while key-service is slow or silent: what it costs, and that it spoils nothing."""

import http.client
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from queue import Empty, SimpleQueue
from urllib.parse import urlsplit

import pytest
import requests
from flask import Flask

from tests.factories import intent
from tests.soak import amount
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import WebProcess
from tests.webhooks import event, sign, try_to_deliver

THREADS = 32
CREATES = 24
SENDERS = 12
SECONDS = amount(2, 10)
FORGED = 200 * SECONDS
MOST_ASKS = 30
MOST_SECONDS = 2
FORGED_BODY = json.dumps(event("customer.created", {"id": "cus_1", "object": "customer"})).encode()


@pytest.fixture
def one_process(environment: dict[str, str], app: Flask) -> Iterator[WebProcess]:
    """The service in one process, since each has limits of its own; it waits for key-service for 3 s."""
    limits = {"WEB_CONCURRENCY": "1", "UPSTREAM_TIMEOUT_SECONDS": "3"}
    with WebProcess.start(environment | limits) as process:
        yield process


def forge(web: WebProcess, names: "SimpleQueue[str]", *, seconds: float = 0) -> Counter[int]:
    """Send forgeries until the queue is empty, spread over so many seconds; the value counts the answers by status."""
    answers: Counter[int] = Counter()
    ends_at = time.monotonic() + seconds
    headers = {"Stripe-Signature": sign(FORGED_BODY, "whsec_forged"), "Content-Type": "application/json"}
    with closing(http.client.HTTPConnection(urlsplit(web.url).netloc, timeout=30)) as connection, suppress(Empty):
        while True:
            connection.request("POST", f"/webhooks/stripe/{names.get_nowait()}", FORGED_BODY, headers)
            response = connection.getresponse()
            response.read()
            answers[response.status] += 1
            time.sleep(max(0.0, (ends_at - time.monotonic()) * SENDERS / (names.qsize() + SENDERS)))
    return answers


def queue_of(names: Iterable[str]) -> "SimpleQueue[str]":
    queue: SimpleQueue[str] = SimpleQueue()
    for name in names:
        queue.put(name)
    return queue


def deliver_genuine(web: WebProcess, *, app_id: str) -> tuple[int, float]:
    """Deliver a new event that the app's secret signed; the value is the status, and how long it took."""
    payload = json.dumps(event("customer.created", {"id": "cus_1", "object": "customer"})).encode()
    headers = {"Stripe-Signature": sign(payload, f"whsec_sandbox_{app_id}"), "Content-Type": "application/json"}
    began_at = time.monotonic()
    response = requests.post(f"{web.url}/webhooks/stripe/{app_id}", data=payload, headers=headers, timeout=30)
    return response.status_code, time.monotonic() - began_at


def deliveries_during(flood: "list[Future[Counter[int]]]", web: WebProcess) -> Iterator[tuple[int, float]]:
    """Deliver one genuine webhook after the other while the flood lasts."""
    while not all(sent.done() for sent in flood):
        yield deliver_genuine(web, app_id="genuine")
        wait(flood, timeout=0.1)


def asks_about_webhooks(stand_ins: StandIns) -> int:
    """How often key-service was asked for a signing secret."""
    return sum("stripe-webhook" in entry["path"] for entry in stand_ins.ledger("key-service"))


class TestAFlood:
    @pytest.mark.soak
    def test_it_asks_key_service_little_and_delays_no_genuine_webhook(
        self, one_process: WebProcess, stand_ins: StandIns
    ) -> None:
        """Fails when `SigningSecrets` asks about others without a limit, or keeps what no webhook fitted."""
        assert [deliver_genuine(one_process, app_id=known)[0] for known in ("genuine", "shop")] == [200, 200]
        stand_ins.fault("key-service", "delay", seconds=1, times=0)
        before = asks_about_webhooks(stand_ins)
        names = queue_of(name for number in range(FORGED) for name in ("shop", f"app-{number}"))
        began_at = time.monotonic()
        with ThreadPoolExecutor(SENDERS) as threads:
            flood = [threads.submit(forge, one_process, names, seconds=SECONDS) for _ in range(SENDERS)]
            genuine = list(deliveries_during(flood, one_process))

        took = time.monotonic() - began_at
        answers: Counter[int] = sum((sent.result() for sent in flood), Counter())
        asks = asks_about_webhooks(stand_ins) - before
        slowest = max(seconds for _, seconds in genuine)
        print(f"{answers} in {took:.1f} s, {asks} asks; {len(genuine)} genuine, the slowest in {slowest:.3f} s")
        assert answers.keys() <= {400, 503}
        assert answers.total() == 2 * FORGED
        assert asks < MOST_ASKS * max(1, took / 10)
        assert {status for status, _ in genuine} == {200}
        assert slowest < MOST_SECONDS

    def test_it_leaves_threads_to_all_others(self, one_process: WebProcess, stand_ins: StandIns) -> None:
        """Fails when those who ask about apps, or wait for what another has asked, have no limit at once."""
        stand_ins.fault("key-service", "hang", times=0, path="stripe-webhook")
        stand_ins.fault("stripe", "delay", seconds=4, times=0)
        names = [name for number in range(THREADS) for name in ("shop", f"app-{number}")]
        with ThreadPoolExecutor(CREATES + len(names)) as threads:
            creates = [threads.submit(one_process.post, "/payment-intent/create", intent()) for _ in range(CREATES)]
            wait_until(lambda: len(stand_ins.runs()) == CREATES, seconds=10, what="all creates to be under way")
            flood = [threads.submit(forge, one_process, queue_of([name])) for name in names]
            wait_until(lambda: asks_about_webhooks(stand_ins) > 0, seconds=5, what="the flood")
            began_at = time.monotonic()

            assert try_to_deliver(one_process, event("customer.created", {"id": "cus_1", "object": "customer"})) == 200
            assert requests.get(f"{one_process.url}/health/ready", timeout=30).status_code == 200
            assert time.monotonic() - began_at < MOST_SECONDS
            assert not all(sent.done() for sent in flood)
            assert not any(create.done() for create in creates)
            assert {create.result().status_code for create in creates} == {200}
            assert sum((sent.result() for sent in flood), Counter()).keys() <= {503, 504}
        stand_ins.heal()
