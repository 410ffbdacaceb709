"""What the service measures, for Prometheus.

A label holds what is known beforehand: route templates, names of calls, outcomes; never an id, and an app only where
the operator asks for it. Every metric has labels, since one without any makes its value when it is imported, before
`share_between_processes` can say where values are kept.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import Engine, event

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OK = "ok"
# How a call ended whose error doesn't say how it is counted.
ERROR = "error"

OTHER_APPS = "other"

# From a read of one row to the longest that a request may take with the default lease.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50)

# A counter's time of creation doubles its series, and doesn't exist where processes share their values.
disable_created_metrics()  # type: ignore[no-untyped-call]

registry = CollectorRegistry()

request_seconds = Histogram(
    "stripe_service_request_seconds",
    "Requests, and how long they took to answer.",
    ("method", "route", "status"),
    buckets=SECONDS,
    registry=registry,
)
creates_by_app = Counter(
    "stripe_service_create_requests_by_app",
    "Requests to create a payment, by app; only with METRICS_BY_APP=1. Apps that have created none yet are 'other'.",
    ("app", "route", "status"),
    registry=registry,
)
upstream_call_seconds = Histogram(
    "stripe_service_upstream_call_seconds",
    "Calls to upstreams, and how long they took: ok, refused (no such thing, declined), unavailable, timeout or error.",
    ("upstream", "call", "outcome"),
    buckets=SECONDS,
    registry=registry,
)
events = Counter(
    "stripe_service_events",
    "Genuine events received: stored with their payment, stored without one (unmatched), or stored before.",
    ("outcome",),
    registry=registry,
)
webhook_versions = Counter(
    "stripe_service_webhook_versions",
    "Genuine webhooks by the version of Stripe's API that they say they are told in; none where they don't say.",
    ("version",),
    registry=registry,
)
operations = Counter(
    "stripe_service_operations",
    "Operations of which it became known what Stripe did, by kind: done, refused, or abandoned: nothing was done.",
    ("kind", "outcome"),
    registry=registry,
)
payment_statuses = Counter(
    "stripe_service_payment_statuses",
    "How often an event brought a payment to a status.",
    ("status",),
    registry=registry,
)
unknown_values = Counter(
    "stripe_service_unknown_values",
    "Folds that met a value of Stripe's that we don't know, by the field that holds it.",
    ("field",),
    registry=registry,
)
unfinished_requests = Counter(
    "stripe_service_unfinished_requests",
    "Connections closed because a client was too slow, by what of its request had come: nothing, head, body; or whole,"
    " where it did not take the answer.",
    ("received",),
    registry=registry,
)
database_connections = Gauge(
    "stripe_service_database_connections",
    "Connections of all pools: in use, and how many there may be.",
    ("state",),
    multiprocess_mode="livesum",
    registry=registry,
)

# Looking a child up is a third of what it takes to count; there are few, as labels are.
_request_seconds = cache(request_seconds.labels)
_upstream_call_seconds = cache(upstream_call_seconds.labels)

# Only an app that has created a payment becomes a label: an app that doesn't exist never has.
_apps_with_payments: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """What is left to do, as the database knows it. Ages are in seconds.

    :param unfinished: how many payments are at each step before the last, without those that are stuck
    :param undelivered: how many deliveries of events are on their way, by app
    :param dead: how many were given up within a day, by app
    :param tries: how many deliveries were tried, by app and outcome
    :param endpoints: how many there are, by state
    :param delivery_lag_seconds: how long the delivery is due that waits longest for an endpoint that works
    :param oldest_cursor_seconds: how long ago the app was reconciled that waits longest; None where none ever was
    """

    unfinished: Mapping[str, int]
    oldest_unfinished_seconds: float
    stuck: int
    oldest_cursor_seconds: float | None
    newest_cursor_seconds: float | None
    undelivered: Mapping[str, int]
    dead: Mapping[str, int]
    tries: Mapping[tuple[str, str], int]
    endpoints: Mapping[str, int]
    delivery_lag_seconds: float


def share_between_processes() -> None:
    """Keep values in the files of PROMETHEUS_MULTIPROC_DIR, which each process has some of and all can read.

    prometheus_client decides that when it is imported; gunicorn imports this package before its settings can name the
    directory.
    """
    values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]


def count_request(*, method: str, route: str, status: int, seconds: float) -> None:
    """Count an answer."""
    _request_seconds(method, route, status).observe(seconds)


def count_create(*, app_id: str, route: str, status: int) -> None:
    """Count an answer to a request to create a payment, by app."""
    if status == 200:
        _apps_with_payments.add(app_id)
    creates_by_app.labels(app_id if app_id in _apps_with_payments else OTHER_APPS, route, status).inc()


@contextmanager
def upstream_call(upstream: str, call: str) -> Iterator[None]:
    """Count and time a call to an upstream; an error of ours says by its `outcome` how it is counted.

    :param call: a method and a template of the upstream's, such as `POST /v1/runs/{id}/costs`
    """
    began_at, outcome = time.perf_counter(), ERROR
    try:
        yield
        outcome = OK
    except Exception as error:
        outcome = getattr(error, "outcome", ERROR)
        raise
    finally:
        _upstream_call_seconds(upstream, call, outcome).observe(time.perf_counter() - began_at)


def count_event(*, is_new: bool, has_payment: bool) -> None:
    """Count an event that was received and committed."""
    events.labels(("stored" if has_payment else "unmatched") if is_new else "duplicate").inc()


def count_webhook_version(version: str | None) -> None:
    """Count a webhook that was received and committed, by a name that can be a version of Stripe's API."""
    webhook_versions.labels(version or "none").inc()


def count_operation(kind: str, outcome: str) -> None:
    """Count an operation of which it is known what Stripe did."""
    operations.labels(kind, outcome).inc()


def count_status(status: str) -> None:
    """Count a payment that came to a status."""
    payment_statuses.labels(status).inc()


def count_unknown_value(field: str) -> None:
    """Count a value of Stripe's that we don't know."""
    unknown_values.labels(field).inc()


def count_unfinished_request(received: str) -> None:
    """Count a connection that is closed before its request has come, or its answer has gone, whole."""
    unfinished_requests.labels(received).inc()


def watch_pool(database: Engine, *, limit: int) -> None:
    """Count the connections that are taken from a pool, which holds so many at most."""
    in_use = database_connections.labels("in_use")
    database_connections.labels("limit").inc(limit)
    event.listen(database, "checkout", lambda *_: in_use.inc())
    event.listen(database, "checkin", lambda *_: in_use.dec())


def render(backlog: Backlog | None, shared_directory: str | None) -> bytes:
    """All of it, as Prometheus reads it.

    :param backlog: None where the database can't tell
    :param shared_directory: where the processes share their values, if they do
    """
    measured: Collector = registry
    if shared_directory is not None:
        measured = MultiProcessCollector(None, shared_directory)  # type: ignore[no-untyped-call]
    return generate_latest(measured) + generate_latest(_BacklogCollector(backlog))


class _BacklogCollector(Collector):
    """Shows the database's figures, and whether it gave any."""

    def __init__(self, backlog: Backlog | None) -> None:
        self._backlog = backlog

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        up = "Whether the database answered in time and is migrated; where not, what only it knows is left out."
        yield GaugeMetricFamily("stripe_service_database_up", up, value=self._backlog is not None)
        if self._backlog is not None:
            yield from _families(self._backlog)


def _families(backlog: Backlog) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    unfinished = GaugeMetricFamily(
        "stripe_service_payments_unfinished",
        "Payments that have not walked to their end, by step, without those that are stuck.",
        labels=("step",),
    )
    for step, count in backlog.unfinished.items():
        unfinished.add_metric((step,), count)
    yield unfinished
    yield GaugeMetricFamily(
        "stripe_service_payments_unfinished_oldest_seconds",
        "How long ago the oldest of them was asked for; 0 where there is none.",
        value=backlog.oldest_unfinished_seconds,
    )
    yield GaugeMetricFamily(
        "stripe_service_payments_stuck", "Payments that only a person can decide.", value=backlog.stuck
    )
    cursors = GaugeMetricFamily(
        "stripe_service_reconciliation_age_seconds",
        "How long ago the apps were reconciled that wait longest (oldest) and shortest (newest).",
        labels=("cursor",),
    )
    for cursor, age in (("oldest", backlog.oldest_cursor_seconds), ("newest", backlog.newest_cursor_seconds)):
        if age is not None:
            cursors.add_metric((cursor,), age)
    yield cursors
    yield from _families_of_deliveries(backlog)


def _families_of_deliveries(backlog: Backlog) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    yield GaugeMetricFamily(
        "stripe_service_app_event_lag_seconds",
        "How long the delivery is due that waits longest for an endpoint that works; 0 where none is due.",
        value=backlog.delivery_lag_seconds,
    )
    by_app = ("app",)
    undelivered = GaugeMetricFamily(
        "stripe_service_app_events_undelivered", "Deliveries of events that are on their way.", labels=by_app
    )
    dead = GaugeMetricFamily(
        "stripe_service_app_events_dead", "Deliveries that were given up within a day.", labels=by_app
    )
    for family, counts in ((undelivered, backlog.undelivered), (dead, backlog.dead)):
        for app_id, count in counts.items():
            family.add_metric((app_id,), count)
        yield family
    tries = CounterMetricFamily(
        "stripe_service_app_event_tries", "Deliveries that were tried: succeeded, failed.", labels=("app", "outcome")
    )
    for labels, count in backlog.tries.items():
        tries.add_metric(labels, count)
    yield tries
    endpoints = GaugeMetricFamily(
        "stripe_service_event_endpoints", "Endpoints of apps: working, failing or disabled.", labels=("state",)
    )
    for state, count in backlog.endpoints.items():
        endpoints.add_metric((state,), count)
    yield endpoints
