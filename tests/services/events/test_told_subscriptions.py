"""What apps are told of subscriptions and of saved payment methods: each change once, with what was before."""

import random
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from tests.services.events.test_outbox import add_endpoint
from tests.services.events.test_renewals import Subscriber
from tests.stand_ins import StandIns
from tests.webhooks import deliver, event

SUBSCRIPTIONS = text("SELECT * FROM app_events WHERE subscription_id IS NOT NULL ORDER BY number")
METHODS = text("SELECT * FROM app_events WHERE type LIKE 'payment_method.%' ORDER BY number")
CARD = {"id": "pm_1", "object": "payment_method", "type": "card"}


@pytest.fixture
def subscriber(client: FlaskClient, stand_ins: StandIns, services: Services) -> Subscriber:
    return Subscriber(client, stand_ins, services)


def told(db: Connection) -> list[str]:
    return [row.type.removeprefix("subscription.") for row in db.execute(SUBSCRIPTIONS)]


class TestSubscriptions:
    def test_each_change_is_told_once_in_its_order(self, subscriber: Subscriber, db: Connection) -> None:
        came = 0
        for action, options in (("", {}), ("renew", {}), ("renew", {"fail": True}), ("retry", {}), ("end", {})):
            if action:
                subscriber.act(action, **options)
            events = subscriber.told()
            for _ in range(2):
                subscriber.deliver(events[came:])
            came = len(events)

        rows = db.execute(SUBSCRIPTIONS).all()
        assert told(db) == ["started", "renewed", "renewed", "past_due", "ended"]
        assert [row.state_number for row in rows] == [1, 2, 3, 4, 5]
        assert {(row.app_id, row.subscription_id) for row in rows} == {("shop", subscriber.id)}
        assert rows[-1].data["previous"]["status"] == "active"

    def test_nothing_is_told_of_what_comes_late(self, subscriber: Subscriber, db: Connection) -> None:
        """Fails when each event is told, and not each change."""
        subscriber.act("renew")
        subscriber.act("end")
        events = subscriber.told()
        subscriber.deliver(events)
        before = told(db)
        subscriber.deliver(random.Random(1).sample(events, len(events)))

        assert told(db) == before
        assert before[-1] == "ended"

    def test_it_is_shown_as_it_was_then(self, client: FlaskClient, subscriber: Subscriber) -> None:
        subscriber.deliver(subscriber.told())
        subscriber.act("end")
        subscriber.deliver(subscriber.told())

        query = {"appId": "shop", "type": "subscription.started"}
        (started,) = client.get("/events", query_string=query).json["events"]
        shown = started["data"]["subscription"]
        assert (shown["subscriptionId"], shown["status"], shown["orgId"]) == (subscriber.id, "active", "org_1")
        assert shown["items"][0]["priceId"] == "price_sandbox_monthly"


class TestPaymentMethods:
    @pytest.fixture
    def customer_id(self, client: FlaskClient) -> str:
        return str(client.post("/customers/ensure", json={"appId": "shop", "orgId": "org_1"}).json["customerId"])

    def attached(self, customer_id: str) -> dict[str, Any]:
        return event("payment_method.attached", {**CARD, "customer": customer_id}, id="evt_1")

    def test_they_are_told_once_by_whichever_path(self, client: FlaskClient, customer_id: str, db: Connection) -> None:
        """Fails when an event that comes by two paths is told twice, or when a delivery is made of what isn't told."""
        add_endpoint(db)
        body = self.attached(customer_id)
        assert deliver(client, body, app_id="shop", secret="whsec_sandbox_shop").status_code == 200
        for _ in range(2):
            assert deliver(client, body).status_code == 200
        gone = event("payment_method.detached", {**CARD, "customer": None}, id="evt_2")
        gone["data"]["previous_attributes"] = {"customer": customer_id}
        assert deliver(client, gone).status_code == 200

        rows = db.execute(METHODS).all()
        assert [row.type for row in rows] == ["payment_method.saved", "payment_method.removed"]
        assert {row.data["payment_method"]["org_id"] for row in rows} == {"org_1"}
        assert sorted(db.execute(text("SELECT event_number FROM deliveries")).scalars()) == [row.number for row in rows]
        shown = client.get("/events", query_string={"appId": "shop"}).json["events"]
        assert shown[0]["data"]["paymentMethod"]["paymentMethodId"] == "pm_1"

    def test_another_apps_customer_is_nobodys_by_an_apps_path(
        self, client: FlaskClient, customer_id: str, db: Connection
    ) -> None:
        assert (
            deliver(client, self.attached(customer_id), app_id="other", secret="whsec_sandbox_other").status_code == 200
        )
        assert db.execute(METHODS).all() == []

    def test_nothing_is_told_of_those_of_a_customer_that_is_deleted(
        self, client: FlaskClient, customer_id: str, db: Connection
    ) -> None:
        client.delete("/customers/by-org/org_1", query_string={"appId": "shop"})
        gone = event("payment_method.detached", {**CARD, "customer": None}, id="evt_2")
        gone["data"]["previous_attributes"] = {"customer": customer_id}
        assert deliver(client, gone).status_code == 200
        assert db.execute(METHODS).all() == []
