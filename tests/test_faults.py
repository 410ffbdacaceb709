"""Each upstream behind a proxy that spoils what passes: an error within the deadline, and all is well later."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask
from sqlalchemy import Connection, text

from app import create_app
from app.config import Settings
from app.request_context import EXTENSION_KEY
from app.services.kinds import KINDS
from app.services.operations.recovery import recover_operations
from tests.books import assert_balanced, end_orphan_runs_at_once
from tests.databases import database_address, dispose, through
from tests.factories import checkout, intent
from tests.proxy import Proxy, Spoil
from tests.soak import SOAKING
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import API_KEY
from tests.webhooks import deliver, event

UPSTREAMS = ("key-service", "runs-service", "Stripe", "database")
SPOILS = [spoil for spoil in Spoil if spoil is not Spoil.NOTHING]
BODIES = {"/checkout/create": checkout, "/payment-intent/create": intent}
LEASE_SECONDS = 4.0


@dataclass
class Spoiled:
    """The service, and the proxy before one of its upstreams."""

    upstream: str
    proxy: Proxy
    app: Flask
    db: Connection
    stand_ins: StandIns

    def post(self, path: str, key: str) -> Any:
        sent = {"X-API-Key": API_KEY, "Idempotency-Key": key}
        return self.app.test_client().post(path, json=BODIES[path](), headers=sent)

    def get(self, path: str) -> Any:
        return self.app.test_client().get(path, headers={"X-API-Key": API_KEY})

    def converge(self) -> None:
        """The upstream is well again, and a worker recovers until nothing is left, however slow the machine is."""
        self.proxy.become(Spoil.NOTHING)
        services = self.app.extensions[EXTENSION_KEY]
        left = text("SELECT count(*) FROM operations WHERE step <> 'finished'")

        def is_quiet() -> bool:
            self.db.execute(text("UPDATE operations SET lease_until = now() WHERE step <> 'finished'"))
            list(recover_operations(services, KINDS, command="flask recover", at_once=True))
            return self.db.execute(left).scalar_one() == 0

        wait_until(is_quiet, seconds=60, what="recovery")
        end_orphan_runs_at_once(services, self.db)
        assert_balanced(self.db, self.stand_ins)


def proxy_before(upstream: str, settings: Settings) -> Proxy:
    if upstream == "database":
        return Proxy(database_address(settings.database_url))
    address = urlsplit(settings.stripe_api_base)
    return Proxy((str(address.hostname), int(address.port or 0)))


def settings_behind(proxy: Proxy, upstream: str, settings: Settings) -> Settings:
    """The settings that reach one upstream through the proxy."""
    http = f"http://127.0.0.1:{proxy.port}"
    behind: dict[str, Any] = {
        "key-service": {"key_service_url": f"{http}/key-service"},
        "runs-service": {"runs_service_url": f"{http}/runs-service"},
        "Stripe": {"stripe_api_base": http},
        "database": {"database_url": through(proxy, settings.database_url)},
    }
    short = {"payment_lease_seconds": LEASE_SECONDS, "upstream_timeout_seconds": 1, "stripe_timeout_seconds": 1}
    return replace(settings, **short, key_cache_seconds=0, **behind[upstream])


@pytest.fixture
def spoiled(
    request: pytest.FixtureRequest, app: Flask, settings: Settings, db: Connection, stand_ins: StandIns
) -> Iterator[Spoiled]:
    """The service with a proxy before the upstream that the test names, its connections already open."""
    with proxy_before(request.param, settings).running() as proxy:
        behind = create_app(settings_behind(proxy, request.param, settings))
        spoiled = Spoiled(request.param, proxy, behind, db, stand_ins)
        assert spoiled.post("/payment-intent/create", "warm").status_code == 200
        yield spoiled
        dispose(behind)


class TestCreates:
    @pytest.mark.soak
    @pytest.mark.parametrize("spoil", SPOILS)
    @pytest.mark.parametrize("spoiled", UPSTREAMS, indirect=True)
    def test_it_answers_within_the_deadline_and_converges(self, spoiled: Spoiled, spoil: Spoil) -> None:
        """Fails for the database when a connection isn't watched (`wait_for_answer`), and elsewhere without a deadline
        on the socket, when a redirect is followed, or when `[1]` is taken for an answer.
        """
        # Both routes in the soak, and else one of them by turns.
        paths = list(BODIES) if SOAKING else [list(BODIES)[SPOILS.index(spoil) % 2]]
        for path in paths:
            spoiled.proxy.become(spoil)
            started = time.monotonic()
            refused = spoiled.post(path, path)
            assert time.monotonic() - started < LEASE_SECONDS * 5 / 6
            assert refused.status_code in (502, 503, 504), refused.json
            assert spoiled.upstream in refused.json["error"]
            spoiled.converge()

            answers = [spoiled.post(path, path) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert answers[0].json == answers[1].json
        spoiled.converge()
        assert spoiled.db.execute(text("SELECT count(*) FROM payments")).scalar_one() == 1 + len(paths)

    @pytest.mark.parametrize("spoil", [Spoil.RESET, Spoil.RESET_AFTER, Spoil.HALF])
    @pytest.mark.parametrize("spoiled", ["runs-service", "database"], indirect=True)
    def test_it_converges_whichever_message_is_the_first_that_is_lost(self, spoiled: Spoiled, spoil: Spoil) -> None:
        """Fails when a step isn't committed before what follows it, or when a commit whose answer is lost is redone."""
        for path, after in itertools.product(BODIES, range(1, 7)):
            key = f"{path}-{after}"
            spoiled.proxy.become(spoil, after=after)
            assert spoiled.post(path, key).status_code in (200, 502, 503, 504)
            spoiled.converge()
            assert spoiled.post(path, key).status_code == 200
        spoiled.converge()


class TestEverythingElse:
    @pytest.mark.parametrize("spoil", SPOILS)
    @pytest.mark.parametrize("spoiled", ["database"], indirect=True)
    def test_webhooks_and_reads_say_that_the_database_is_away_and_health_answers(
        self, spoiled: Spoiled, spoil: Spoil
    ) -> None:
        told = event("customer.created", {"id": "cus_1", "object": "customer"})
        spoiled.proxy.become(spoil)

        for response in (deliver(spoiled.app.test_client(), told), spoiled.get("/stats")):
            assert (response.status_code, response.json["code"]) == (503, "database_unavailable")
            assert int(response.headers["Retry-After"]) > 0
        assert spoiled.get("/health").status_code == 200
        assert spoiled.get("/health/ready").json["checks"]["database"] == "unavailable"

        spoiled.proxy.become(Spoil.NOTHING)
        assert deliver(spoiled.app.test_client(), told).status_code == 200
        assert spoiled.get("/health/ready").status_code == 200
        assert spoiled.db.execute(text("SELECT count(*) FROM stripe_events WHERE id NOT LIKE 'op_%'")).scalar_one() == 1

    @pytest.mark.parametrize("spoil", SPOILS)
    @pytest.mark.parametrize("spoiled", ["key-service", "runs-service", "Stripe"], indirect=True)
    def test_webhooks_and_reads_are_served_while_another_upstream_is_spoiled(
        self, spoiled: Spoiled, spoil: Spoil
    ) -> None:
        spoiled.proxy.become(spoil)
        told = event("customer.created", {"id": "cus_1", "object": "customer"})
        assert deliver(spoiled.app.test_client(), told).status_code == 200
        assert spoiled.get("/stats").json["totalPayments"] == 1
        assert spoiled.get("/health/ready").status_code == 200
