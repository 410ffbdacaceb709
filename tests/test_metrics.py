"""What the service measures: each figure moves when its thing happens, and no series is made of an id."""

import json
import re
import signal
import socket
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import DBAPIError

from app import create_app, metrics
from app.config import Settings
from app.request_context import EXTENSION_KEY
from app.services.operators import backlog
from tests import webhooks
from tests.bench.plans import explain
from tests.databases import dispose
from tests.factories import checkout, intent
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import API_KEY, WebProcess, free_port

ROOT = Path(__file__).parents[1]
KEY = {"X-API-Key": API_KEY}

CREATE = "/payment-intent/create"
REQUESTS = "stripe_service_request_seconds_count"
CALLS = "stripe_service_upstream_call_seconds_count"
BY_APP = "stripe_service_create_requests_by_app_total"
CONNECTIONS = "stripe_service_database_connections"


class Figures:
    """The samples of one answer of /metrics."""

    def __init__(self, exposition: str) -> None:
        families = list(text_string_to_metric_families(exposition))
        self.samples = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }
        self.families = {family.name for family in families}
        self.names = {name for name, *_ in self.samples} | self.families

    def get(self, name: str, **labels: str) -> float | None:
        """One sample, or None where there is no such series."""
        return self.samples.get((name, *sorted(labels.items())))

    def labels(self, name: str) -> set[str]:
        """The names of all labels of a metric's samples."""
        return {label for sample, *labels in self.samples if sample == name for label, _ in labels}

    def since(self, before: "Figures", name: str, **labels: str) -> float:
        """By how much a sample has grown."""
        return (self.get(name, **labels) or 0) - (before.get(name, **labels) or 0)


def scrape(client: FlaskClient) -> Figures:
    response = client.get("/metrics")
    assert response.status_code == 200
    return Figures(response.text)


def scrape_web(web: WebProcess) -> Figures:
    return Figures(requests.get(f"{web.url}/metrics", headers=KEY, timeout=20).text)


@contextmanager
def another_client(settings: Settings) -> Iterator[FlaskClient]:
    """A caller of an application with other settings."""
    app = create_app(settings)
    client = app.test_client()
    client.environ_base["HTTP_X_API_KEY"] = API_KEY
    yield client
    dispose(app)


class TestAccess:
    @pytest.mark.parametrize(
        "headers", [KEY, {"Authorization": f"Bearer {API_KEY}"}, {"Authorization": f"bearer  {API_KEY} "}]
    )
    def test_it_takes_the_key_in_its_header_or_as_a_bearer_token(self, app: Flask, headers: dict[str, str]) -> None:
        response = app.test_client().get("/metrics", headers=headers)

        assert response.status_code == 200
        assert response.content_type == "text/plain; version=0.0.4; charset=utf-8"

    @pytest.mark.parametrize("sent", ["", "Bearer", "Bearer ", f"Basic {API_KEY}", API_KEY])
    def test_it_answers_401_without_a_token(self, app: Flask, sent: str) -> None:
        assert app.test_client().get("/metrics", headers={"Authorization": sent}).status_code == 401

    @pytest.mark.parametrize("token", ["wrong", f"{API_KEY}x", "caf\u00e9", "\xff\xfe"])
    def test_it_answers_403_for_another_token(self, app: Flask, token: str) -> None:
        assert app.test_client().get("/metrics", headers={"Authorization": f"Bearer {token}"}).status_code == 403

    def test_a_bearer_token_opens_no_other_route(self, app: Flask) -> None:
        response = app.test_client().get("/stats", headers={"Authorization": f"Bearer {API_KEY}"})

        assert response.status_code == 401


class TestRequests:
    def test_they_are_counted_by_template_method_and_status(self, client: FlaskClient) -> None:
        before = scrape(client)
        client.get("/status/x")
        client.get("/status/y")
        after = scrape(client)

        labels = {"method": "GET", "route": "/status/{paymentId}", "status": "404"}
        assert after.since(before, REQUESTS, **labels) == 2
        assert after.since(before, "stripe_service_request_seconds_sum", **labels) > 0

    def test_a_hundred_of_anything_make_no_series(self, client: FlaskClient) -> None:
        def ask(number: int) -> None:
            client.get(f"/status/pay_{number}")
            client.get(f"/status/by-org/org_{number}")
            client.get(f"/status/by-run/run_{number}?limit={number + 1}")
            client.get(f"/unknown/{number}")
            client.open("/status/x", method=f"WORD{number}")
            client.post(CREATE, json=intent(appId=f"app {number}"))
            client.post(f"/webhooks/stripe/app_{number}")
            client.get("/health", headers={"X-Request-ID": f"id-{number}"})

        ask(0)
        before = scrape(client)
        for number in range(1, 101):
            ask(number)

        assert scrape(client).samples.keys() == before.samples.keys()

    def test_many_payments_of_many_apps_make_none(self, client: FlaskClient, stand_ins: StandIns) -> None:
        def pay(number: int) -> None:
            created = client.post(CREATE, json=intent(orgId=f"org_{number}", appId=f"app{number}")).json
            assert created["success"], created
            client.get(f"/status/{created['paymentId']}")
            client.get(f"/products/prod_{number}?appId=app{number}")

        pay(0)
        before = scrape(client)
        for number in range(1, 25):
            pay(number)

        assert scrape(client).samples.keys() == before.samples.keys()


class TestByApp:
    def test_no_app_is_a_label_without_the_setting(self, client: FlaskClient) -> None:
        client.post(CREATE, json=intent(appId="unlabelled"))

        assert "unlabelled" not in client.get("/metrics").text

    def test_apps_that_have_created_a_payment_are(self, app: Flask, settings: Settings, stand_ins: StandIns) -> None:
        stand_ins.control("keys", appId="imagined", key=None)
        with another_client(replace(settings, metrics_by_app=True)) as client:
            client.post(CREATE, json=intent(appId="labelled"))
            client.post("/checkout/create", json=checkout(appId="imagined"))
            figures = scrape(client)

        assert figures.get(BY_APP, app="labelled", route=CREATE, status="200") == 1
        assert figures.get(BY_APP, app="other", route="/checkout/create", status="400") == 1
        assert not [key for key in figures.samples if ("app", "imagined") in key]


class TestUpstreamCalls:
    @pytest.mark.parametrize(
        ("upstream", "call", "fault", "outcome"),
        [
            ("Stripe", "POST /v1/payment_intents", None, "ok"),
            ("Stripe", "POST /v1/payment_intents", {"kind": "status", "status": 402}, "refused"),
            ("Stripe", "POST /v1/payment_intents", {"kind": "status", "status": 401}, "error"),
            ("Stripe", "POST /v1/payment_intents", {"kind": "status", "status": 429}, "unavailable"),
            ("Stripe", "POST /v1/payment_intents", {"kind": "reset"}, "unavailable"),
            ("Stripe", "POST /v1/payment_intents", {"kind": "hang"}, "timeout"),
            ("Stripe", "POST /v1/payment_intents", {"kind": "html"}, "error"),
            ("runs-service", "POST /v1/runs", None, "ok"),
            ("runs-service", "POST /v1/runs", {"kind": "status", "status": 404}, "refused"),
            ("runs-service", "POST /v1/runs", {"kind": "status", "status": 503}, "unavailable"),
            ("runs-service", "POST /v1/runs", {"kind": "hang"}, "timeout"),
            ("runs-service", "POST /v1/runs", {"kind": "json", "body": [1]}, "error"),
            ("key-service", "GET /internal/app-keys/stripe/decrypt", None, "ok"),
            ("key-service", "GET /internal/app-keys/stripe/decrypt", {"kind": "status", "status": 404}, "refused"),
            ("key-service", "GET /internal/app-keys/stripe/decrypt", {"kind": "status", "status": 503}, "unavailable"),
            ("key-service", "GET /internal/app-keys/stripe/decrypt", {"kind": "hang"}, "timeout"),
            ("key-service", "GET /internal/app-keys/stripe/decrypt", {"kind": "redirect"}, "error"),
        ],
    )
    def test_they_are_counted_by_how_they_ended(
        self,
        app: Flask,
        settings: Settings,
        stand_ins: StandIns,
        upstream: str,
        call: str,
        fault: dict[str, Any] | None,
        outcome: str,
    ) -> None:
        hasty = replace(settings, upstream_timeout_seconds=0.3, stripe_timeout_seconds=0.3)
        if fault is not None:
            stand_ins.fault(upstream.lower(), **fault, times=0)
        with another_client(hasty) as client:
            before = scrape(client)
            client.post(CREATE, json=intent())
            after = scrape(client)

        assert after.since(before, CALLS, upstream=upstream, call=call, outcome=outcome) == 1

    def test_ids_are_cut_out_of_paths(self, client: FlaskClient) -> None:
        before = scrape(client)
        created = {"json": intent(), "headers": {"Idempotency-Key": "once"}}
        for _ in range(2):
            assert client.post(CREATE, **created).status_code == 200
        after = scrape(client)

        for upstream, call in (
            ("runs-service", "POST /v1/runs/{id}/costs"),
            ("runs-service", "PATCH /v1/runs/{id}"),
            ("Stripe", "GET /v1/payment_intents/{id}"),
        ):
            assert after.since(before, CALLS, upstream=upstream, call=call, outcome="ok") == 1


class TestEvents:
    def test_they_are_counted_by_what_became_of_them(self, client: FlaskClient, stand_ins: StandIns) -> None:
        created = client.post(CREATE, json=intent()).json
        paid = stand_ins.control(f"intents/{created['paymentIntentId']}/pay")
        told = webhooks.event("payment_intent.succeeded", paid)
        foreign = webhooks.event("payment_intent.succeeded", {**paid, "id": "pi_other", "metadata": {}})
        before = scrape(client)
        for delivered in (told, told, foreign):
            assert webhooks.deliver(client, delivered).status_code == 200
        after = scrape(client)

        for outcome in ("stored", "duplicate", "unmatched"):
            assert after.since(before, "stripe_service_events_total", outcome=outcome) == 1
        assert after.since(before, "stripe_service_webhook_versions_total", version=told["api_version"]) == 3
        assert after.since(before, "stripe_service_payment_statuses_total", status="succeeded") == 1


class TestPool:
    def test_it_counts_the_connections_in_use(self, app: Flask, client: FlaskClient) -> None:
        before = scrape(client)
        with app.app_context(), app.extensions["sqlalchemy"].engine.connect():
            during = scrape(client)
        after = scrape(client)

        assert during.since(before, CONNECTIONS, state="in_use") == 1
        assert after.since(before, CONNECTIONS, state="in_use") == 0

    def test_it_takes_back_one_that_broke(self, app: Flask, client: FlaskClient, db: Connection) -> None:
        before = scrape(client)
        with app.app_context(), app.extensions["sqlalchemy"].engine.connect() as broken:
            pid = broken.execute(text("SELECT pg_backend_pid()")).scalar_one()
            db.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            with pytest.raises(DBAPIError):
                broken.execute(text("SELECT 1"))

        assert scrape(client).since(before, CONNECTIONS, state="in_use") == 0

    def test_it_tells_the_limit(self, app: Flask, settings: Settings, client: FlaskClient) -> None:
        before = scrape(client)
        with another_client(replace(settings, db_pool_size=5)):
            assert scrape(client).since(before, CONNECTIONS, state="limit") == 5


class TestBacklog:
    def test_it_is_empty_at_first(self, client: FlaskClient) -> None:
        figures = scrape(client)

        assert figures.get("stripe_service_database_up") == 1
        for step in ("accepted", "asked", "taken"):
            assert figures.get("stripe_service_payments_unfinished", step=step) == 0
        assert figures.get("stripe_service_payments_unfinished_oldest_seconds") == 0
        assert figures.get("stripe_service_payments_stuck") == 0
        assert figures.get("stripe_service_reconciliation_age_seconds", cursor="oldest") is None

    @pytest.mark.parametrize(
        ("service", "method", "step"),
        [("runs-service", "POST", "accepted"), ("stripe", None, "asked"), ("runs-service", "PATCH", "taken")],
    )
    def test_it_tells_what_is_unfinished_by_step(
        self, client: FlaskClient, db: Connection, stand_ins: StandIns, service: str, method: str | None, step: str
    ) -> None:
        stand_ins.fault(service, "status", status=500, method=method, times=0)
        client.post(CREATE, json=intent())
        db.execute(
            text("UPDATE operations SET created_at = created_at - interval '1h', asked_at = asked_at - interval '1h'")
        )
        figures = scrape(client)

        assert figures.get("stripe_service_payments_unfinished", step=step) == 1
        assert 3600 <= (figures.get("stripe_service_payments_unfinished_oldest_seconds") or 0) < 3700

    def test_it_tells_what_is_stuck_apart(self, client: FlaskClient, db: Connection, stand_ins: StandIns) -> None:
        stand_ins.fault("runs-service", "status", status=500, method="PATCH", times=0)
        client.post(CREATE, json=intent())
        db.execute(text("UPDATE operations SET tracking_state = 'stuck'"))
        figures = scrape(client)

        assert figures.get("stripe_service_payments_stuck") == 1
        assert figures.get("stripe_service_payments_unfinished", step="taken") == 0
        assert figures.get("stripe_service_payments_unfinished_oldest_seconds") == 0

    def test_it_tells_how_long_ago_apps_were_reconciled(self, client: FlaskClient, db: Connection) -> None:
        for app_id, minutes in (("a", 10), ("b", 60), ("c", None)):
            db.execute(
                text(
                    "INSERT INTO event_cursors (app_id, reconciled_until, lease_token, lease_until)"
                    " VALUES (:app_id, now() - make_interval(mins => :minutes), gen_random_uuid(), now())"
                ),
                {"app_id": app_id, "minutes": minutes},
            )
        figures = scrape(client)

        name = "stripe_service_reconciliation_age_seconds"
        assert 3600 <= (figures.get(name, cursor="oldest") or 0) < 3660
        assert 600 <= (figures.get(name, cursor="newest") or 0) < 660

    def test_it_tells_how_events_get_to_apps(self, app: Flask, settings: Settings, db: Connection) -> None:
        """Lag is of endpoints that work; and an app is a label only where it may be."""
        db.execute(
            text(
                "INSERT INTO event_endpoints (id, app_id, url, failing_since, disabled_at, succeeded_count)"
                " VALUES (gen_random_uuid(), 'shop', '', NULL, NULL, 3),"
                " (gen_random_uuid(), 'shop', '', now(), NULL, 0), (gen_random_uuid(), 'bar', '', NULL, now(), 1);"
                "INSERT INTO app_events (id, app_id, type, data) VALUES (gen_random_uuid(), 'shop', 'ping', '{}');"
                "INSERT INTO deliveries (event_number, endpoint_id, subject, next_attempt_at) SELECT number, e.id, '',"
                " now() - CASE WHEN failing_since IS NULL AND disabled_at IS NULL THEN interval '7s' ELSE '1h' END"
                " FROM app_events, event_endpoints e"
            )
        )
        for by_app, bar in ((False, None), (True, 1)):
            with another_client(replace(settings, metrics_by_app=by_app)) as client:
                figures = scrape(client)
            assert 7 <= (figures.get("stripe_service_app_event_lag_seconds") or 0) < 60
            assert figures.get("stripe_service_app_events_undelivered", app="bar") == bar
            assert figures.get("stripe_service_app_event_tries_total", app="bar", outcome="succeeded") == bar
            states = [figures.get("stripe_service_event_endpoints", state=state) for state in ("working", "failing")]
            assert states == [1, 1]
        assert figures.get("stripe_service_app_events_undelivered", app="shop") == 2

    def test_it_reads_no_growing_table_whole(self, app: Flask, db: Connection) -> None:
        db.execute(
            text(
                "INSERT INTO operations (id, kind, app_id, request_hash, request, step, lease_token, tracking_state)"
                " SELECT gen_random_uuid(), 'payment_intent', 'shop', '', '{}', 'finished', gen_random_uuid(), 'none'"
                " FROM generate_series(1, 5000)"
            )
        )
        db.execute(text("ANALYZE operations"))
        services = app.extensions[EXTENSION_KEY]
        left, cursors, *_ = explain(services.database.engine, lambda: backlog.find_backlog(services))

        assert "ix_operations_lease_until" in left
        assert "Seq Scan on operations" not in left
        assert all(re.search(r"LIMIT 10000\b", each) for each in (left, cursors))
        assert "operations" not in cursors

    def test_it_is_left_out_while_the_database_is_away(self, app: Flask, settings: Settings) -> None:
        away = f"postgresql+psycopg2://nobody@127.0.0.1:{free_port()}/none"
        with another_client(replace(settings, database_url=away)) as client:
            client.get("/health")
            figures = scrape(client)

        assert figures.get("stripe_service_database_up") == 0
        assert not [name for name in figures.names if name.startswith("stripe_service_payments_")]
        assert figures.get(REQUESTS, method="GET", route="/health", status="200")

    def test_it_is_left_out_while_the_database_is_not_migrated(self, app: Flask, settings: Settings) -> None:
        """Its tables are in another schema than the one that the service looks into."""
        url = make_url(settings.database_url).update_query_dict({"options": "-csearch_path=pg_catalog"})
        with another_client(replace(settings, database_url=url.render_as_string(hide_password=False))) as client:
            figures = scrape(client)
            checks = client.get("/health/ready").json["checks"]

        assert figures.get("stripe_service_database_up") == 0
        assert checks == {"database": "ok", "migrations": "not at head"}

    def test_it_is_left_out_while_the_database_is_silent(self, app: Flask, settings: Settings) -> None:
        """Prometheus gives up after 10 seconds."""
        started = time.monotonic()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"postgresql+psycopg2://nobody@127.0.0.1:{silent.getsockname()[1]}/none"
            with another_client(replace(settings, database_url=url)) as client:
                figures = scrape(client)

        assert figures.get("stripe_service_database_up") == 0
        assert time.monotonic() - started < 10


class TestProcesses:
    def test_what_two_of_them_count_adds_up(self, environment: dict[str, str], app: Flask, tmp_path: Path) -> None:
        shared = {"WEB_CONCURRENCY": "2", "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        with WebProcess.start(environment | shared) as web:
            answered = 0

            def ask_until_both_answered() -> bool:
                nonlocal answered
                with ThreadPoolExecutor(20) as pool:
                    list(pool.map(lambda _: requests.get(f"{web.url}/docs/", timeout=20), range(20)))
                answered += 20
                return len(list(tmp_path.glob("histogram_*.db"))) == 2

            wait_until(ask_until_both_answered, seconds=30, what="both workers to answer")
            figures = scrape_web(web)
            labels = {"method": "GET", "route": "/docs/", "status": "200"}
            assert figures.get(REQUESTS, **labels) == answered
            assert figures.get("stripe_service_request_seconds_bucket", **labels, le="+Inf") == answered
            assert figures.get(CONNECTIONS, state="limit") == 16

    def test_what_a_dead_one_counted_stays_and_what_it_used_goes(
        self, environment: dict[str, str], app: Flask, tmp_path: Path
    ) -> None:
        with WebProcess.start(environment | {"WEB_CONCURRENCY": "1", "TMPDIR": str(tmp_path)}) as web:
            for _ in range(10):
                requests.get(f"{web.url}/docs/", timeout=20)
            (worker,) = web.workers()
            psutil.Process(worker).send_signal(signal.SIGKILL)
            wait_until(lambda: web.workers() not in ([], [worker]), seconds=20, what="another worker")
            wait_until(lambda: not list(tmp_path.glob(f"*/gauge_livesum_{worker}.db")), seconds=20, what="its end")
            wait_until(web.is_up, seconds=20, what="another worker's answer")
            figures = scrape_web(web)

        assert figures.get(REQUESTS, method="GET", route="/docs/", status="200") == 10
        assert figures.get(CONNECTIONS, state="limit") == 8

    def test_their_directory_is_private_and_goes_with_them(
        self, environment: dict[str, str], app: Flask, tmp_path: Path
    ) -> None:
        def made() -> list[Path]:
            return list(tmp_path.glob("stripe-service-metrics-*"))

        with WebProcess.start(environment | {"WEB_CONCURRENCY": "1", "TMPDIR": str(tmp_path)}):
            (directory,) = made()
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700

        assert made() == []

    def test_every_metric_has_labels(self) -> None:
        """Fails for one without: its value is made when it is imported, where no other process looks for it."""
        for name, metric in vars(metrics).items():
            if hasattr(metric, "_labelnames"):
                assert metric._labelnames, name


class TestOperations:
    @pytest.mark.parametrize("name", ["alerts.yml", "grafana.json", "operations.md"])
    def test_the_metrics_that_are_named_exist(
        self, app: Flask, settings: Settings, stand_ins: StandIns, db: Connection, name: str
    ) -> None:
        with another_client(replace(settings, metrics_by_app=True)) as client:
            exercise(client, stand_ins)
            figures = scrape(client)
        named = set(re.findall(r"\bstripe_service_\w+", (ROOT / "docs" / name).read_text()))

        assert named
        assert named <= figures.names

    @pytest.mark.parametrize("name", ["grafana.json", "operations.md"])
    def test_every_metric_is_named(self, client: FlaskClient, name: str) -> None:
        page = (ROOT / "docs" / name).read_text()
        ours = {name for name in scrape(client).families if name.startswith("stripe_service_")}
        assert "stripe_service_events" in ours
        assert {each for each in ours if not re.search(rf"\b{each}(_total|_count|_bucket)?\b", page)} == set()

    def test_the_labels_of_the_board_are_those_of_its_metrics(
        self, app: Flask, settings: Settings, stand_ins: StandIns, db: Connection
    ) -> None:
        with another_client(replace(settings, metrics_by_app=True)) as client:
            exercise(client, stand_ins)
        left = metrics.Backlog(
            unfinished={"asked": 1},
            oldest_unfinished_seconds=1,
            stuck=1,
            oldest_cursor_seconds=1,
            newest_cursor_seconds=1,
            undelivered={"shop": 1},
            dead={"shop": 1},
            tries={("shop", "failed"): 1},
            endpoints={"failing": 1},
            delivery_lag_seconds=1,
        )
        figures = Figures(metrics.render(left, None).decode())
        board = json.loads((ROOT / "docs" / "grafana.json").read_text())
        queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]

        assert queries
        for query in queries:
            used = set(re.findall(r"(\w+)(?:!?=~?)", query)) | set(words(re.findall(r"by \(([^)]+)\)", query)))
            measured = {label for name in re.findall(r"\bstripe_service_\w+", query) for label in figures.labels(name)}
            # Prometheus adds the first two to whatever it reads.
            assert used <= {"job", "instance"} | measured, query


def words(lists: list[str]) -> Iterator[str]:
    """The words of lists by commas."""
    for each in lists:
        yield from re.split(r",\s*", each)


def exercise(client: FlaskClient, stand_ins: StandIns) -> None:
    """Make everything happen that is measured; what only gunicorn's worker meets is counted as it does."""
    metrics.count_unfinished_request("head")
    created = client.post(CREATE, json=intent()).json
    paid = stand_ins.control(f"intents/{created['paymentIntentId']}/pay")
    assert webhooks.deliver(client, webhooks.event("payment_intent.succeeded", paid)).status_code == 200
    dispute = {"id": "dp_1", "object": "dispute", "payment_intent": paid["id"], "status": "undreamt_of", "amount": 1}
    assert webhooks.deliver(client, webhooks.event("charge.dispute.created", dispute)).status_code == 200
