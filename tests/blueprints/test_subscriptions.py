"""Following subscriptions over HTTP."""

from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from tests.services.events.test_renewals import WHOSE, Subscriber
from tests.stand_ins import StandIns

Json = dict[str, Any]


@pytest.fixture
def subscriber(client: FlaskClient, stand_ins: StandIns, services: Services) -> Subscriber:
    return Subscriber(client, stand_ins, services)


class TestGetSubscription:
    def test_it_shows_what_stripe_told_last(self, client: FlaskClient, subscriber: Subscriber) -> None:
        subscriber.act("renew", fail=True)
        subscriber.deliver(subscriber.told())

        shown = client.get(f"/subscriptions/{subscriber.id}?appId=shop").json["subscription"]
        known = {"subscriptionId": subscriber.id, "paymentId": subscriber.payment_id, "appId": "shop", **WHOSE}
        assert {name: shown[name] for name in known} == known
        assert (shown["status"], shown["cancelAtPeriodEnd"], shown["endedAt"]) == ("past_due", False, None)
        (item,) = shown["items"]
        terms = {"quantity": 1, "unitAmountInCents": 2000, "currency": "usd", "interval": "month", "intervalCount": 1}
        assert item == {"itemId": item["itemId"], "priceId": "price_sandbox_monthly", **terms}
        assert shown["createdAt"] < shown["currentPeriodStart"] < shown["currentPeriodEnd"]

    def test_the_first_payment_names_its_state(self, client: FlaskClient, subscriber: Subscriber) -> None:
        assert client.get(f"/status/{subscriber.payment_id}").json["payment"]["subscriptionStatus"] is None
        subscriber.deliver(subscriber.told())
        assert client.get(f"/status/{subscriber.payment_id}").json["payment"]["subscriptionStatus"] == "active"
        subscriber.act("end")
        subscriber.deliver(subscriber.told())
        assert client.get(f"/status/{subscriber.payment_id}").json["payment"]["subscriptionStatus"] == "canceled"

    @pytest.mark.parametrize("query", ["sub_none?appId=shop", "{id}?appId=other", "%00?appId=shop"])
    def test_it_is_404_when_the_app_has_none(self, client: FlaskClient, subscriber: Subscriber, query: str) -> None:
        subscriber.deliver(subscriber.told())
        answer = client.get(f"/subscriptions/{query.format(id=subscriber.id)}")
        assert (answer.status_code, answer.json["error"]) == (404, "Subscription not found")


class TestListSubscriptionsByOrg:
    def test_it_lists_them_in_pages_the_newest_first(
        self, client: FlaskClient, stand_ins: StandIns, services: Services, db: Connection
    ) -> None:
        subscribers = [Subscriber(client, stand_ins, services) for _ in range(3)]
        subscribers[0].deliver(subscribers[0].told())
        for number, each in enumerate(subscribers):
            values = {"id": each.id, "seconds": number}
            db.execute(text("UPDATE subscriptions SET created_at = to_timestamp(:seconds) WHERE id = :id"), values)
        found, cursor = [], ""
        while True:
            page = client.get(f"/subscriptions/by-org/org_1?limit=2&cursor={cursor}").json
            found += [each["subscriptionId"] for each in page["subscriptions"]]
            if (cursor := page["nextCursor"]) is None:
                break
        assert found == [each.id for each in subscribers[::-1]]
        assert client.get("/subscriptions/by-org/org_1?appId=other").json["subscriptions"] == []
        assert client.get("/subscriptions/by-org/org_1", headers={"X-Org-Id": "org_2"}).status_code == 400

    @pytest.mark.parametrize("cursor", ["x", "MjAyNi0xMS0yM1QxMjozMDoyNSswMDowMC8A"])
    def test_a_cursor_of_nobody_is_400(self, client: FlaskClient, cursor: str) -> None:
        answer = client.get(f"/subscriptions/by-org/org_1?cursor={cursor}")
        assert (answer.status_code, answer.json["code"]) == (400, "invalid_request")
