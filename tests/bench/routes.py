"""What a request to each route costs: CPU of the service and of its database, next to that of a bare Flask route.

`python -m tests.bench.routes` runs the service as in production, on a database and upstreams of its own.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from tests.bench.backends import DatabaseUse, backend_cpu_between, database_use
from tests.bench.latency import measure_under_latency
from tests.bench.load import Load, UnexpectedAnswer, drive
from tests.bench.memory import measure_memory
from tests.bench.processes import cpu_between, end_cleanly_on_signals
from tests.bench.service import MeasuredService, measured_service
from tests.bench.traffic import DUPLICATED_EVENTS, Route, Traffic, http

CONNECTIONS = 16
# Enough that every event that will be sent twice was sent once.
WARM_UP = DUPLICATED_EVENTS
# How many requests are sent to the yardstick before it is the route's turn, and the other way round.
TURN = 1000
YARDSTICK = http("GET", "/")
# The table's columns: the title, the figure and its format.
COLUMNS = (
    ("req/s", "per_second", ".0f"),
    ("p50 ms", "p50_ms", ".1f"),
    ("p95 ms", "p95_ms", ".1f"),
    ("p99 ms", "p99_ms", ".1f"),
    ("yardstick ms", "yardstick_cpu_ms", ".2f"),
    ("service ms", "service_cpu_ms", ".2f"),
    ("database ms", "database_cpu_ms", ".2f"),
    ("sum ms", "total_cpu_ms", ".2f"),
    ("service x", "service_ratio", ".2f"),
    ("target x", "target", ".1f"),
    ("database x", "database_ratio", ".2f"),
    ("sum x", "total_ratio", ".2f"),
    ("WAL bytes", "wal_bytes", ".0f"),
)


@dataclass(frozen=True)
class Used:
    """What was used so far: CPU seconds by process id, and what the database used."""

    service: Mapping[int, float]
    yardstick: Mapping[int, float]
    database: DatabaseUse

    @classmethod
    def until_now(cls, service: MeasuredService) -> "Used":
        return cls(service.web.cpu_seconds(), service.yardstick.cpu_seconds(), database_use(service.database_url))


@dataclass(frozen=True)
class Cost:
    """What one request takes: milliseconds of CPU, user and system time, and bytes of WAL."""

    service_ms: float
    database_ms: float
    yardstick_ms: float
    wal_bytes: float

    @classmethod
    def between(cls, before: Used, after: Used, *, requests: int) -> "Cost":
        """The mean of so many requests, each beside one to the yardstick."""
        return cls(
            service_ms=1000 * cpu_between(before.service, after.service) / requests,
            database_ms=1000 * backend_cpu_between(before.database, after.database) / requests,
            yardstick_ms=1000 * cpu_between(before.yardstick, after.yardstick) / requests,
            wal_bytes=(after.database.wal_bytes - before.database.wal_bytes) / requests,
        )

    @property
    def total_ms(self) -> float:
        return self.service_ms + self.database_ms


@dataclass(frozen=True)
class Round:
    """One measurement of a route, and of the yardstick just before it."""

    load: Load
    cost: Cost


@dataclass(frozen=True)
class Figures:
    """What a request to a route takes, each figure in the middle of all rounds; a ratio is a CPU time in yardsticks."""

    route: str
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    yardstick_cpu_ms: float
    service_cpu_ms: float
    database_cpu_ms: float
    total_cpu_ms: float
    service_ratio: float
    database_ratio: float
    total_ratio: float
    target: float
    wal_bytes: float

    @classmethod
    def of(cls, route: Route, rounds: Sequence[Round]) -> "Figures":
        costs = [each.cost for each in rounds]
        return cls(
            route=route.name,
            per_second=median(each.load.per_second for each in rounds),
            p50_ms=median(each.load.percentile_ms(50) for each in rounds),
            p95_ms=median(each.load.percentile_ms(95) for each in rounds),
            p99_ms=median(each.load.percentile_ms(99) for each in rounds),
            yardstick_cpu_ms=median(cost.yardstick_ms for cost in costs),
            service_cpu_ms=median(cost.service_ms for cost in costs),
            database_cpu_ms=median(cost.database_ms for cost in costs),
            total_cpu_ms=median(cost.total_ms for cost in costs),
            # Of each round by itself, so that a machine that slows down meanwhile slows both.
            service_ratio=median(cost.service_ms / cost.yardstick_ms for cost in costs),
            database_ratio=median(cost.database_ms / cost.yardstick_ms for cost in costs),
            total_ratio=median(cost.total_ms / cost.yardstick_ms for cost in costs),
            target=route.target,
            wal_bytes=median(cost.wal_bytes for cost in costs),
        )

    @property
    def is_within_target(self) -> bool:
        return self.service_ratio <= self.target


def main() -> int:
    """Measure what is asked for; 1 when a route takes more than its target."""
    options = _options()
    end_cleanly_on_signals()
    if options.latency is None and not options.memory:
        return _measure_routes(options)
    figures = (
        measure_memory(workers=options.workers)
        if options.memory
        else measure_under_latency(options.latency, workers=options.workers)
    )
    print(json.dumps(asdict(figures)) if options.json else figures)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.routes", description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=3000, help="for each route in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(Traffic().routes), help="one route")
    parser.add_argument("--workers", type=int, default=1, help="gunicorn's workers (WEB_CONCURRENCY)")
    parser.add_argument("--latency", type=float, metavar="MS", help="creates and reads with upstreams this slow")
    parser.add_argument("--memory", action="store_true", help="a worker's memory after 10,000 and 50,000 requests")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _measure_routes(options: argparse.Namespace) -> int:
    traffic = Traffic()
    names = [options.only] if options.only else list(traffic.routes)
    unpaid = options.requests * options.rounds + WARM_UP + DUPLICATED_EVENTS
    with measured_service(workers=options.workers, unpaid=unpaid) as service:
        rounds = _measure_in_turn(service, traffic, names, options)
        service.require_effects(traffic.effects)
    figures = [Figures.of(traffic.routes[name], rounds[name]) for name in names]
    print(json.dumps([asdict(each) for each in figures]) if options.json else _table(figures))
    return 0 if all(each.is_within_target for each in figures) else 1


def _measure_in_turn(
    service: MeasuredService, traffic: Traffic, names: Sequence[str], options: argparse.Namespace
) -> dict[str, list[Round]]:
    drive(service.yardstick.port, [YARDSTICK] * WARM_UP, connections=CONNECTIONS)
    for name in names:
        drive(service.web.port, traffic.take(name, WARM_UP), connections=CONNECTIONS)
    rounds: dict[str, list[Round]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            print(f"round {number + 1}: {name}", file=sys.stderr)
            rounds[name].append(_measure(service, traffic, name, options.requests))
    return rounds


def _measure(service: MeasuredService, traffic: Traffic, name: str, count: int) -> Round:
    """Drive the yardstick and the route by turns, so that whatever else the machine does meets both."""
    before = Used.until_now(service)
    loads = []
    for size in _turns(count):
        requests = list(traffic.take(name, size))
        drive(service.yardstick.port, [YARDSTICK] * size, connections=CONNECTIONS)
        loads.append(drive(service.web.port, requests, connections=CONNECTIONS))
    cost = Cost.between(before, Used.until_now(service), requests=count)
    _require_answer(traffic.routes[name], loads[-1].last_body)
    return Round(Load.joined(loads), cost)


def _turns(count: int) -> list[int]:
    whole, rest = divmod(count, TURN)
    return [TURN] * whole + [rest] * bool(rest)


def _require_answer(route: Route, body: bytes) -> None:
    if not route.is_answered_by(json.loads(body)):
        raise UnexpectedAnswer(f"{route.name}: {body.decode(errors='replace')}")


def _table(figures: Sequence[Figures]) -> str:
    head = "".join(f"{title:>{len(title) + 2}}" for title, _, _ in COLUMNS)
    return "\n".join([f"{'route':<18}{head}", *map(_line, figures)])


def _line(of: Figures) -> str:
    cells = (f"{getattr(of, name):>{len(title) + 2}{form}}" for title, name, form in COLUMNS)
    return f"{of.route:<18}{''.join(cells)}{'' if of.is_within_target else '  MISSED'}"


if __name__ == "__main__":
    sys.exit(main())
