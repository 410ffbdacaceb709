"""The processes of a benchmark: the service, the yardstick and the upstreams, and what they use of the machine."""

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from tests.waiting import wait_until
from tests.web import ROOT, clean_environment, free_port

STOP_SECONDS = 20
LINES_SHOWN = 20
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class WebServer:
    """gunicorn with its workers."""

    port: int
    master: psutil.Process

    def cpu_seconds(self) -> dict[int, float]:
        """The user and system time that the master and each worker have used, by process id."""
        used = {process.pid: process.cpu_times() for process in self._processes()}
        return {pid: times.user + times.system for pid, times in used.items()}

    def rss_bytes(self) -> int:
        """The resident memory of the largest worker."""
        return max(int(worker.memory_info().rss) for worker in self.master.children())

    def _processes(self) -> list[psutil.Process]:
        return [self.master, *self.master.children()]


def end_cleanly_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end this process by way of its `finally`s, which end what it has started."""
    for number in ENDING_SIGNALS:
        signal.signal(number, _exit)


def _exit(number: int, _: object) -> None:
    for again in ENDING_SIGNALS:
        signal.signal(again, signal.SIG_IGN)
    sys.exit(128 + number)


def cpu_between(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """The CPU seconds used between two looks at the same processes.

    :raises ValueError: when a worker died meanwhile, and took its figures with it.
    """
    if before.keys() != after.keys():
        raise ValueError("a worker was replaced in the middle of a measurement")
    return sum(after.values()) - sum(before.values())


@contextmanager
def web_server(application: str, environment: Mapping[str, str]) -> Iterator[WebServer]:
    """Run an application under the service's production settings on a free port."""
    port = free_port()
    command = ["-m", "gunicorn", "-c", "python:app.gunicorn_config", application]
    with _running(command, {**environment, "HOST": "127.0.0.1", "PORT": str(port)}, port) as process:
        yield WebServer(port, psutil.Process(process.pid))


@contextmanager
def upstreams(*, latency_ms: float = 0) -> Iterator[int]:
    """Run the upstreams' stand-in; the value is its port."""
    port = free_port()
    command = ["-m", "tests.bench.upstreams", str(port), "--latency-ms", str(latency_ms)]
    with _running(command, {}, port):
        yield port


@contextmanager
def _running(command: list[str], environment: Mapping[str, str], port: int) -> "Iterator[subprocess.Popen[str]]":
    # What it prints goes to a file, as nobody reads a pipe meanwhile, and is shown when something goes wrong.
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**clean_environment(), **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            # Ctrl-C is for the benchmark alone, which then ends what it has started.
            start_new_session=True,
        )
        try:
            wait_until(lambda: _accepts_connections(port, process), seconds=30, what=" ".join(command))
            yield process
        except Exception:
            output.seek(0)
            print(*output.readlines()[-LINES_SHOWN:], sep="", file=sys.stderr)
            raise
        finally:
            end_process(process, seconds=STOP_SECONDS)


def end_process(process: "subprocess.Popen[str]", *, seconds: float) -> None:
    """Ask a process to end; when it hasn't after so many seconds, kill it and what it has started."""
    process.terminate()
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        descendants = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _kill(descendants)


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _accepts_connections(port: int, process: "subprocess.Popen[str]") -> bool:
    assert process.poll() is None, "it ended at once"
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
