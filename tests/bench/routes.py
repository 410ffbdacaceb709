"""What a request to each route costs: CPU of the service's processes, next to that of a bare Flask route.

`python -m tests.bench.routes` runs the service as in production, on a database and upstreams of its own.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

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


@dataclass(frozen=True)
class Round:
    """One measurement of a route, and of the yardstick just before it."""

    load: Load
    cpu_ms: float
    yardstick_cpu_ms: float


@dataclass(frozen=True)
class Figures:
    """What a request to a route takes, in the middle of all rounds; CPU is user and system time."""

    route: str
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float
    yardstick_cpu_ms: float
    ratio: float
    target: float

    @classmethod
    def of(cls, route: Route, rounds: Sequence[Round]) -> "Figures":
        return cls(
            route=route.name,
            per_second=median(each.load.per_second for each in rounds),
            p50_ms=median(each.load.percentile_ms(50) for each in rounds),
            p95_ms=median(each.load.percentile_ms(95) for each in rounds),
            p99_ms=median(each.load.percentile_ms(99) for each in rounds),
            cpu_ms=median(each.cpu_ms for each in rounds),
            yardstick_cpu_ms=median(each.yardstick_cpu_ms for each in rounds),
            # Of each round by itself, so that a machine that slows down meanwhile slows both.
            ratio=median(each.cpu_ms / each.yardstick_cpu_ms for each in rounds),
            target=route.target,
        )

    @property
    def is_within_target(self) -> bool:
        return self.ratio <= self.target


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
        service.require_effects(creates=traffic.creates, events=traffic.events)
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
    before, yardstick_before = service.web.cpu_seconds(), service.yardstick.cpu_seconds()
    loads = []
    for size in _turns(count):
        requests = list(traffic.take(name, size))
        drive(service.yardstick.port, [YARDSTICK] * size, connections=CONNECTIONS)
        loads.append(drive(service.web.port, requests, connections=CONNECTIONS))
    _require_answer(traffic.routes[name], loads[-1].last_body)
    return Round(
        Load.joined(loads),
        cpu_ms=1000 * cpu_between(before, service.web.cpu_seconds()) / count,
        yardstick_cpu_ms=1000 * cpu_between(yardstick_before, service.yardstick.cpu_seconds()) / count,
    )


def _turns(count: int) -> list[int]:
    whole, rest = divmod(count, TURN)
    return [TURN] * whole + [rest] * bool(rest)


def _require_answer(route: Route, body: bytes) -> None:
    if not route.is_answered_by(json.loads(body)):
        raise UnexpectedAnswer(f"{route.name}: {body.decode(errors='replace')}")


def _table(figures: Sequence[Figures]) -> str:
    head = f"{'route':<18}{'req/s':>8}{'p50 ms':>8}{'p95 ms':>8}{'p99 ms':>8}{'CPU ms':>8}{'yardstick':>10}{'ratio':>7}"
    return "\n".join([f"{head}{'target':>8}", *map(_line, figures)])


def _line(of: Figures) -> str:
    times = f"{of.p50_ms:>8.1f}{of.p95_ms:>8.1f}{of.p99_ms:>8.1f}{of.cpu_ms:>8.2f}{of.yardstick_cpu_ms:>10.2f}"
    verdict = "" if of.is_within_target else "  MISSED"
    return f"{of.route:<18}{of.per_second:>8.0f}{times}{of.ratio:>7.2f}{of.target:>8.1f}{verdict}"


if __name__ == "__main__":
    sys.exit(main())
