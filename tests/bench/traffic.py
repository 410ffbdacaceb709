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


class Traffic:
    """The requests for all routes; `sent` counts what was handed out.

    New events are each about the next unpaid payment, so that no two are alike.
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
        names = ("webhook-new", "status", "intent-create", "webhook-new", "status", "webhook-duplicate", "webhook-new")
        turns = itertools.cycle((*names, "status-by-org", "checkout-create", "stats"))
        for name in itertools.islice(turns, count):
            yield from self.take(name, 1)

    def _routes(self) -> Iterator[Route]:
        received = {"received": True}
        yield Route("webhook-new", 1.6, map(_webhook, self._unpaid), lambda answer: answer == received)
        yield Route("webhook-duplicate", 1.4, self._duplicates(), lambda answer: answer == received)
        yield Route("intent-create", 8, _post("/payment-intent/create", INTENT), lambda answer: answer["clientSecret"])
        yield Route("checkout-create", 8, _post("/checkout/create", CHECKOUT), lambda answer: answer["url"])
        yield Route("status", 1.5, _statuses(), lambda answer: len(answer["events"]["successes"]) == 1)
        yield Route("status-by-org", 3, _page(), lambda answer: len(answer["payments"]) == 100)
        counts = {"orgId": ORG_OF_1000}
        yield Route("stats", 1.5, _post("/stats", counts), lambda answer: answer["totalPayments"] == 1000)

    @property
    def creates(self) -> int:
        """How many payments were to be made so far."""
        return self.sent["intent-create"] + self.sent["checkout-create"]

    @property
    def events(self) -> int:
        """How many events were sent so far, each counted once."""
        return self.sent["webhook-new"] + min(self.sent["webhook-duplicate"], DUPLICATED_EVENTS)

    def _duplicates(self) -> Iterator[bytes]:
        for number in itertools.cycle(list(itertools.islice(self._unpaid, DUPLICATED_EVENTS))):
            yield _webhook(number)


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


def _webhook(number: int) -> bytes:
    payload = _EVENT.replace(b"NUMBER", str(number).encode()).replace(b"PAYMENT", str(payment_id(number)).encode())
    return http("POST", "/webhooks/stripe", payload, **{"Stripe-Signature": sign(payload)})


def _event() -> bytes:
    """`payment_intent.succeeded` as Stripe sends it, indented, and with so much metadata that it has its 4 KB."""
    metadata = {"paymentId": "PAYMENT", "appId": "app_1"}
    intent = FIXTURES["payment_intent"] | {
        "id": "pi_bench_NUMBER",
        "status": "succeeded",
        "amount_received": 2000,
        "latest_charge": "ch_bench_NUMBER",
        "next_action": None,
        "metadata": metadata,
    }
    event = FIXTURES["event"] | {"id": "evt_NUMBER", "type": "payment_intent.succeeded", "created": 1_770_000_000}
    event["data"] = {"object": intent}
    while (missing := EVENT_BYTES - len(json.dumps(event, indent=2))) > 0:
        metadata[f"note{len(metadata)}"] = "x" * min(missing, METADATA_VALUE_LENGTH)
    return json.dumps(event, indent=2).encode()


_EVENT = _event()
