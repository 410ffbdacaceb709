"""Commands as processes of their own, where signals matter, and a gate at which they are held."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tests.proxy import HANG_SECONDS, Proxy, Spoil
from tests.waiting import wait_until
from tests.web import clean_environment

ROOT = Path(__file__).parents[2]
# Longer than anything takes on a slow machine.
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Command:
    """A running `flask` command."""

    process: "subprocess.Popen[str]"
    stdout: TextIO
    stderr: TextIO

    @classmethod
    @contextmanager
    def start(
        cls, *arguments: str, environment: Mapping[str, str], stderr_to: int | None = None
    ) -> "Iterator[Command]":
        """Start it, and end it by its process id.

        :param stderr_to: a file descriptor that gets what it complains of, which `complained` then doesn't know
        """
        # Files and not pipes: nobody reads while it writes, and a full pipe would stop it.
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "flask", *arguments],
                cwd=ROOT,
                env={**clean_environment(), **environment},
                stdout=stdout,
                stderr=stderr if stderr_to is None else stderr_to,
                text=True,
            )
            try:
                yield cls(process, stdout, stderr)
            finally:
                process.kill()
                process.wait()

    def wait_until(self, condition: Callable[[], object], *, what: str) -> None:
        """Return as soon as the condition holds.

        :raises AssertionError: when it doesn't within the time, or the command ends before.
        """

        def holds() -> object:
            assert self.process.poll() is None, self.complained()
            return condition()

        wait_until(holds, seconds=PATIENCE_SECONDS, what=what)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def printed(self) -> list[str]:
        """The lines on standard output, without those of the log."""
        return [line for line in _lines(self.stdout) if '"logger"' not in line]

    def logged(self) -> list[str]:
        """The messages of the log."""
        return [
            json.loads(line)["message"] for line in _lines(self.stdout) if '"logger"' in line and line.endswith("}")
        ]

    def complained(self) -> list[str]:
        """The lines on standard error."""
        return _lines(self.stderr)


def _lines(file: TextIO) -> list[str]:
    # Not by `read`: the process writes at the same offset, which that would move.
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode().splitlines()


class Gate(Proxy):
    """A proxy that holds every message until it is opened."""

    def __init__(self, upstream: tuple[str, int] | Path) -> None:
        super().__init__(upstream)
        self.arrived = threading.Event()
        self.opened = threading.Event()

    def next_spoil(self, message: bytes) -> Spoil:
        self.arrived.set()
        self.opened.wait(HANG_SECONDS)
        return Spoil.NOTHING
