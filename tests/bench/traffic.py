"""What is sent to each route, as bytes, and what an answer must say for it to count."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.bench.population import ORG_OF_1000, payment_id
from tests.bench.upstreams import FIXTURES
from tests.web import API_KEY
from tests.webhooks import sign

PAID_PAYMENTS = 10_000
FIRST_UNPAID = PAID_PAYMENTS + 1
DUPLICATED_EVENTS = 200
EVENT_BYTES = 4096
# https://docs.stripe.com/metadata#data
METADATA_VALUE_LENGTH = 500

APP = "shop"
TRACKED = {"appId": APP, "orgId": "org_1", "runId": "7d0b3f0e-53a5-4a3c-9d0a-0c9cbb1f6a01", "brandId": "brand_1"}
INTENT = {**TRACKED, "amountInCents": 2000, "currency": "usd", "description": "Order", "metadata": {"orderId": "1042"}}
CHECKOUT = {
    **TRACKED,
    "lineItems": [{"priceId": "price_sandbox", "quantity": 2}],
    "successUrl": "https://shop.example/ok?session={CHECKOUT_SESSION_ID}",
    "cancelUrl": "https://shop.example/cart",
    "metadata": {"orderId": "1042"},
}


@dataclass(frozen=True)
class Route:
    """A route, how many times the yardstick's CPU it may take, and the requests for it, as many as are wanted."""

    name: str
    target: float
    requests: Iterator[bytes]
    is_answered_by: Callable[[Any], bool]


@dataclass(frozen=True)
class Effects:
    """What requests leave in the database: payments created, payments paid by an event, events of no payment."""

    created: int = 0
    paid: int = 0
    unmatched: int = 0


class Traffic:
    """The requests for all routes; `sent` counts what was handed out.

    A new event that pays is about the next unpaid payment, one that matches no payment about a new customer, so that no
    two are alike.
    """

    def __init__(self) -> None:
        self._unpaid = itertools.count(FIRST_UNPAID)
        self.sent: Counter[str] = Counter()
        self.routes = {route.name: route for route in self._routes()}

    def take(self, name: str, count: int) -> Iterator[bytes]:
        """The next requests for a route."""
        self.sent[name] += count
        return itertools.islice(self.routes[name].requests, count)

    def mixed(self, count: int) -> Iterator[bytes]:
        """Requests for all routes, mostly webhooks and looks at a payment."""
        names = ("webhook-paid", "status", "intent-create", "webhook-unmatched", "status", "webhook-duplicate")
        turns = itertools.cycle((*names, "webhook-paid", "status-by-org", "checkout-create", "stats"))
        for name in itertools.islice(turns, count):
            yield from self.take(name, 1)

    def _routes(self) -> Iterator[Route]:
        received = {"received": True}
        yield Route("webhook-paid", 1.6, map(_paid, self._unpaid), lambda answer: answer == received)
        yield Route("webhook-unmatched", 1.6, map(_unmatched, itertools.count(1)), lambda answer: answer == received)
        yield Route("webhook-duplicate", 1.4, self._duplicates(), lambda answer: answer == received)
        yield Route("intent-create", 8, _post("/payment-intent/create", INTENT), lambda answer: answer["clientSecret"])
        yield Route("checkout-create", 8, _post("/checkout/create", CHECKOUT), lambda answer: answer["url"])
        yield Route("status", 1.5, _statuses(), lambda answer: len(answer["events"]["successes"]) == 1)
        yield Route("status-by-org", 3, _page(), lambda answer: len(answer["payments"]) == 100)
        counts = {"orgId": ORG_OF_1000}
        yield Route("stats", 1.5, _post("/stats", counts), lambda answer: answer["totalPayments"] == 1000)

    @property
    def effects(self) -> Effects:
        """What the requests so far must have left; a duplicated event leaves what it left the first time."""
        return Effects(
            created=self.sent["intent-create"] + self.sent["checkout-create"],
            paid=self.sent["webhook-paid"] + min(self.sent["webhook-duplicate"], DUPLICATED_EVENTS),
            unmatched=self.sent["webhook-unmatched"],
        )

    def _duplicates(self) -> Iterator[bytes]:
        for number in itertools.cycle(list(itertools.islice(self._unpaid, DUPLICATED_EVENTS))):
            yield _paid(number)


def http(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request as a client on a keep-alive connection sends it."""
    sent = {"Host": "bench", "X-API-Key": API_KEY, **headers}
    if body:
        sent |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def _post(path: str, body: dict[str, Any]) -> Iterator[bytes]:
    return itertools.repeat(http("POST", path, json.dumps(body).encode()))


def _page() -> Iterator[bytes]:
    return itertools.repeat(http("GET", f"/status/by-org/{ORG_OF_1000}"))


def _statuses() -> Iterator[bytes]:
    for number in itertools.cycle(range(1, PAID_PAYMENTS)):
        yield http("GET", f"/status/{payment_id(number)}")


def _paid(number: int) -> bytes:
    """The webhook that pays an unpaid payment."""
    payload = _PAID_EVENT.replace(b"NUMBER", str(number).encode()).replace(b"PAYMENT", str(payment_id(number)).encode())
    return _webhook(payload)


def _unmatched(number: int) -> bytes:
    """A webhook about an object that belongs to no payment."""
    return _webhook(_UNMATCHED_EVENT.replace(b"NUMBER", str(number).encode()))


def _webhook(payload: bytes) -> bytes:
    return http("POST", "/webhooks/stripe", payload, **{"Stripe-Signature": sign(payload)})


def _paid_event() -> bytes:
    intent = FIXTURES["payment_intent"] | {
        "id": "pi_bench_NUMBER",
        "status": "succeeded",
        "amount_received": 2000,
        "latest_charge": "ch_bench_NUMBER",
        "next_action": None,
        "metadata": {"paymentId": "PAYMENT", "appId": "app_1"},
    }
    return _event("evt_NUMBER", "payment_intent.succeeded", intent)


def _unmatched_event() -> bytes:
    customer = FIXTURES["customer"] | {"id": "cus_bench_NUMBER", "metadata": {}}
    return _event("evt_customer_NUMBER", "customer.created", customer)


def _event(event_id: str, event_type: str, stripe_object: dict[str, Any]) -> bytes:
    """An event as Stripe sends it, indented, and with so much metadata that it has its 4 KB."""
    event = FIXTURES["event"] | {"id": event_id, "type": event_type, "created": 1_770_000_000}
    event["data"] = {"object": stripe_object}
    metadata = stripe_object["metadata"]
    while (missing := EVENT_BYTES - len(json.dumps(event, indent=2))) > 0:
        metadata[f"note{len(metadata)}"] = "x" * min(missing, METADATA_VALUE_LENGTH)
    return json.dumps(event, indent=2).encode()


_PAID_EVENT = _paid_event()
_UNMATCHED_EVENT = _unmatched_event()
