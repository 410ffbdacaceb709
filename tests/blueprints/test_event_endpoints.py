"""Where apps are told, and what: made, listed, tested, mended and deleted, each app its own."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.models import KeyScope
from app.request_context import EXTENSION_KEY
from app.services.access.keys import create_key
from app.services.notifications.endpoints import EVENT_TYPES, MAX_ENDPOINTS
from tests.conftest import environment_of
from tests.factories import intent
from tests.stand_ins import StandIns
from tests.webhooks import deliver, event, paid_intent

URL = "https://127.0.0.1:8443/events"
NOBODYS = str(uuid.uuid4())
Json = dict[str, Any]


@pytest.fixture
def environment(database_url: str, stand_ins: StandIns) -> dict[str, str]:
    """No name is looked up here: an address of this machine may be told."""
    return {**environment_of(database_url, stand_ins), "ALLOW_PRIVATE_ENDPOINTS": "1"}


@pytest.fixture
def create(client: FlaskClient) -> Callable[..., Json]:
    def create(app_id: str = "shop", **more: Any) -> Json:
        return dict(client.post("/event-endpoints/create", json={"appId": app_id, "url": URL, **more}).json)

    return create


def listed(client: FlaskClient, app_id: str = "shop") -> list[Json]:
    return list(client.get(f"/event-endpoints?appId={app_id}").json["endpoints"])


class TestCreate:
    def test_it_keeps_the_secret_in_key_service_and_shows_it_once(
        self, client: FlaskClient, create: Callable[..., Json], stand_ins: StandIns
    ) -> None:
        made = create(types=["payment.succeeded"])
        assert made["secret"].startswith("whsec_")
        assert [entry["method"] for entry in stand_ins.ledger("key-service")] == ["POST"]
        (endpoint,) = listed(client)
        assert endpoint == {
            "endpointId": made["endpointId"],
            "url": URL,
            "types": ["payment.succeeded"],
            "state": "enabled",
            "failingSince": None,
            "createdAt": endpoint["createdAt"],
        }
        assert made["secret"] not in client.get("/event-endpoints?appId=shop").text

    def test_all_types_are_told_where_none_is_named(self, client: FlaskClient, create: Callable[..., Json]) -> None:
        create()
        assert listed(client)[0]["types"] == list(EVENT_TYPES)

    def test_there_is_no_endpoint_without_its_secret(
        self, client: FlaskClient, create: Callable[..., Json], stand_ins: StandIns
    ) -> None:
        """Fails when the endpoint is made first."""
        stand_ins.fault("key-service", "status", method="POST", status=503)
        assert create()["code"] == "upstream_unavailable"
        assert listed(client) == []

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"url": "ftp://app.test/"}, "url"),
            ({"url": "https://user:pass@app.test/"}, "url"),
            ({"url": "https://app.test/#here"}, "url"),
            ({"url": "http://8.8.8.8/"}, "url"),
            ({"url": ...}, "url"),
            ({"types": []}, "types"),
            ({"types": ["ping"]}, "types"),
            ({"types": ["payment.paid"]}, "types"),
        ],
    )
    def test_it_says_what_is_wrong(self, client: FlaskClient, change: Json, field: str) -> None:
        body = {key: value for key, value in {"appId": "shop", "url": URL, **change}.items() if value is not ...}
        answer = client.post("/event-endpoints/create", json=body)
        assert (answer.status_code, list(answer.json["details"]["fieldErrors"])) == (400, [field])
        assert listed(client) == []

    def test_an_app_has_a_bounded_number(self, client: FlaskClient, create: Callable[..., Json]) -> None:
        for _ in range(MAX_ENDPOINTS):
            assert create()["success"]
        assert "at most 16" in create()["details"]["formErrors"][0]
        assert create("other")["success"]


class TestDelete:
    def test_it_takes_the_secret_and_what_was_on_its_way(
        self, client: FlaskClient, create: Callable[..., Json], stand_ins: StandIns, db: Connection
    ) -> None:
        made = create()
        client.post("/payment-intent/create", json=intent())
        answer = client.delete(f"/event-endpoints/{made['endpointId']}?appId=shop")
        assert (answer.status_code, answer.json) == (200, {"success": True})
        assert listed(client) == []
        assert db.execute(text("SELECT count(*) FROM deliveries")).scalar_one() == 0
        assert stand_ins.ledger("key-service")[-1]["method"] == "DELETE"
        assert client.delete(f"/event-endpoints/{made['endpointId']}?appId=shop").status_code == 404

    def test_one_that_failed_can_be_done_again(
        self, client: FlaskClient, create: Callable[..., Json], stand_ins: StandIns
    ) -> None:
        path = f"/event-endpoints/{create()['endpointId']}?appId=shop"
        stand_ins.fault("key-service", "reset", method="DELETE", executed=True, times=2)
        assert client.delete(path).status_code == 503
        assert client.delete(path).status_code == 200


class TestPing:
    def test_it_is_for_this_endpoint_alone(
        self, client: FlaskClient, create: Callable[..., Json], db: Connection
    ) -> None:
        made, _ = create(types=["payment.succeeded"]), create()
        assert client.post(f"/event-endpoints/{made['endpointId']}/test", json={"appId": "shop"}).status_code == 200
        (told,) = client.get("/events?appId=shop").json["events"]
        assert (told["type"], told["data"]) == ("ping", {})
        assert [each["endpointId"] for each in told["deliveries"]] == [made["endpointId"]]


class TestRedeliverDead:
    def test_it_sends_again_what_died_since_then(
        self, client: FlaskClient, create: Callable[..., Json], db: Connection
    ) -> None:
        made = create()
        for _ in range(3):
            client.post("/payment-intent/create", json=intent())
        age = "make_interval(days => (event_number - (SELECT min(number) FROM app_events))::int)"
        db.execute(text(f"UPDATE deliveries SET state = 'dead', attempts = 10, ended_at = now() - {age}"))
        since = db.execute(
            text("SELECT to_char(now() - interval '36h', 'YYYY-MM-DD\"T\"HH24:MI:SSOF:00')")
        ).scalar_one()
        path = f"/event-endpoints/{made['endpointId']}/redeliver-dead"

        assert client.post(path, json={"appId": "shop", "since": since}).status_code == 200
        found = db.execute(text("SELECT state, attempts FROM deliveries ORDER BY event_number")).all()
        assert [tuple(row) for row in found] == [("waiting", 0), ("waiting", 0), ("dead", 10)]
        assert client.post(path, json={"appId": "shop"}).status_code == 200
        assert set(db.execute(text("SELECT state FROM deliveries")).scalars()) == {"waiting"}


class TestEvents:
    def test_they_are_listed_newest_first_in_pages(
        self, client: FlaskClient, create: Callable[..., Json], db: Connection
    ) -> None:
        create()
        made = [client.post("/payment-intent/create", json=intent()).json for _ in range(3)]
        deliver(client, event("payment_intent.succeeded", paid_intent(made[1]["paymentIntentId"])))

        seen, cursor = [], ""
        while cursor is not None:
            page = client.get(f"/events?appId=shop&limit=3{cursor and '&cursor=' + cursor}").json
            seen += [(each["type"], each["data"]["payment"]["id"]) for each in page["events"]]
            cursor = page["nextCursor"]
        assert seen == [
            ("payment.succeeded", made[1]["paymentId"]),
            *[("payment.created", each["paymentId"]) for each in reversed(made)],
        ]
        of_one = client.get(f"/events?appId=shop&paymentId={made[1]['paymentId']}&type=payment.succeeded").json
        assert [each["type"] for each in of_one["events"]] == ["payment.succeeded"]
        assert of_one["events"][0]["deliveries"][0]["state"] == "waiting"
        for nothing in (f"paymentId={NOBODYS}", "paymentId=x", "type=ping"):
            assert client.get(f"/events?appId=shop&{nothing}").json == {"events": [], "nextCursor": None}
        for wrong in (f"cursor={NOBODYS}", "cursor=x", "type=paid", "limit=0"):
            assert client.get(f"/events?appId=shop&{wrong}").status_code == 400

    def test_one_is_sent_again_from_the_first_try(
        self, client: FlaskClient, create: Callable[..., Json], db: Connection
    ) -> None:
        create()
        client.post("/payment-intent/create", json=intent())
        db.execute(text("UPDATE deliveries SET state = 'done', attempts = 3, ended_at = now()"))
        (told,) = client.get("/events?appId=shop").json["events"]
        assert told["deliveries"][0]["nextAttemptAt"] is None
        assert client.post(f"/events/{told['eventId']}/redeliver", json={"appId": "shop"}).json == {"success": True}
        assert tuple(db.execute(text("SELECT state, attempts FROM deliveries")).one()) == ("waiting", 0)


class TestOtherApps:
    """What is another app's is as if it weren't there."""

    def test_nothing_of_another_app_is_seen_or_touched(
        self, app: Flask, client: FlaskClient, create: Callable[..., Json], db: Connection
    ) -> None:
        made = create()
        client.post("/payment-intent/create", json=intent())
        (told,) = client.get("/events?appId=shop").json["events"]
        services = app.extensions[EXTENSION_KEY]
        other = app.test_client()
        key = create_key("other", name=None, scope=KeyScope.WRITE, services=services)["key"]
        other.environ_base["HTTP_X_API_KEY"] = key

        assert other.get("/event-endpoints").json == {"endpoints": []}
        assert other.get("/events").json["events"] == []
        assert other.get(f"/events?cursor={told['eventId']}").status_code == 400
        before = db.execute(text("SELECT * FROM event_endpoints, deliveries, app_events")).all()
        for action in ("enable", "test", "redeliver-dead", "rotate-secret"):
            for endpoint_id in (made["endpointId"], NOBODYS, "x"):
                answer = other.post(f"/event-endpoints/{endpoint_id}/{action}", json={})
                assert (answer.status_code, answer.json["error"]) == (404, "Endpoint not found")
        assert other.delete(f"/event-endpoints/{made['endpointId']}").status_code == 404
        assert other.post(f"/events/{told['eventId']}/redeliver", json={}).status_code == 404
        assert db.execute(text("SELECT * FROM event_endpoints, deliveries, app_events")).all() == before

    def test_a_key_that_reads_makes_none(self, app: Flask) -> None:
        reading = app.test_client()
        key = create_key("shop", name=None, scope=KeyScope.READ, services=app.extensions[EXTENSION_KEY])["key"]
        reading.environ_base["HTTP_X_API_KEY"] = key
        assert reading.post("/event-endpoints/create", json={"url": URL}).json["code"] == "scope_missing"
        assert reading.delete(f"/event-endpoints/{NOBODYS}").json["code"] == "scope_missing"
        assert reading.get("/event-endpoints").status_code == 200
