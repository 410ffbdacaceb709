"""The service as it is measured: under its production settings, on a database and upstreams of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import text

from tests.bench import population
from tests.bench.database import connect, fresh_database
from tests.bench.processes import WebServer, upstreams, web_server
from tests.bench.traffic import APP, FIRST_UNPAID, PAID_PAYMENTS, Effects
from tests.web import API_KEY
from tests.webhooks import SECRET

# What requests have left, in the order of `Effects`. The payments and events of the population are no part of it.
_EFFECTS = text("""
    SELECT
        count(*) FILTER (WHERE payments.app_id = :app AND step = 'finished' AND tracking_state = 'complete'),
        count(*) FILTER (WHERE org_id = :unpaid AND status = 'succeeded'),
        (SELECT count(*) FROM stripe_events WHERE payment_id IS NULL)
    FROM payments JOIN operations USING (id)
""")


class MissingEffect(Exception):
    """The service answered well and didn't do what it said."""


@dataclass(frozen=True)
class MeasuredService:
    """A running service, with the yardstick beside it."""

    web: WebServer
    yardstick: WebServer
    database_url: str

    def require_effects(self, expected: Effects) -> None:
        """Check that the requests left what they should in the database.

        :raises MissingEffect: when they left more or less.
        """
        with connect(self.database_url).connect() as connection:
            counts = connection.execute(_EFFECTS, {"app": APP, "unpaid": population.ORG_OF_THE_UNPAID}).one()
        if (found := Effects(*counts)) != expected:
            raise MissingEffect(f"expected {expected}, found {found}")


@contextmanager
def measured_service(*, workers: int, unpaid: int = 0, latency_ms: float = 0) -> Iterator[MeasuredService]:
    """Run the service on 10,000 paid payments and some that are not.

    :param unpaid: how many payments wait for an event
    :param latency_ms: how long each call to an upstream takes
    """
    with fresh_database() as url, upstreams(latency_ms=latency_ms) as port:
        with connect(url).connect() as connection:
            population.add_paid(connection, PAID_PAYMENTS)
            population.add_events(connection)
            population.add_unpaid(connection, FIRST_UNPAID, unpaid)
            population.vacuum(connection)
        environment = service_environment(url, port) | {"WEB_CONCURRENCY": str(workers)}
        with (
            web_server("wsgi:app", environment) as web,
            web_server("tests.bench.yardstick:app", environment) as yardstick,
        ):
            yield MeasuredService(web, yardstick, url)


def service_environment(database_url: str, upstream_port: int) -> dict[str, str]:
    """What a process of the service is started with."""
    upstream = f"http://127.0.0.1:{upstream_port}"
    return {
        "STRIPE_SERVICE_DATABASE_URL": database_url,
        "STRIPE_SERVICE_API_KEY": API_KEY,
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "STRIPE_API_BASE": upstream,
        "KEY_SERVICE_URL": f"{upstream}/key-service",
        "KEY_SERVICE_API_KEY": "bench",
        "RUNS_SERVICE_URL": f"{upstream}/runs-service",
        "RUNS_SERVICE_API_KEY": "bench",
    }
