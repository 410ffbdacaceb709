"""Webhooks: signed, sent by threads of their own, and sent again until they are taken. https://docs.stripe.com/webhooks."""

import hashlib
import heapq
import hmac
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import urllib3

from app.sandbox.clock import Clock
from app.sandbox.json_object import JsonObject
from app.sandbox.ledger import Entry, Ledger
from app.sandbox.settings import SandboxSettings
from app.sandbox.stripe import webhook_endpoints

if TYPE_CHECKING:
    from app.sandbox.stripe.account import Account, Accounts

MODES = {"deliver": "pending", "hold": "held", "drop": "dropped"}
ORDERS = ("forward", "reverse", "random")
THREADS = 8
TIMEOUT_SECONDS = 10
PAUSES_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 3600)
GIVE_UP_SECONDS = 3 * 24 * 3600
DRAIN_SECONDS = 2


@dataclass(frozen=True)
class Endpoint:
    """Where events go; without an account, those of all accounts.

    :param api_version: what events say that they are rendered in; None leaves that as it is
    :param id: of an account's own endpoint
    """

    url: str
    secret: str
    account: str | None = None
    api_version: str | None = None
    id: str | None = None


@dataclass(eq=False)
class Delivery:
    """One event on its way to one endpoint."""

    event: JsonObject
    account_id: str
    endpoint: Endpoint
    state: str
    since: float
    attempts: int = 0
    last_status: int | None = None


class Outbox:
    """The deliveries of all events since the sandbox was started or reset."""

    def __init__(self, lock: threading.RLock, clock: Clock, ledger: Ledger, settings: SandboxSettings) -> None:
        self._clock = clock
        self._ledger = ledger
        self._default = Endpoint(settings.webhook_url, settings.webhook_secret)
        self._ready = threading.Condition(lock)
        self._in_flight = 0
        self._sequence = itertools.count()
        self._queue: list[tuple[float, int, list[Delivery]]] = []
        self._deliveries: dict[str, list[Delivery]] = {}
        self.mode = "deliver"
        self.endpoints = [self._default]

    def start(self) -> None:
        for number in range(THREADS):
            threading.Thread(target=self._work, name=f"webhooks-{number}", daemon=True).start()

    def publish(self, account: "Account", event: JsonObject) -> None:
        """Take a new event, and do with it what the mode says."""
        made = self._make(account, event, MODES[self.mode])
        event["pending_webhooks"] = 0 if self.mode == "drop" else len(made)
        self._send(made)

    def deliver(self, account: "Account", event: JsonObject) -> None:
        """Deliver an event again, whatever the mode."""
        self._send(self._make(account, event, "pending"))

    def release(self, *, order: str | None = None, seed: int | None = None, copies: int = 1) -> int:
        """Send all that is held, each `copies` times; in an order: one after the other, else at the same time."""
        held = [delivery for delivery in self._all() if delivery.state == "held"]
        for delivery in held:
            delivery.state = "pending"
        extra = [self._copy(delivery) for delivery in held for _ in range(copies - 1)]
        released = [*held, *extra]
        if order is None:
            self._send(released)
            return len(released)
        if order == "reverse":
            released.reverse()
        elif order == "random":
            random.Random(seed).shuffle(released)
        self._queue_up(released, self._clock.time())
        return len(released)

    def cancel(self, endpoint_id: str) -> None:
        """Send nothing more to an endpoint that is gone."""
        for delivery in self._all():
            if delivery.endpoint.id == endpoint_id and delivery.state in ("pending", "held"):
                delivery.state = "dropped"

    def wake(self) -> None:
        """Look at the clock again."""
        self._ready.notify_all()

    def states(self, event_id: str) -> list[JsonObject]:
        """How the deliveries of one event stand."""
        return [
            {
                "url": delivery.endpoint.url,
                "state": delivery.state,
                "attempts": delivery.attempts,
                "lastStatus": delivery.last_status,
            }
            for delivery in self._deliveries.get(event_id, [])
        ]

    def summary(self) -> JsonObject:
        counts = Counter(delivery.state for delivery in self._all())
        retrying = sum(delivery.state == "pending" and delivery.attempts > 0 for delivery in self._all())
        return {
            "mode": self.mode,
            "endpoints": [vars(endpoint) for endpoint in self.endpoints],
            **{state: counts[state] for state in ("pending", "held", "delivered", "failed", "dropped")},
            "retrying": retrying,
            "inFlight": self._in_flight,
            "idle": counts["pending"] == 0 and self._in_flight == 0,
        }

    def _all(self) -> Iterable[Delivery]:
        return itertools.chain.from_iterable(self._deliveries.values())

    def _make(self, account: "Account", event: JsonObject, state: str) -> list[Delivery]:
        configured = [endpoint for endpoint in self.endpoints if endpoint.account in {None, account.id}]
        made = [
            Delivery(event, account.id, endpoint, state, since=self._clock.time())
            for endpoint in [*configured, *_own_endpoints(account, event["type"])]
        ]
        self._deliveries.setdefault(event["id"], []).extend(made)
        return made

    def _copy(self, delivery: Delivery) -> Delivery:
        copied = Delivery(delivery.event, delivery.account_id, delivery.endpoint, "pending", since=self._clock.time())
        self._deliveries[delivery.event["id"]].append(copied)
        return copied

    def _send(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            if delivery.state == "pending":
                self._queue_up([delivery], self._clock.time())

    def _queue_up(self, batch: list[Delivery], due: float) -> None:
        heapq.heappush(self._queue, (due, next(self._sequence), batch))
        self._ready.notify()

    def _work(self) -> None:
        pool = urllib3.PoolManager()
        while True:
            batch = self._next_batch()
            for delivery in batch:
                self._attempt(pool, delivery)
            with self._ready:
                self._in_flight -= 1
                self._ready.notify_all()

    def _next_batch(self) -> list[Delivery]:
        with self._ready:
            while not self._queue or self._queue[0][0] > self._clock.time():
                self._ready.wait(self._queue[0][0] - self._clock.time() if self._queue else None)
            self._in_flight += 1
            return heapq.heappop(self._queue)[2]

    def _attempt(self, pool: urllib3.PoolManager, delivery: Delivery) -> None:
        with self._ready:
            if delivery.state != "pending":
                return
            version = delivery.endpoint.api_version
            body = orjson.dumps(delivery.event | ({"api_version": version} if version else {}))
        status = _post(pool, delivery.endpoint, body)
        with self._ready:
            if delivery.state == "pending":
                self._record(delivery, status)

    def _record(self, delivery: Delivery, status: int | None) -> None:
        delivery.attempts += 1
        delivery.last_status = status
        entry = Entry(
            service="webhook",
            method="POST",
            path=delivery.endpoint.url,
            status=status,
            effect=delivery.event["type"],
            object_id=delivery.event["id"],
            account=delivery.account_id,
        )
        self._ledger.append(entry, at=self._clock.iso())
        if status is not None and 200 <= status < 300:
            delivery.state = "delivered"
            delivery.event["pending_webhooks"] = max(delivery.event["pending_webhooks"] - 1, 0)
        elif self._clock.time() - delivery.since > GIVE_UP_SECONDS:
            delivery.state = "failed"
        else:
            pause = PAUSES_SECONDS[min(delivery.attempts, len(PAUSES_SECONDS)) - 1]
            self._queue_up([delivery], self._clock.time() + pause)

    def clear(self) -> None:
        """Forget all deliveries."""
        for delivery in self._all():
            delivery.state = "forgotten"
        self._queue.clear()
        self._deliveries.clear()
        self.mode = "deliver"
        self.endpoints = [self._default]

    def drain(self) -> None:
        """Wait for what is being sent, with the lock let go, and not for long."""
        self._ready.wait_for(lambda: self._in_flight == 0, DRAIN_SECONDS)

    def to_state(self) -> JsonObject:
        """The mode, and the deliveries that aren't done; the endpoints are a matter of the settings."""
        kept = [
            {
                "event": delivery.event["id"],
                "account": delivery.account_id,
                "endpoint": vars(delivery.endpoint),
                "state": delivery.state,
                "since": delivery.since,
                "attempts": delivery.attempts,
                "lastStatus": delivery.last_status,
            }
            for delivery in self._all()
        ]
        return {"mode": self.mode, "deliveries": kept}

    def load(self, state: JsonObject, accounts: "Accounts") -> None:
        self.mode = state["mode"]
        for kept in state["deliveries"]:
            delivery = Delivery(
                event=accounts.by_id[kept["account"]].objects["event"][kept["event"]],
                account_id=kept["account"],
                endpoint=Endpoint(**kept["endpoint"]),
                state=kept["state"],
                since=kept["since"],
                attempts=kept["attempts"],
                last_status=kept["lastStatus"],
            )
            self._deliveries.setdefault(kept["event"], []).append(delivery)
            self._send([delivery])


def _own_endpoints(account: "Account", event_type: str) -> list[Endpoint]:
    """Those of the account's endpoints that are sent events of a type."""
    return [
        Endpoint(own["url"], account.endpoint_secrets[own["id"]], account.id, own["api_version"], own["id"])
        for own in account.where(webhook_endpoints.RESOURCE)
        if webhook_endpoints.takes(own, event_type)
    ]


def signature(body: bytes, secret: str, timestamp: int) -> str:
    """The `Stripe-Signature` header of a body. https://docs.stripe.com/webhooks#verify-manually."""
    mac = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return f"t={timestamp},v1={mac.hexdigest()}"


def _post(pool: urllib3.PoolManager, endpoint: Endpoint, body: bytes) -> int | None:
    """Send the body, signed now; None when no answer came."""
    headers: dict[str, Any] = {
        "Content-Type": "application/json; charset=utf-8",
        "Stripe-Signature": signature(body, endpoint.secret, int(time.time())),
        "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
    }
    try:
        answer = pool.request(
            "POST", endpoint.url, body=body, headers=headers, timeout=TIMEOUT_SECONDS, retries=False, redirect=False
        )
    except urllib3.exceptions.HTTPError:
        return None
    return answer.status
