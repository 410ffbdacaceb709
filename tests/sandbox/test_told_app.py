"""The stand-in of an app that is told what becomes of its payments."""

import json
from datetime import UTC, datetime

import requests
from standardwebhooks import Webhook

from tests.sandbox.conftest import Sandbox
from tests.sandbox.test_keys import HEADERS

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
EVENT = {
    "id": "1f0e6f5c-6f0b-4b0a-9d0e-3f5f0f6f7a11",
    "type": "payment.succeeded",
    "data": {"payment": {"id": "p-1", "appId": "demo", "status": "succeeded"}},
}


def tell(sandbox: Sandbox, body: str, signed: str) -> requests.Response:
    now = datetime.now(UTC)
    signature = Webhook(SECRET).sign("msg_1", now, signed)
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}
    return sandbox.call("POST", "/app/events", data=body, headers={**headers, "Content-Type": "application/json"})


class TestTake:
    def test_the_page_shows_what_was_verified_and_nothing_else(self, sandbox: Sandbox) -> None:
        body = json.dumps(EVENT)
        assert tell(sandbox, body, body).status_code == 400
        stored = {"appId": "demo", "provider": "stripe-service-events:1f0e", "apiKey": f"{SECRET},whsec_AAAA"}
        sandbox.call("POST", "/key-service/internal/app-keys", json=stored, headers=HEADERS)

        assert tell(sandbox, body.replace("p-1", "p-2"), body).status_code == 400
        assert tell(sandbox, body, body).status_code == 204
        page = sandbox.call("GET", "/?table=told").text
        assert "p-1" in page
        assert "p-2" not in page
