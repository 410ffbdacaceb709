"""Stripe's side of a webhook: events, and their signatures."""

import itertools
import json
import time
from typing import Any

import requests
import stripe

from tests.web import WebProcess

SECRET = "whsec_tests"

_numbers = itertools.count(1)


def event(kind: str, stripe_object: dict[str, Any], *, created: int | None = None, **changes: Any) -> dict[str, Any]:
    """An event as Stripe sends it."""
    return {
        "id": f"evt_{next(_numbers)}",
        "object": "event",
        "type": kind,
        "created": int(time.time()) if created is None else created,
        "api_version": "2026-10-28.endive",
        "livemode": False,
        "data": {"object": stripe_object},
        **changes,
    }


def sign(payload: bytes, secret: str = SECRET, *, age_seconds: int = 0) -> str:
    """The header by which Stripe signs a body."""
    return stripe.WebhookSignature.generate_signature_header(
        payload.decode(), secret, timestamp=int(time.time()) - age_seconds
    )


def deliver(client: Any, body: dict[str, Any], *, app_id: str | None = None, secret: str = SECRET) -> Any:
    """Deliver an event to a test client."""
    payload = json.dumps(body).encode()
    path = "/webhooks/stripe" if app_id is None else f"/webhooks/stripe/{app_id}"
    return client.post(
        path, data=payload, content_type="application/json", headers={"Stripe-Signature": sign(payload, secret)}
    )


def try_to_deliver(web: WebProcess, body: dict[str, Any]) -> int:
    """Deliver an event once over HTTP, and return the status."""
    payload = json.dumps(body).encode()
    headers = {"Stripe-Signature": sign(payload), "Content-Type": "application/json"}
    return int(requests.post(f"{web.url}/webhooks/stripe", data=payload, headers=headers, timeout=60).status_code)


def paid_intent(intent_id: str, **fields: Any) -> dict[str, Any]:
    """A payment intent of 2,000 that was paid."""
    return {"id": intent_id, "object": "payment_intent", "amount_received": 2000, "amount": 2000, **fields}
