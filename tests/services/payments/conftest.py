"""What tests of payments share: a caller, the customer and the bank, who do something with one payment."""

from typing import Any

import pytest
import requests
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from app.services.kinds import KINDS
from app.services.operations.recovery import recover_operations
from tests.books import objects_of
from tests.factories import checkout, intent
from tests.stand_ins import StandIns
from tests.webhooks import deliver

Json = dict[str, Any]

STRIPE_KEY = "sk_test_sandbox_shop"
CREATE_INTENT = "/payment-intent/create"
APP_AND_ORG = {"appId": "shop", "orgId": "org_1"}


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


class Payer(Actor):
    """An organisation whose customer has saved what is charged."""

    def stripe(self, path: str, **params: Any) -> Json:
        """What an app does at Stripe by itself."""
        answer = requests.post(f"{self.stand_ins.url}/v1/{path}", auth=(STRIPE_KEY, ""), data=params, timeout=10)
        assert answer.ok, answer.text
        return dict(answer.json())

    def customer(self, **more: Any) -> str:
        return str(self.client.post("/customers/ensure", json={**APP_AND_ORG, **more}).json["customerId"])

    def save(self, name: str = "pm_card_visa", behaves: str | None = None, **organisation: Any) -> str:
        """A method that the customer has saved."""
        method = str(self.stripe(f"payment_methods/{name}/attach", customer=self.customer(**organisation))["id"])
        if behaves:
            self.stand_ins.control(f"methods/{method}/behave", **{"as": behaves})
        return method

    def charge(self, key: str | None = "key", **changes: Any) -> Any:
        body = {**APP_AND_ORG, "amountInCents": 2000, "offSession": True, **changes}
        return self.client.post(CREATE_INTENT, json=body, headers={"Idempotency-Key": key} if key else {})

    def invoices(self) -> list[str]:
        """What has become of the invoices."""
        return [invoice["status"] for invoice in objects_of(self.stand_ins, "invoice")]

    def stats(self) -> Json:
        shown = dict(self.client.get("/stats?appId=shop").json)
        return {name: shown[name] for name in ("totalPayments", "successCount", "failureCount")} | {
            "gross": sum(each["grossInCents"] for each in shown["currencies"])
        }


class Recovering:
    """What an actor's callers have no answer to, and what recovery does with that."""

    def __init__(self, actor: Actor, services: Services, db: Connection) -> None:
        self.actor, self.services, self.db = actor, services, db
        self.stand_ins = actor.stand_ins

    def recover(self) -> list[str]:
        self.db.execute(text("UPDATE operations SET lease_until = now() WHERE step <> 'finished'"))
        done = recover_operations(self.services, KINDS, command="flask recover", at_once=True)
        return [str(one.outcome) for one in done]

    def pass_a_day(self) -> None:
        """Stripe forgets every idempotency key."""
        self.db.execute(text("UPDATE operations SET asked_at = asked_at - interval '24 hours'"))
        self.stand_ins.control("clock", advance=24 * 3600)

    def set_key(self, key: str | None) -> None:
        """Another key of the app in key-service, or none."""
        # Where the app has a key, another one would open the same account.
        self.stand_ins.control("keys", appId="shop", key=None)
        self.stand_ins.control("keys", appId="shop", key=key)
        self.services.keys._keys.clear()


@pytest.fixture
def actor(client: FlaskClient, stand_ins: StandIns) -> Actor:
    return Actor(client, stand_ins)


@pytest.fixture
def payer(client: FlaskClient, stand_ins: StandIns) -> Payer:
    return Payer(client, stand_ins)


def state_of(shown: Json) -> tuple[Any, ...]:
    payment = shown["payment"]
    names = ("status", "amountReceivedInCents", "amountRefundedInCents", "amountReturnedInCents")
    return tuple(payment[name] for name in names)
