"""What requests cost here beside another checkout: both are measured by turns, on the same machine.

`python -m tests.bench.compare --other DIR` runs `tests.bench.routes` in both, each with its own virtual environment,
code, migrations, population and PostgreSQL. The other checkout needs this checkout's `tests/bench`, with the SQL of its
own schema.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.processes import end_cleanly_on_signals, end_process
from tests.bench.traffic import Traffic
from tests.web import ROOT

# Longer than `routes` gives its service, its yardstick, its upstreams and its PostgreSQL together to end.
END_SECONDS = 200
# What is compared, as `routes` calls it.
MEASURES = {
    "yardstick ms": "yardstick_cpu_ms",
    "service ms": "service_cpu_ms",
    "database ms": "database_cpu_ms",
    "sum ms": "total_cpu_ms",
    "WAL bytes": "wal_bytes",
}

Figures = dict[str, dict[str, Any]]
# Of one round: before and after.
Pair = tuple[Figures, Figures]


class NotMeasured(Exception):
    """A checkout's `routes` failed, or doesn't measure what is compared."""


@dataclass(frozen=True)
class Checkout:
    """A directory with the service's code, and the Python that runs it."""

    directory: Path
    python: Path

    def measure(self, options: argparse.Namespace) -> Figures:
        """The figures of one round, by route.

        :raises NotMeasured: when there are none.
        """
        command = ["-m", "tests.bench.routes", "--json", "--rounds", "1", "--requests", str(options.requests)]
        output = self._run([*command, *(["--only", options.only] if options.only else [])], options.run_seconds)
        figures = {each["route"]: each for each in json.loads(output)}
        if not all(each.keys() >= set(MEASURES.values()) for each in figures.values()):
            raise NotMeasured(f"{self.directory} has another tests/bench, which measures something else")
        return figures

    def _run(self, arguments: Sequence[str], seconds: float) -> str:
        print(self.directory, file=sys.stderr)
        # In a session of its own: Ctrl-C is for this process, which then ends what it has started.
        process = subprocess.Popen(
            [self.python, *arguments], cwd=self.directory, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        finally:
            end_process(process, seconds=END_SECONDS)
        # It ends with 1 when a route misses its target, and when it fails, but then it prints nothing.
        if process.returncode not in (0, 1) or not output:
            raise NotMeasured(f"{self.directory}: tests.bench.routes ended with {process.returncode}")
        return output


def main() -> int:
    """Measure both and print the table."""
    options = _options()
    end_cleanly_on_signals()
    before, after = options.other, Checkout(ROOT, Path(sys.executable))
    print(_table([_measure_both(before, after, number, options) for number in range(options.rounds)]))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("--other", type=_checkout, required=True, metavar="DIR", help="the checkout that was before")
    parser.add_argument("--rounds", type=int, default=6, help="runs of each checkout")
    parser.add_argument("--requests", type=int, default=2000, help="for each route in each round")
    parser.add_argument("--only", choices=list(Traffic().routes), help="one route")
    parser.add_argument("--run-seconds", type=float, default=900, help="the longest that one run may take")
    return parser.parse_args()


def _checkout(directory: str) -> Checkout:
    # Not resolved further: by the link in it, Python knows its virtual environment.
    checkout = Checkout(Path(directory).absolute(), Path(directory).absolute() / ".venv" / "bin" / "python")
    if not checkout.python.exists():
        raise argparse.ArgumentTypeError(f"{checkout.python} doesn't exist")
    return checkout


def _measure_both(before: Checkout, after: Checkout, number: int, options: argparse.Namespace) -> Pair:
    """Measure one and then the other; the other way round in every second round, so that order favours neither."""
    if number % 2 == 0:
        first = before.measure(options)
        return first, after.measure(options)
    first = after.measure(options)
    return before.measure(options), first


def _table(rounds: Sequence[Pair]) -> str:
    titles = f"{'route':<18}{'':<14}{'before':>9}{'after':>9}{'after/before':>14}{'lowest':>8}{'highest':>9}"
    lines = [_line(route, title, rounds) for route in rounds[0][0] for title in MEASURES]
    return "\n".join([titles, *lines])


def _line(route: str, title: str, rounds: Sequence[Pair]) -> str:
    """The medians of all rounds, and of their ratios; a read may write no WAL, and then there is no ratio."""
    name = MEASURES[title]
    pairs = [(before[route][name], after[route][name]) for before, after in rounds]
    medians = "".join(f"{median(each):>9.2f}" for each in zip(*pairs, strict=True))
    if not all(before for before, _ in pairs):
        return f"{route:<18}{title:<14}{medians}"
    ratios = [after / before for before, after in pairs]
    return f"{route:<18}{title:<14}{medians}{median(ratios):>14.2f}{min(ratios):>8.2f}{max(ratios):>9.2f}"


if __name__ == "__main__":
    sys.exit(main())
