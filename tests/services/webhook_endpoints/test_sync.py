"""Webhook endpoints that set themselves up: against the stand-ins, with what breaks in between."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import requests
import stripe
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text
from werkzeug.wrappers import Response

from app.request_context import EXTENSION_KEY
from app.services import Services
from app.services.reconciliation.reconcile import EVENT_TYPES, reconcile_apps
from app.services.upstreams.stripe import API_VERSION
from app.services.webhook_endpoints import lease, sync
from app.services.webhook_endpoints.plan import DIGEST, IN_PLACE, METADATA, digest_of
from app.services.webhook_endpoints.sync import Looked, show_endpoints, sync_endpoints
from tests.crashing import dies_in
from tests.factories import checkout, intent
from tests.stand_ins import KEY_SERVICE_API_KEY, StandIns
from tests.waiting import wait_until
from tests.web import WebProcess
from tests.webhooks import deliver, event, paid_intent

PUBLIC_URL = "https://pay.example.com"
OLD_VERSION = "2025-03-31.basil"
MOST_POINTS = 120
LEADS = text("SELECT app_id FROM app_accounts WHERE leads")
LET_GO = text("UPDATE accounts SET lease_until = now()")


def ask(stand_ins: StandIns, app_id: str, *, provider: str = "stripe-webhook") -> str | None:
    """What key-service holds for an app."""
    headers = {"X-API-Key": KEY_SERVICE_API_KEY, "X-Caller-Service": "t", "X-Caller-Method": "t", "X-Caller-Path": "t"}
    url = f"{stand_ins.url}/key-service/internal/app-keys/{provider}/decrypt"
    answer = requests.get(url, params={"appId": app_id}, headers=headers, timeout=10).json()
    return answer.get("key")


def secrets_of(stand_ins: StandIns, app_id: str = "shop") -> list[str]:
    return (ask(stand_ins, app_id) or "").split(",")


def stripe_of(stand_ins: StandIns, app_id: str = "shop") -> Any:
    """Stripe's SDK with the app's key, untyped."""
    key = str(ask(stand_ins, app_id, provider="stripe"))
    return stripe.StripeClient(key, base_addresses={"api": stand_ins.url}, max_network_retries=0)


def endpoints_of(stand_ins: StandIns, app_id: str = "shop") -> list[Any]:
    """The endpoints of the app's account, the newest first."""
    return list(stripe_of(stand_ins, app_id).v1.webhook_endpoints.list({"limit": 100}).data)


def only_endpoint(stand_ins: StandIns, app_id: str = "shop") -> Any:
    """The one endpoint of the app's account, whose secret has to be the first that key-service holds."""
    (endpoint,) = endpoints_of(stand_ins, app_id)
    assert endpoint.metadata.to_dict() == METADATA | IN_PLACE | {DIGEST: digest_of(secrets_of(stand_ins, app_id)[0])}
    return endpoint


def pay(client: FlaskClient, stand_ins: StandIns, app_id: str = "shop") -> str:
    """Create a payment and let it be paid; the value is its id."""
    created = client.post("/payment-intent/create", json=intent(appId=app_id, orgId=...)).json
    stand_ins.control(f"intents/{created['paymentIntentId']}/pay")
    return str(created["paymentId"])


def status_of(client: FlaskClient, payment_id: str) -> str:
    return str(client.get(f"/status/{payment_id}").json["payment"]["status"])


@pytest.fixture
def reachable(services: Services) -> Services:
    return replace(services, settings=replace(services.settings, public_url=PUBLIC_URL))


@pytest.fixture
def run(reachable: Services, stand_ins: StandIns) -> Callable[..., list[Looked]]:
    stand_ins.control("keys", appId="shop", provider="stripe-webhook", key=None)

    def run(app_id: str | None = "shop", **options: Any) -> list[Looked]:
        return list(sync_endpoints(reachable, command="flask endpoints sync", app_id=app_id, **options))

    return run


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets a replaced endpoint be outdated."""

    def pass_by() -> None:
        monkeypatch.setattr("app.services.webhook_endpoints.plan.OVERLAP_SECONDS", 0)

    return pass_by


class TestSync:
    def test_it_makes_one_endpoint_and_stores_its_secret(
        self, run: Callable[..., list[Looked]], stand_ins: StandIns, db: Connection
    ) -> None:
        (looked,) = run()

        endpoint = only_endpoint(stand_ins)
        assert (looked.apps, looked.error, looked.done) == (("shop",), None, (f"made {endpoint.id}",))
        assert endpoint.url == f"{PUBLIC_URL}/webhooks/stripe/shop"
        assert (endpoint.api_version, endpoint.status) == (API_VERSION, "enabled")
        assert sorted(endpoint.enabled_events) == sorted(EVENT_TYPES)
        assert len(secrets_of(stand_ins)) == 1
        assert db.execute(LEADS).scalars().all() == ["shop"]

    def test_it_changes_nothing_when_all_is_well(self, run: Callable[..., list[Looked]], stand_ins: StandIns) -> None:
        run()
        before, effects = endpoints_of(stand_ins), stand_ins.effects()

        assert [(looked.done, looked.error) for looked in run()] == [((), None)]
        assert (endpoints_of(stand_ins), stand_ins.effects()) == (before, effects)

    def test_it_asks_for_types_that_were_added(
        self, run: Callable[..., list[Looked]], stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run()
        made = only_endpoint(stand_ins)
        monkeypatch.setattr(sync, "EVENT_TYPES", (*EVENT_TYPES, "customer.updated"))

        (looked,) = run()

        assert looked.done == (f"changed the types of {made.id}",)
        changed = only_endpoint(stand_ins)
        assert (changed.id, "customer.updated" in changed.enabled_events) == (made.id, True)

    def test_it_leaves_and_reports_one_that_somebody_disabled(
        self, run: Callable[..., list[Looked]], stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run()
        stripe_of(stand_ins).v1.webhook_endpoints.update(only_endpoint(stand_ins).id, {"disabled": True})
        before = endpoints_of(stand_ins)
        monkeypatch.setattr(sync, "API_VERSION", OLD_VERSION)

        (looked,) = run()

        assert looked.error == "somebody has disabled it at Stripe: enable it there, or delete it"
        assert endpoints_of(stand_ins) == before

    @pytest.mark.parametrize("room", [0, 1])
    def test_it_is_refused_with_the_list_when_others_have_all_sixteen(
        self, run: Callable[..., list[Looked]], stand_ins: StandIns, room: int
    ) -> None:
        others = stripe_of(stand_ins).v1.webhook_endpoints
        urls = [f"https://other.example.com/{number}" for number in range(16 - room)]
        for url in urls:
            others.create({"url": url, "enabled_events": ["*"]})

        (looked,) = run()

        left = [each.url for each in endpoints_of(stand_ins) if not each.url.startswith(PUBLIC_URL)]
        assert sorted(left) == sorted(urls)
        assert bool(looked.error) == (room == 0)
        assert room or all(url in str(looked.error) for url in urls)

    def test_it_keeps_the_secrets_that_a_person_has_put(
        self, run: Callable[..., list[Looked]], stand_ins: StandIns
    ) -> None:
        """Of an endpoint made by hand, and of its own that was rolled at Stripe."""
        stand_ins.control("keys", appId="shop", provider="stripe-webhook", key="whsec_by_hand")
        run()
        made, by_hand = secrets_of(stand_ins)
        stand_ins.control("keys", appId="shop", provider="stripe-webhook", key=f"whsec_rolled,{made},{by_hand}")

        (looked,) = run()

        assert (looked.done, looked.error) == ((), None)
        assert secrets_of(stand_ins) == ["whsec_rolled", made, "whsec_by_hand"]

    def test_it_replaces_one_whose_secret_is_gone_and_lets_it_go_a_day_later(
        self, run: Callable[..., list[Looked]], stand_ins: StandIns, later: Callable[[], None]
    ) -> None:
        run()
        former = only_endpoint(stand_ins)
        stand_ins.control("keys", appId="shop", provider="stripe-webhook", key="whsec_rolled")

        run()
        assert [each.id == former.id for each in endpoints_of(stand_ins)] == [False, True]
        assert secrets_of(stand_ins)[1:] == ["whsec_rolled"]
        later()
        run()
        assert [each.id == former.id for each in endpoints_of(stand_ins)] == [False]

    def test_another_deployment_in_the_account_is_left_alone(
        self, run: Callable[..., list[Looked]], reachable: Services, stand_ins: StandIns, later: Callable[[], None]
    ) -> None:
        staging = replace(reachable, settings=replace(reachable.settings, public_url="https://staging.example.com"))
        list(sync_endpoints(staging, command="flask endpoints sync", app_id="shop"))
        run()
        later()
        before = endpoints_of(stand_ins)

        (looked,) = list(sync_endpoints(staging, command="flask endpoints sync", app_id="shop"))
        assert (looked.done, looked.error, len(before), endpoints_of(stand_ins)) == ((), None, 2, before)

    def test_one_endpoint_comes_of_two_at_once(
        self, run: Callable[..., list[Looked]], stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        together, look = threading.Barrier(2, timeout=20), sync.shared_accounts
        met: list[Any] = []

        def meet(*arguments: Any) -> Iterator[Any]:
            together.wait()
            return look(*arguments)

        monkeypatch.setattr(sync, "shared_accounts", meet)
        threads = [threading.Thread(target=lambda: met.extend(run())) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(met) == 2
        assert [looked.error for looked in met] == [None, None]
        assert only_endpoint(stand_ins)

    def test_it_leaves_an_account_to_the_process_that_has_it(
        self, run: Callable[..., list[Looked]], stand_ins: StandIns, db: Connection
    ) -> None:
        run()
        stripe_of(stand_ins).v1.webhook_endpoints.delete(only_endpoint(stand_ins).id)
        db.execute(text("UPDATE accounts SET lease_until = now() + interval '1 minute'"))

        assert [looked.done for looked in run()] == [("another process has it",)]
        assert endpoints_of(stand_ins) == []

    def test_it_goes_on_when_key_service_was_down_in_the_middle(
        self, run: Callable[..., list[Looked]], stand_ins: StandIns
    ) -> None:
        stand_ins.fault("key-service", "status", status=503, method="POST", times=0)
        (broken,) = run()
        assert broken.error == "key-service answered 503"
        stand_ins.heal()

        (looked,) = run()

        assert [done.split()[0] for done in looked.done] == ["deleted", "made"]
        assert only_endpoint(stand_ins)

    def test_it_notices_that_key_service_keeps_something_else(
        self, run: Callable[..., list[Looked]], stand_ins: StandIns, db: Connection
    ) -> None:
        stand_ins.fault("key-service", "json", body={"message": "saved"}, method="POST")

        (looked,) = run()

        assert looked.error == "key-service doesn't give back the secret that it was given"
        assert db.execute(LEADS).all() == []


class TestVersion:
    def test_no_event_is_lost_while_an_endpoint_is_replaced(
        self,
        web: WebProcess,
        services: Services,
        client: FlaskClient,
        stand_ins: StandIns,
        monkeypatch: pytest.MonkeyPatch,
        later: Callable[[], None],
    ) -> None:
        reachable = replace(services, settings=replace(services.settings, public_url=web.url))
        stand_ins.control("webhooks", mode="deliver", endpoints=[])
        stand_ins.control("keys", appId="shop", provider="stripe-webhook", key=None)
        paid, steps = [], lease.HeldAccount.context

        def step(held: lease.HeldAccount) -> Any:
            paid.append(pay(client, stand_ins))
            return steps(held)

        def run() -> tuple[str, ...]:
            (looked,) = sync_endpoints(reachable, command="flask endpoints sync", app_id="shop")
            assert looked.error is None
            return looked.done

        with monkeypatch.context() as before:
            before.setattr(sync, "API_VERSION", OLD_VERSION)
            run()
        former = only_endpoint(stand_ins)
        monkeypatch.setattr(lease.HeldAccount, "context", step)
        run()
        current = endpoints_of(stand_ins)[0]
        assert run() == ()
        assert len(endpoints_of(stand_ins)) == len(secrets_of(stand_ins)) == 2
        later()
        assert run() == (f"deleted {former.id}, replaced a day ago",)
        assert len(secrets_of(stand_ins)) == 1

        assert (current.api_version, only_endpoint(stand_ins).id) == (API_VERSION, current.id)
        assert len(paid) > 8
        for payment_id in paid:
            wait_until(lambda: status_of(client, payment_id) == "succeeded", seconds=30, what="webhook")  # noqa: B023


class TestCrashes:
    @pytest.mark.parametrize("former_version", [None, OLD_VERSION])
    def test_the_next_run_leaves_one_endpoint_whose_secret_is_known(
        self,
        run: Callable[..., list[Looked]],
        stand_ins: StandIns,
        dying: Flask,
        db: Connection,
        monkeypatch: pytest.MonkeyPatch,
        later: Callable[[], None],
        former_version: str | None,
    ) -> None:
        def work(_: FlaskClient) -> Response:
            services: Services = dying.extensions[EXTENSION_KEY]
            settings = replace(services.settings, public_url=PUBLIC_URL)
            list(sync_endpoints(replace(services, settings=settings), command="flask endpoints sync", app_id="shop"))
            return Response(status=200)

        later()
        # After each statement and call; before the next one, all is as after the last.
        for point in range(1, MOST_POINTS, 2):
            stand_ins.reset()
            stand_ins.control("keys", appId="shop", provider="stripe-webhook", key=None)
            if former_version is not None:
                with monkeypatch.context() as before:
                    before.setattr(sync, "API_VERSION", former_version)
                    run()
            has_died = dies_in(dying, point, work)
            db.execute(LET_GO)
            if former_version is not None:
                # Whatever was cut off, the events of the account can be verified.
                held = set(map(digest_of, secrets_of(stand_ins)))
                assert held & {each.metadata.to_dict().get(DIGEST) for each in endpoints_of(stand_ins)}
            assert [looked.error for looked in (*run(), *run())] == [None, None]
            assert only_endpoint(stand_ins).api_version == API_VERSION
            assert len(secrets_of(stand_ins)) == 1
            assert db.execute(LEADS).scalars().all() == ["shop"]
            db.execute(text("DELETE FROM app_accounts"))
            if not has_died:
                break
        else:
            raise AssertionError("the work has more points than are tried")
        assert point > 20


class TestSharedAccounts:
    @pytest.fixture
    def till(self, stand_ins: StandIns) -> str:
        """An app with another key of the account of `shop`."""
        stand_ins.control("keys", appId="till", key="sk_test_till", accountOf="shop")
        return "till"

    @pytest.fixture
    def told(self, client: FlaskClient, stand_ins: StandIns) -> Callable[..., None]:
        """Delivers an event by an app's path, `shop` by default, signed with the app's secret."""

        def tell(kind: str, stripe_object: dict[str, Any], *, app_id: str = "shop", **fields: Any) -> None:
            secret = secrets_of(stand_ins, app_id)[0]
            assert deliver(client, event(kind, stripe_object, **fields), app_id=app_id, secret=secret).json == {
                "received": True
            }

        return tell

    def test_what_comes_by_the_path_of_the_lead_reaches_all_apps_of_the_account_and_no_other(
        self,
        run: Callable[..., list[Looked]],
        client: FlaskClient,
        till: str,
        told: Callable[..., None],
    ) -> None:
        apps = ("elsewhere", "shop", till)
        intents = {app_id: client.post("/payment-intent/create", json=intent(appId=app_id)).json for app_id in apps}
        pages = {app_id: client.post("/checkout/create", json=checkout(appId=app_id)).json for app_id in apps}
        assert sorted(looked.apps for looked in run(None)) == [("elsewhere",), ("shop", till)]

        for app_id in apps:
            told("payment_intent.succeeded", paid_intent(intents[app_id]["paymentIntentId"]))
            # Known by what another event says, which comes later; and by metadata alone.
            refund = {"id": f"re_{app_id}", "object": "refund", "amount": 1, "status": "succeeded"}
            told("refund.created", refund | {"payment_intent": f"pi_{app_id}"})
            hint = {"metadata": {"paymentId": pages[app_id]["paymentId"]}, "amount": 4000, "currency": "usd"}
            told("payment_intent.payment_failed", paid_intent(f"pi_{app_id}", amount_received=0) | hint)
        tried = {app_id: status_of(client, pages[app_id]["paymentId"]) for app_id in apps}
        for app_id in apps:
            session = {"id": pages[app_id]["sessionId"], "object": "checkout.session", "payment_status": "paid"}
            paid = session | {"payment_intent": f"pi_{app_id}", "amount_total": 4000, "currency": "usd"}
            told("checkout.session.completed", paid, app_id=app_id)

        assert tried == {"elsewhere": "checkout_created", "shop": "failed", till: "failed"}
        first = {app_id: status_of(client, intents[app_id]["paymentId"]) for app_id in apps}
        assert first == {"elsewhere": "requires_payment_method", "shop": "succeeded", till: "succeeded"}
        second = {app_id: status_of(client, pages[app_id]["paymentId"]) for app_id in apps}
        assert second == {"elsewhere": "succeeded", "shop": "partially_refunded", till: "partially_refunded"}

    def test_the_path_of_another_app_reaches_that_app_alone(
        self, run: Callable[..., list[Looked]], client: FlaskClient, till: str, told: Callable[..., None]
    ) -> None:
        created = client.post("/payment-intent/create", json=intent()).json
        client.post("/payment-intent/create", json=intent(appId=till))
        run(None)

        told("payment_intent.succeeded", paid_intent(created["paymentIntentId"]), app_id=till)

        assert status_of(client, created["paymentId"]) == "requires_payment_method"

    def test_reconciliation_stores_nothing_that_came_by_the_path_of_the_lead(
        self,
        run: Callable[..., list[Looked]],
        client: FlaskClient,
        services: Services,
        stand_ins: StandIns,
        till: str,
        told: Callable[..., None],
    ) -> None:
        pay(client, stand_ins, till)
        run("shop")
        run(till)
        for each in stand_ins.events():
            told(each["type"], each["data"]["object"], id=each["id"], created=each["created"])

        (reconciled,) = reconcile_apps(services, command="flask reconcile")
        assert (reconciled.app_id, reconciled.stored) == (till, 0)
        assert reconciled.listed > 0

    def test_an_app_that_moves_to_another_account_takes_no_secret_and_no_lead_with_it(
        self, run: Callable[..., list[Looked]], services: Services, stand_ins: StandIns, db: Connection, till: str
    ) -> None:
        run("shop")
        run(till)
        former = secrets_of(stand_ins)
        stand_ins.control("keys", appId="shop", key="sk_test_moved", accountOf="elsewhere")
        services.keys._keys.clear()

        assert [looked.error for looked in (*run("shop"), *run(till))] == [None, None]

        assert db.execute(LEADS).scalars().all() == ["shop", till]
        assert not set(former) & set(secrets_of(stand_ins))
        assert only_endpoint(stand_ins).url.endswith("/shop")
        assert [each.url.rpartition("/")[2] for each in endpoints_of(stand_ins, till)] == [till, "shop"]


class TestAnotherAccount:
    @pytest.mark.parametrize("says", [{"account": "acct_other"}, {"context": "org_1/acct_other"}])
    @pytest.mark.parametrize("is_known", [True, False])
    def test_its_event_is_stored_and_joined_to_nothing(
        self,
        run: Callable[..., list[Looked]],
        client: FlaskClient,
        stand_ins: StandIns,
        db: Connection,
        says: dict[str, str],
        is_known: bool,
    ) -> None:
        created = client.post("/checkout/create", json=checkout()).json
        stand_ins.control("keys", appId="shop", provider="stripe-webhook", key="whsec_shop")
        if is_known:
            run()
        session = {"id": created["sessionId"], "object": "checkout.session", "payment_status": "paid"}
        failed = paid_intent("pi_1", amount=4000, currency="usd", metadata={"paymentId": created["paymentId"]})
        for told in (
            event("checkout.session.completed", session, **says),
            event("payment_intent.payment_failed", failed, **says),
        ):
            assert deliver(client, told, app_id="shop", secret=secrets_of(stand_ins)[0]).status_code == 200

        assert status_of(client, created["paymentId"]) == "checkout_created"
        stored = db.execute(text("SELECT payment_id, refs FROM stripe_events WHERE id LIKE 'evt%'")).all()
        assert stored == [(None, []), (None, [])]

    def test_one_that_names_the_own_account_is_joined(
        self, run: Callable[..., list[Looked]], client: FlaskClient, stand_ins: StandIns
    ) -> None:
        created = client.post("/payment-intent/create", json=intent()).json
        (looked,) = run()
        own = str(looked.account_id).removesuffix(":test")
        told = event("payment_intent.succeeded", paid_intent(created["paymentIntentId"]), account=own)
        deliver(client, told, app_id="shop", secret=secrets_of(stand_ins)[0])

        assert status_of(client, created["paymentId"]) == "succeeded"


class TestShow:
    def test_it_changes_nothing_and_says_what_differs(
        self, run: Callable[..., list[Looked]], reachable: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        (looked,) = show_endpoints(reachable, command="flask endpoints show", app_id="shop")

        assert looked.plan is not None
        assert looked.plan.differences() == ["there is none"]
        assert endpoints_of(stand_ins) == []
        assert db.execute(text("SELECT 1 FROM app_accounts")).all() == []


class TestDue:
    def test_an_app_is_looked_at_when_it_is_new_and_then_after_a_day(
        self, run: Callable[..., list[Looked]], client: FlaskClient, db: Connection
    ) -> None:
        client.post("/payment-intent/create", json=intent())

        assert [looked.apps for looked in run(None, only_due=True)] == [("shop",)]
        assert run(None, only_due=True) == []
        db.execute(text("UPDATE app_accounts SET checked_at = now() - interval '24 hours 1 second'"))
        assert [looked.apps for looked in run(None, only_due=True)] == [("shop",)]

    def test_what_failed_is_looked_at_again_at_once(
        self, run: Callable[..., list[Looked]], client: FlaskClient, stand_ins: StandIns
    ) -> None:
        client.post("/payment-intent/create", json=intent())
        stand_ins.fault("stripe", "status", status=503, method="POST", path="webhook_endpoints")

        assert [bool(looked.error) for _ in range(2) for looked in run(None, only_due=True)] == [True, False]
