"""Keys of apps: what each opens, from when, and until when."""

import logging
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.errors import TooManyWrongKeys
from app.models import KeyScope
from app.request_context import EXTENSION_KEY
from app.services import Services
from app.services.access import callers
from app.services.access.callers import KEPT_SECONDS, SERVICE, UNKNOWN_KEPT_SECONDS, Caller, Callers, WrongKeys
from app.services.access.keys import create_key, revoke_key, rotate_key
from tests.document import DOCUMENT, OPERATIONS, Operation
from tests.factories import checkout, intent
from tests.stand_ins import StandIns

Json = dict[str, Any]


def new_key(services: Services, app_id: str = "shop", scope: KeyScope = KeyScope.MONEY) -> Json:
    return create_key(app_id, name=None, scope=scope, services=services)


class Clock:
    """Lets time pass for what is kept in memory."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def services(app: Flask, clock: Clock) -> Services:
    """The application's services, whose callers go by the clock."""
    found: Services = app.extensions[EXTENSION_KEY]
    app.extensions[EXTENSION_KEY] = replace(found, callers=Callers(found.database, clock))
    return app.extensions[EXTENSION_KEY]


@pytest.fixture
def as_app(app: Flask, services: Services) -> Callable[..., FlaskClient]:
    """A client with a key of an app."""

    def make(app_id: str = "shop", scope: KeyScope = KeyScope.MONEY) -> FlaskClient:
        client = app.test_client()
        client.environ_base["HTTP_X_API_KEY"] = new_key(services, app_id, scope)["key"]
        return client

    return make


class TestFind:
    def test_it_knows_whose_key_it_is_and_what_it_is_good_for(self, services: Services) -> None:
        made = new_key(services, "shop", KeyScope.READ)
        found = services.callers.find(made["key"].encode(), address="")
        assert found == Caller("shop", KeyScope.READ, made["key_id"])

    @pytest.mark.parametrize("sent", [b"", b"ss_", b"ss_" + b"x" * 43, b"ss_" + b"x" * 10_000, b"\xff" * 46])
    def test_it_knows_no_other(self, services: Services, sent: bytes) -> None:
        new_key(services)
        assert services.callers.find(sent, address="") is None

    def test_a_revoked_key_is_refused_within_ten_seconds_on_every_replica(
        self, services: Services, clock: Clock
    ) -> None:
        """Fails when what is known is kept for longer."""
        replicas = [services.callers, Callers(services.database, clock)]
        made = new_key(services)
        key = made["key"].encode()
        assert all(replica.find(key, address="") for replica in replicas)

        revoke_key(str(made["key_id"]), services=services)
        clock.advance(KEPT_SECONDS)

        assert KEPT_SECONDS <= 10
        assert [replica.find(key, address="") for replica in replicas] == [None, None]

    def test_a_key_is_known_soon_after_it_was_not(self, services: Services, db: Connection, clock: Clock) -> None:
        made = new_key(services)
        db.execute(text("UPDATE api_keys SET expires_at = now() - interval '1 minute'"))
        assert services.callers.find(made["key"].encode(), address="") is None
        db.execute(text("UPDATE api_keys SET expires_at = NULL"))
        clock.advance(UNKNOWN_KEPT_SECONDS)
        assert services.callers.find(made["key"].encode(), address="") is not None

    def test_it_asks_once_for_many_requests(self, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
        key, asked = new_key(services)["key"].encode(), []
        ask = services.callers._ask
        monkeypatch.setattr(services.callers, "_ask", lambda digest: asked.append(digest) or ask(digest))
        for _ in range(100):
            services.callers.find(key, address="")
        assert len(asked) == 1

    def test_it_notes_the_last_use_once_a_minute(self, services: Services, db: Connection, clock: Clock) -> None:
        key = new_key(services)["key"].encode()
        used = text("SELECT last_used_at, xmin::text FROM api_keys")
        seen = []
        for _ in range(3):
            services.callers.find(key, address="")
            seen.append(db.execute(used).one())
            clock.advance(KEPT_SECONDS)
        assert seen[0].last_used_at is not None
        assert seen == [seen[0]] * 3
        db.execute(text("UPDATE api_keys SET last_used_at = now() - interval '61 seconds'"))
        services.callers.find(key, address="")
        assert db.execute(text("SELECT now() - last_used_at < interval '10 seconds' FROM api_keys")).scalar_one()

    def test_without_the_database_what_is_known_is_known_and_the_rest_is_503(
        self, app: Flask, services: Services, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known, unknown = (new_key(services)["key"] for _ in range(2))
        services.callers.find(known.encode(), address="")

        def fail(*_: object, **__: object) -> None:
            raise app.extensions["sqlalchemy"].engine.dialect.loaded_dbapi.OperationalError("gone")

        monkeypatch.setattr(type(services.database), "run", fail)
        assert services.callers.find(known.encode(), address="") is not None
        answer = client.get("/status/x", headers={"X-API-Key": unknown})
        assert (answer.status_code, answer.json["code"]) == (503, "database_unavailable")
        assert client.get("/status/x").status_code == 404


class TestWrongKeys:
    def test_each_makes_the_next_wait_longer(self, client: FlaskClient, clock: Clock) -> None:
        """Fails when wrong keys aren't counted."""
        waits = []
        for number in range(20):
            answer = client.get("/status/x", headers={"X-API-Key": f"ss_{number:043}"})
            waits.append(int(answer.headers.get("Retry-After", 0)))
            if answer.status_code == 429:
                assert answer.json["code"] == "too_many_wrong_keys"
                clock.advance(waits[-1])
        assert waits[:10] == [0] * 10
        assert [wait for wait in waits if wait][:4] == [1, 2, 4, 8]

    def test_somebody_who_goes_on_for_days_waits_a_minute(self, clock: Clock) -> None:
        wrong_keys = WrongKeys(clock)
        for _ in range(2_000):
            wrong_keys.count("127.0.0.1")
            clock.advance(callers.LONGEST_PAUSE_SECONDS)
        wrong_keys.count("127.0.0.1")

        with pytest.raises(TooManyWrongKeys) as refused:
            wrong_keys.check("127.0.0.1")
        assert refused.value.retry_after_seconds == callers.LONGEST_PAUSE_SECONDS

    def test_it_keeps_no_key_waiting_that_was_right(
        self, app: Flask, services: Services, client: FlaskClient, clock: Clock
    ) -> None:
        known, new = (new_key(services)["key"] for _ in range(2))
        assert client.get("/status/x", headers={"X-API-Key": known}).status_code == 404
        for number in range(callers.FREE_WRONG_KEYS):
            client.get("/status/x", headers={"X-API-Key": f"ss_{number:043}"})
        clock.advance(KEPT_SECONDS)
        for number in range(20):
            client.get("/status/x", headers={"X-API-Key": f"ss_{number:043}"})

        assert client.get("/status/x", headers={"X-API-Key": known}).status_code == 404
        assert client.get("/status/x").status_code == 404
        assert client.get("/status/x", headers={"X-API-Key": new}).status_code == 429
        elsewhere = {"REMOTE_ADDR": "127.0.0.2"}
        answer = app.test_client().get("/status/x", headers={"X-API-Key": new}, environ_base=elsewhere)
        assert answer.status_code == 404


class TestScopes:
    @pytest.mark.parametrize(
        ("scope", "opens"),
        [(KeyScope.READ, {"read"}), (KeyScope.WRITE, {"read", "write"}), (KeyScope.MONEY, {"read", "write", "money"})],
    )
    def test_each_opens_what_it_is_good_for(
        self, as_app: Callable[..., FlaskClient], scope: KeyScope, opens: set[str]
    ) -> None:
        client, payment = as_app(scope=scope), uuid.uuid4()
        answers = {
            "read": [client.get(f"/status/{payment}"), client.post("/stats", json={}), client.get("/stats")],
            "write": [client.post("/payment-intent/create", json=intent())],
            "money": [client.post(f"/payments/{payment}/{what}", json={}) for what in ("refund", "capture", "cancel")],
        }
        for needed, found in answers.items():
            for answer in found:
                is_open = answer.status_code != 403
                assert is_open == (needed in opens), answer.json
                if not is_open:
                    assert (answer.json["code"], answer.json["details"]) == ("scope_missing", {"scope": needed})

    def test_the_services_key_may_do_all(self) -> None:
        assert all(SERVICE.may(scope) for scope in KeyScope)

    @pytest.mark.parametrize("path", ["/metrics", "/keys"])
    def test_what_is_about_all_apps_is_for_the_services_key(
        self, as_app: Callable[..., FlaskClient], client: FlaskClient, path: str
    ) -> None:
        answer = as_app().get(path)
        assert (answer.status_code, answer.json["code"]) == (403, "service_key_required")
        assert client.get(path).status_code == 200


class TestOtherApps:
    """Every route of the document, asked with the key of one app about what is another's."""

    # For the service's own key alone, and without any: nothing there is an app's to see.
    OF_NO_APP = ("/keys", "/metrics", "/webhooks/", "/health")

    @pytest.fixture
    def routes(self) -> list[Operation]:
        return [each for each in OPERATIONS if each.path != "/" and not each.path.startswith(self.OF_NO_APP)]

    def test_every_route_says_which_app_it_is_for(self, routes: list[Operation]) -> None:
        """Fails when a route is new and takes no `appId`: then a key would open it for all apps."""
        assert routes
        for route in routes:
            named = {parameter["name"] for parameter in route.parameters}
            if route.takes_body:
                schema = route.described["requestBody"]["content"]["application/json"]["schema"]
                named |= set(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"])
            assert "appId" in named, route

    def test_a_request_that_names_another_app_is_refused(
        self, as_app: Callable[..., FlaskClient], routes: list[Operation], stand_ins: StandIns
    ) -> None:
        client = as_app("other")
        for route in routes:
            body = {**route.request, "appId": "shop"} if route.takes_body else None
            answer = client.open(
                route.path.format(**route.examples_in("path")),
                method=route.method.upper(),
                query_string={} if body else {**route.examples_in("query"), "appId": "shop"},
                json=body,
            )
            assert (answer.status_code, answer.json["error"]) == (403, "This key is for another app"), route
        assert stand_ins.ledger() == []

    def test_nothing_of_another_app_is_found(
        self, as_app: Callable[..., FlaskClient], client: FlaskClient, db: Connection
    ) -> None:
        """The answer is that of an id that nobody has."""
        made = client.post("/checkout/create", json=checkout()).json
        payment_id, session_id = made["paymentId"], made["sessionId"]
        other, nobody = as_app("other"), str(uuid.uuid4())

        def answers(payment: str, session: str) -> list[Any]:
            sent = {"headers": {"Idempotency-Key": "key", "X-Request-ID": "same"}, "json": {}}
            same = {"headers": {"X-Request-ID": "same"}}
            return [
                (answer.status_code, answer.json)
                for answer in (
                    other.get(f"/status/{payment}", **same),
                    other.get(f"/status/by-stripe-id/{session}", **same),
                    *(other.post(f"/payments/{payment}/{what}", **sent) for what in ("refund", "capture", "cancel")),
                )
            ]

        assert answers(payment_id, session_id) == answers(nobody, "cs_none")
        assert {status for status, _ in answers(payment_id, session_id)} == {404}
        assert other.get("/status/by-org/org_1").json["payments"] == []
        assert other.get("/summary/by-org/org_1").json["totals"] == []
        run_id = client.get(f"/status/{payment_id}").json["payment"]["runId"]
        assert other.get(f"/status/by-run/{run_id}").json["payments"] == []
        for stats in (other.get("/stats"), other.post("/stats", json={}), other.post("/stats")):
            assert stats.json["totalPayments"] == 0
        assert as_app("shop").get("/stats").json["totalPayments"] == 1

    def test_the_app_may_be_left_out(self, as_app: Callable[..., FlaskClient], stand_ins: StandIns) -> None:
        client = as_app("shop")
        made = client.post("/payment-intent/create", json=intent(appId=...)).json
        assert client.get(f"/status/{made['paymentId']}").json["payment"]["appId"] == "shop"
        assert client.post("/checkout/create", json=checkout(appId=None)).status_code == 200
        assert client.get("/prices/price_sandbox").status_code == 200
        assert client.post(f"/payments/{made['paymentId']}/cancel", json={}).json["status"] == "canceled"
        assert len(client.get("/status/by-org/org_1").json["payments"]) == 2

    def test_idempotency_keys_are_an_apps_own(self, as_app: Callable[..., FlaskClient]) -> None:
        headers = {"Idempotency-Key": "same"}
        first, second = (
            as_app(app_id).post("/payment-intent/create", json=intent(appId=...), headers=headers).json["paymentId"]
            for app_id in ("shop", "other")
        )
        assert first != second


class TestSecrecy:
    def test_a_key_is_in_no_log_and_no_table(
        self, as_app: Callable[..., FlaskClient], db: Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        client = as_app("shop")
        key = client.environ_base["HTTP_X_API_KEY"]
        client.post("/payment-intent/create", json=intent())
        refused = client.post("/payment-intent/create", json=intent(appId="other"))
        wrong = client.get("/status/x", headers={"X-API-Key": f"{key}x"})
        tables = db.execute(text("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"))
        rows = [str(db.execute(text(f"SELECT t::text FROM {name} t")).all()) for name in tables.scalars().all()]

        for told in (caplog.text, refused.text, wrong.text, *rows):
            assert key not in told
            assert key[3:] not in told


class TestRotate:
    def test_both_are_good_until_the_overlap_ends(self, services: Services, db: Connection, clock: Clock) -> None:
        old = new_key(services, "shop", KeyScope.READ)
        new = rotate_key(str(old["key_id"]), overlap=timedelta(hours=1), services=services)
        keys = [each["key"].encode() for each in (old, new)]
        found = [services.callers.find(key, address="") for key in keys]
        assert [(each.app_id, each.scope) for each in found if each] == [("shop", KeyScope.READ)] * 2

        db.execute(text("UPDATE api_keys SET expires_at = now() WHERE expires_at IS NOT NULL"))
        clock.advance(KEPT_SECONDS)
        assert [services.callers.find(key, address="") is not None for key in keys] == [False, True]
