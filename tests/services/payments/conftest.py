"""What tests of payments share: a caller, the customer and the bank, who do something with one payment."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.factories import checkout, intent
from tests.stand_ins import StandIns
from tests.webhooks import deliver

Json = dict[str, Any]


class Actor:
    """A caller, the customer and the bank: what they do with one payment after the other."""

    def __init__(self, client: FlaskClient, stand_ins: StandIns) -> None:
        self.client, self.stand_ins = client, stand_ins
        self.told: set[str] = set()

    def intent(self, action: str | None = None, **changes: Any) -> Json:
        """A payment by an intent with which the customer has done something."""
        made = self.client.post("/payment-intent/create", json=intent(**changes)).json
        if action:
            self.stand_ins.control(f"intents/{made['paymentIntentId']}/{action}")
        return dict(made)

    def checkout(self, action: str | None = None, **changes: Any) -> Json:
        made = self.client.post("/checkout/create", json=checkout(**changes)).json
        if action:
            self.stand_ins.control(f"checkout/{made['sessionId']}/{action}")
        return dict(made)

    def hear(self) -> None:
        """Deliver every event of Stripe's that was not delivered before, the oldest first."""
        for each in self.stand_ins.events():
            if each["id"] not in self.told:
                assert deliver(self.client, each).status_code == 200
                self.told.add(each["id"])

    def act(self, payment: Json, action: str, key: str | None = "key", **body: Any) -> Any:
        return self.client.post(
            f"/payments/{payment['paymentId']}/{action}",
            json={"appId": "shop", **body},
            headers={"Idempotency-Key": key} if key else {},
        )

    def status(self, payment: Json) -> Json:
        return dict(self.client.get(f"/status/{payment['paymentId']}").json)


@pytest.fixture
def actor(client: FlaskClient, stand_ins: StandIns) -> Actor:
    return Actor(client, stand_ins)


def state_of(shown: Json) -> tuple[Any, ...]:
    payment = shown["payment"]
    names = ("status", "amountReceivedInCents", "amountRefundedInCents", "amountReturnedInCents")
    return tuple(payment[name] for name in names)
