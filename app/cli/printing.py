"""How commands print: a line a thing, a summary, a table; or JSON, an object a line; and what is left, to a person."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import click
import orjson

T = TypeVar("T")

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, an object a line, for programs.")


class Printer:
    """Prints what a command did, and counts it; several threads may at once."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def thing(self, kind: str, **fields: Any) -> None:
        """Print one thing that was done; a field without a value is left out, and a pair is what was and what is."""
        # A kind may be an enumeration's, which orjson takes for no key.
        kind = str(kind)
        shown = {name: value for name, value in fields.items() if value not in (None, "")}
        with self._lock:
            self.counts[kind] = self.counts.get(kind, 0) + 1
            if self.as_json:
                print_json({"kind": kind, **shown})
            else:
                click.echo(" ".join([kind, *(f"{name}={_word(value)}" for name, value in shown.items())]))

    def summary(self, nothing: str) -> None:
        """Print how many things of each kind were done.

        :param nothing: what to print when there were none
        """
        if self.as_json:
            print_json({"kind": "summary", **self.counts})
        else:
            click.echo(", ".join(f"{count} {kind}" for kind, count in self.counts.items()) or nothing)


def _word(value: object) -> str:
    return "->".join(map(str, value)) if isinstance(value, tuple) else str(value)


class Progress:
    """Shows how much is left, in one line on standard error, while that is a terminal; elsewhere it shows nothing.

    :param what: what is counted, such as `apps`
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._left = 0
        self._note = ""
        self._is_shown = sys.stderr.isatty()
        # Whoever prints something else meanwhile has the line to itself.
        self._lock = threading.Lock()

    def over(self, done: Iterable[T], *, count: Callable[[], int]) -> Iterator[T]:
        """The same things, each as it is done.

        :param count: gives how many there will be; it is only asked where that is shown
        """
        if not self._is_shown:
            yield from done
            return
        self._left = count()
        self._show()
        for thing in done:
            with self._lock:
                self._write("")
                yield thing
            # More may come up meanwhile.
            self._left = max(0, self._left - 1)
            self._show()
        self._write("")

    def note(self, name: str, share_left: float) -> None:
        """Say how much is left of one of the things, from 1 to 0."""
        self._note = f"; of {name} {share_left:.0%}"
        self._show()

    def _show(self) -> None:
        if self._is_shown:
            with self._lock:
                self._write(f"{self._left} {self._what} left{self._note}")

    def _write(self, line: str) -> None:
        # To the beginning of the line, and what stands there is erased.
        click.echo(f"\r\x1b[K{line}", nl=False, err=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print an object as one line of JSON."""
    click.echo(orjson.dumps(value))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows below their names, which all of them share."""
    if not rows:
        click.echo("  none")
        return
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        click.echo("  " + "  ".join(map(str.ljust, row, widths)).rstrip())


def _cell(value: object) -> str:
    return "" if value is None else str(value)
