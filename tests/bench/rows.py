"""What reads take on a million payments and three million events, next to ten thousand payments.

`python -m tests.bench.rows` fails when a read takes more than its bound, or looks at every row of a table.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from statistics import median
from urllib.parse import urlencode

import orjson
from flask.testing import FlaskClient
from sqlalchemy import Engine

from app import create_app
from app.config import Settings
from tests.bench import population
from tests.bench.database import connect, fresh_database
from tests.bench.plans import explain, reads_whole_table
from tests.bench.population import ORG_OF_1000, ORG_OF_A_TENTH
from tests.bench.processes import end_cleanly_on_signals
from tests.bench.service import service_environment
from tests.web import API_KEY

SMALL = 10_000
MOST_TIMES_SMALL = 2.0
WHOLE_APP_MS = 500.0
PERIODS_OF_WHOLE_APP_MS = 3_000.0
BLOCKS = 8
BLOCK = 50
REPEATS_OF_WHOLE_APP = 20
STATUSES = 100
LARGEST_PAGE = 500
# No read asks an upstream.
NO_UPSTREAM_PORT = 9


@dataclass(frozen=True)
class Store:
    """The service in this process, on a database of so many payments."""

    client: FlaskClient
    engine: Engine
    payments: int

    def get(self, path: str) -> dict[str, object]:
        response = self.client.get(path)
        assert response.status_code == 200, (path, response.status, response.text)
        return dict(orjson.loads(response.data))


@dataclass(frozen=True)
class Read:
    """A kind of read: for a database, the paths that are taken in turn."""

    name: str
    paths: Callable[[Store], Sequence[str]]


@dataclass(frozen=True)
class Figures:
    """What a read takes, in milliseconds, and what it may take."""

    name: str
    milliseconds: float
    bound: float
    remark: str

    def __str__(self) -> str:
        verdict = "" if self.milliseconds <= self.bound else "  MISSED"
        return f"{self.name:<34}{self.milliseconds:>9.2f} ms, bound {self.bound:>7.2f} ms {self.remark}{verdict}"


def main() -> int:
    """Measure, print plans and figures; 1 when a bound is missed or a whole table is read."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rows", description=__doc__.partition("\n")[0])
    parser.add_argument("--payments", type=int, default=1_000_000, help="in the large database")
    parser.add_argument("--keep", action="store_true", help="leave the databases where they are")
    options = parser.parse_args()
    if options.payments < SMALL:
        parser.error(f"--payments must be at least {SMALL}")
    end_cleanly_on_signals()
    with ExitStack() as stack:
        small = stack.enter_context(_store(SMALL, keep=options.keep))
        large = stack.enter_context(_store(options.payments, keep=options.keep))
        plans = [plan for read in READS for plan in _plans(large, read)]
        figures = [_compare(read, small, large) for read in READS]
    with _store(options.payments, apps=1, events=False, keep=options.keep) as one_app:
        for read, bound in WHOLE_APP:
            plans += _plans(one_app, read)
            figures.append(_measure_whole_app(one_app, read, bound))
    print("\n\n".join(plans), *figures, sep="\n")
    whole_tables = sum(map(reads_whole_table, plans))
    print(f"plans that read a whole table: {whole_tables} of {len(plans)}")
    return 1 if whole_tables or any(each.milliseconds > each.bound for each in figures) else 0


@contextmanager
def _store(payments: int, *, apps: int = 20, events: bool = True, keep: bool) -> Iterator[Store]:
    with fresh_database(keep=keep) as url:
        _say(f"{url}: {payments:,} payments of {apps} apps")
        with connect(url).connect() as connection:
            population.add_paid(connection, payments, apps=apps)
            if events:
                _say(f"{payments * population.EVENTS_OF_PAYMENT:,} events")
                population.add_events(connection)
            population.vacuum(connection)
        app = create_app(Settings.from_environment(service_environment(url, NO_UPSTREAM_PORT)).require_valid())
        client = app.test_client()
        client.environ_base["HTTP_X_API_KEY"] = API_KEY
        with app.app_context():
            engine = app.extensions["sqlalchemy"].engine
        try:
            yield Store(client, engine, payments)
        finally:
            engine.dispose()


def _statuses(store: Store) -> list[str]:
    step = store.payments // STATUSES
    return [f"/status/{population.payment_id(number)}" for number in range(1, store.payments, step)]


def _page_in_the_middle(store: Store) -> list[str]:
    """The page that cursors lead to after half of the largest organisation's payments."""
    path = f"/status/by-org/{ORG_OF_A_TENTH}"
    cursor = ""
    for _ in range(store.payments // 10 // 2 // LARGEST_PAGE):
        cursor = f"cursor={store.get(f'{path}?limit={LARGEST_PAGE}&{cursor}')['nextCursor']}"
    return [f"{path}?{cursor}"]


def _stats_of_org(_: Store) -> list[str]:
    return [f"/stats?orgId={ORG_OF_1000}"]


def _stats_of_org_by_month(_: Store) -> list[str]:
    return [f"/stats?orgId={ORG_OF_1000}&groupBy=month"]


def _summary_of_org(_: Store) -> list[str]:
    return [f"/summary/by-org/{ORG_OF_1000}"]


def _stats_of_app(_: Store) -> list[str]:
    return ["/stats?appId=app_0"]


def _stats_of_app_by_month(_: Store) -> list[str]:
    return ["/stats?appId=app_0&groupBy=month"]


def _stats_of_app_in_a_week(_: Store) -> list[str]:
    week = {"from": datetime.now(UTC) - timedelta(days=30), "to": datetime.now(UTC) - timedelta(days=23)}
    return [f"/stats?{urlencode({name: f'{time:%Y-%m-%d}' for name, time in week.items()})}&appId=app_0&groupBy=day"]


READS = (
    Read("GET /status/{paymentId}", _statuses),
    Read("GET /status/by-org, in the middle", _page_in_the_middle),
    Read("GET /stats of an org of 1,000", _stats_of_org),
    Read("GET /stats of that org by month", _stats_of_org_by_month),
    Read("GET /summary of that org", _summary_of_org),
)
WHOLE_APP = (
    (Read("GET /stats of an app with all", _stats_of_app), WHOLE_APP_MS),
    (Read("GET /stats of that app by month", _stats_of_app_by_month), PERIODS_OF_WHOLE_APP_MS),
    (Read("GET /stats of a week of it by day", _stats_of_app_in_a_week), WHOLE_APP_MS),
)


def _plans(store: Store, read: Read) -> list[str]:
    _say(f"{read.name}: plans")
    path = read.paths(store)[-1]
    store.get(path)
    return [f"{read.name}\n{plan}" for plan in explain(store.engine, lambda: store.get(path))]


def _compare(read: Read, small: Store, large: Store) -> Figures:
    _say(f"{read.name}: {BLOCKS * BLOCK} times")
    usual, measured = map(median, _measure_by_turns(read, (small, large)))
    remark = f"= {MOST_TIMES_SMALL:.0f} x {usual:.2f} ms with {small.payments:,}: {measured / usual:.2f} x"
    return Figures(read.name, measured, MOST_TIMES_SMALL * usual, remark)


def _measure_by_turns(read: Read, stores: Sequence[Store]) -> list[list[float]]:
    """Milliseconds on each database, measured in a block on one after a block on another.

    Whatever else the machine does meets both; and within a block the caches are warm, of the processor too.
    """
    turns = [(store, cycle(read.paths(store)), list[float]()) for store in stores]
    for _ in range(BLOCKS):
        for store, all_paths, taken in turns:
            paths = list(islice(all_paths, BLOCK))
            _warm(store, paths)
            taken += [_milliseconds(store, path) for path in paths]
    return [taken for _, _, taken in turns]


def _warm(store: Store, paths: Sequence[str]) -> None:
    for path in paths:
        store.get(path)


def _measure_whole_app(store: Store, read: Read, bound: float) -> Figures:
    path = read.paths(store)[0]
    counted = store.get(path)["totalPayments"]
    measured = median(_milliseconds(store, path) for _ in range(REPEATS_OF_WHOLE_APP))
    return Figures(read.name, measured, bound, f"for {counted:,} payments")


def _milliseconds(store: Store, path: str) -> float:
    started = time.perf_counter()
    store.get(path)
    return 1000 * (time.perf_counter() - started)


def _say(progress: str) -> None:
    print(progress, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
