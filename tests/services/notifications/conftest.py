"""An app that listens on this machine, and a worker that tells it."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.schemas.events import EventBodySchema
from app.services import Services
from app.services.notifications.deliver import Delivered, deliver_events
from app.services.upstreams.call_context import CallContext, Deadline
from app.services.upstreams.keys import provider_of_endpoint
from tests.conftest import environment_of
from tests.factories import intent
from tests.receivers import Receiver, receiver
from tests.stand_ins import StandIns
from tests.webhooks import deliver, event, paid_intent


@pytest.fixture
def environment(database_url: str, stand_ins: StandIns) -> dict[str, str]:
    return {**environment_of(database_url, stand_ins), "ALLOW_PRIVATE_ENDPOINTS": "1", "KEY_CACHE_SECONDS": "0"}


@pytest.fixture
def endpoint() -> Iterator[Receiver]:
    with receiver() as listening:
        yield listening


@dataclass
class Shop:
    """An app that has payments, and endpoints."""

    client: FlaskClient
    db: Connection
    services: Services
    secrets: dict[str, str] = field(default_factory=dict)

    def listen(self, url: str, **more: Any) -> str:
        """Make an endpoint; the value is its id."""
        made = self.client.post("/event-endpoints/create", json={"appId": "shop", "url": url, **more})
        assert made.status_code == 200, made.json
        self.secrets[made.json["endpointId"]] = made.json["secret"]
        return str(made.json["endpointId"])

    def store_secret(self, endpoint_id: uuid.UUID) -> None:
        """Give an endpoint a secret that was made without one."""
        context = CallContext("TEST", "test", "test", Deadline.after(5))
        self.services.keys.store(provider_of_endpoint(endpoint_id), "shop", "whsec_MfKQ9r8GKYqrTwjUPD8ILP", context)

    def create(self) -> dict[str, Any]:
        """Make a payment; the value is what its caller is answered."""
        return dict(self.client.post("/payment-intent/create", json=intent(orgId=...)).json)

    def pay(self, created: dict[str, Any]) -> None:
        assert deliver(self.client, event("payment_intent.succeeded", paid_intent(created["paymentIntentId"]))).json

    def refund(self, created: dict[str, Any], amount: int = 10) -> None:
        refund = {"id": f"re_{uuid.uuid4().hex}", "object": "refund", "amount": amount, "status": "succeeded"}
        deliver(self.client, event("refund.created", refund | {"payment_intent": created["paymentIntentId"]}))

    def tell(self) -> list[Delivered]:
        """Deliver what is due, as a worker's turn does."""
        return list(deliver_events(self.services, EventBodySchema().dump, command="flask worker"))

    def make_due(self) -> None:
        """Let time pass until every delivery is due."""
        self.db.execute(text("UPDATE deliveries SET next_attempt_at = now() WHERE state IN ('waiting', 'sending')"))
        self.db.execute(text("UPDATE event_endpoints SET paused_until = NULL"))

    def deliveries(self) -> list[Any]:
        query = "SELECT * FROM deliveries JOIN app_events ON number = event_number ORDER BY number"
        return list(self.db.execute(text(query)))

    def endpoints(self) -> list[dict[str, Any]]:
        return list(self.client.get("/event-endpoints?appId=shop").json["endpoints"])


@pytest.fixture
def shop(client: FlaskClient, db: Connection, services: Services) -> Shop:
    return Shop(client, db, services)


@pytest.fixture
def listening(shop: Shop, endpoint: Receiver) -> Callable[..., str]:
    """Makes an endpoint at a path of the receiver, which answers as it is told."""

    def listen(path: str = "/", *answers: str, **more: Any) -> str:
        endpoint.answers[path] = list(answers) or ["200"]
        return shop.listen(endpoint.url + path, **more)

    return listen
