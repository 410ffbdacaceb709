"""Stripe, key-service and runs-service for benchmarks: constant answers of the true size, at next to no cost.

`python -m tests.bench.upstreams 3013 --latency-ms 100` listens on that port and answers every call that much later.
"""

import argparse
import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

FIXTURES = json.loads((Path(__file__).parents[2] / "app" / "sandbox" / "fixtures.json").read_bytes())
NEW_ID = b"NEW_ID"
RUN = {
    "id": "NEW_ID",
    "clerkOrgId": "org_1",
    "appId": "shop",
    "serviceName": "stripe-service",
    "taskName": "create-payment-intent",
    "status": "running",
    "parentRunId": None,
    "brandId": None,
    "campaignId": None,
    "startedAt": "2026-01-01T00:00:00.000Z",
    "completedAt": None,
}
COST = {"id": "NEW_ID", "runId": "NEW_ID", "costName": "stripe-payment-intent", "quantity": 1, "totalCostInCents": 0}
METADATA = {"paymentId": str(uuid.UUID(int=1)), "appId": "shop", "runId": str(uuid.UUID(int=2)), "orgId": "org_1"}
INTENT = {
    "id": "pi_NEW_ID",
    "amount": 2000,
    "client_secret": "pi_NEW_ID_secret_0123456789abcdefghijklmno",
    "next_action": None,
    "metadata": METADATA,
}
SESSION = {
    "id": "cs_test_NEW_ID",
    "url": "https://checkout.stripe.com/c/pay/cs_test_NEW_ID",
    "amount_total": 2000,
    "currency": "usd",
    "mode": "payment",
    "payment_status": "unpaid",
    "payment_intent": None,
    "status": "open",
    "subscription": None,
    "metadata": METADATA,
}


def _answer(status: str, body: Any, *headers: str) -> bytes:
    # Stripe indents its JSON; NEW_ID is as long as its replacement, so that the length holds.
    content = json.dumps(body, indent=2).encode().replace(NEW_ID, b"0" * 32)
    lines = (f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(content)}", *headers)
    return "\r\n".join([*lines, "", ""]).encode() + content


def _stripe(resource: str, changes: dict[str, Any]) -> bytes:
    headers = ("Request-Id: req_0123456789abcd", "Stripe-Version: 2026-10-28.endive", "Cache-Control: no-cache")
    return _answer("200 OK", FIXTURES[resource] | changes, *headers)


KEY_ANSWER = _answer("200 OK", {"provider": "stripe", "key": "sk_test_bench"})
RUN_CREATED = _answer("201 Created", RUN)
RUN_ENDED = _answer("200 OK", RUN | {"status": "completed"})
COST_ADDED = _answer("201 Created", {"costs": [COST]})
INTENT_CREATED = _stripe("payment_intent", INTENT)
SESSION_CREATED = _stripe("checkout.session", SESSION)
NOT_FOUND = _answer("404 Not Found", {"error": "the benchmark's upstreams don't know this call"})


def answer_to(method: str, path: str) -> bytes:
    """The whole answer to a call, with an id of its own."""
    match method, path.partition("?")[0].split("/")[1:]:
        case "GET", ["key-service", "internal", "app-keys", "stripe", "decrypt"]:
            answer = KEY_ANSWER
        case "POST", ["runs-service", "v1", "runs"]:
            answer = RUN_CREATED
        case "POST", ["runs-service", "v1", "runs", _, "costs"]:
            answer = COST_ADDED
        case "PATCH", ["runs-service", "v1", "runs", _]:
            answer = RUN_ENDED
        case "POST", ["v1", "payment_intents"]:
            answer = INTENT_CREATED
        case "POST", ["v1", "checkout", "sessions"]:
            answer = SESSION_CREATED
        case _:
            answer = NOT_FOUND
    return answer.replace(b"0" * 32, uuid.uuid4().hex.encode())


class Connection(asyncio.Protocol):
    """One keep-alive connection, on which calls come one after the other."""

    def __init__(self, latency_seconds: float) -> None:
        self._latency_seconds = latency_seconds
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < _content_length(head):
            return
        self._received = b""
        method, path, _ = head.partition(b"\r\n")[0].decode().split(" ")
        self._answer(answer_to(method, path))

    def _answer(self, answer: bytes) -> None:
        if self._latency_seconds:
            asyncio.get_running_loop().call_later(self._latency_seconds, self._transport.write, answer)
        else:
            self._transport.write(answer)


def _content_length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.partition(b"\r\n")[0]) if found else 0


async def serve(port: int, latency_seconds: float) -> None:
    """Answer until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(latency_seconds), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.latency_ms / 1000))
