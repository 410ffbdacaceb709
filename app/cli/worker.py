"""`flask worker`: jobs by turns, each when it is due, until a signal asks for the end."""

import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

import click
from flask.cli import with_appcontext

from app.cli.configured import configured_services
from app.cli.jobs import Job, worker_jobs
from app.cli.printing import Printer, as_json
from app.errors import ServiceError, is_database_outage
from app.services import Services


class Stop:
    """Whether the end was asked for.

    A signal's handler may run in the middle of `wait`. An `Event` would then wait for a lock that its own thread holds;
    a `SimpleQueue` has none. https://docs.python.org/3/library/queue.html#queue.SimpleQueue.put
    """

    def __init__(self) -> None:
        self.is_set = False
        self._asked: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Ask for the end."""
        self.is_set = True
        self._asked.put(None)

    def wait(self, seconds: float) -> None:
        """Return after the time, or as soon as the end is asked for."""
        with suppress(Empty):
            self._asked.get(timeout=max(0.0, seconds))


@click.command("worker")
@as_json
@with_appcontext
def run_worker(as_json: bool) -> None:
    """Recover and reconcile for ever; ends cleanly on SIGTERM."""
    services, printer = configured_services(), Printer(as_json=as_json)
    take_turns(worker_jobs(services.settings), services, printer, _stop_on_signals())
    printer.summary("nothing to do")


def _stop_on_signals() -> Stop:
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def take_turns(jobs: Sequence[Job], services: Services, printer: Printer, stop: Stop) -> None:
    """Do each job when its turn comes, the first time at once, until the end is asked for."""
    due_at = dict.fromkeys(jobs, time.monotonic())
    while not stop.is_set:
        for job in jobs:
            if due_at[job] <= time.monotonic() and not stop.is_set:
                _take_turn(job, services, printer, stop)
                due_at[job] = time.monotonic() + job.every_seconds
        stop.wait(min(due_at.values()) - time.monotonic())


def _take_turn(job: Job, services: Services, printer: Printer, stop: Stop) -> None:
    """Do a job once; while the database or an upstream is away, say so, and leave it to the next turn."""
    try:
        for _ in job.work(services, printer):
            if stop.is_set:
                return
    except Exception as error:
        if not (isinstance(error, ServiceError) or is_database_outage(error)):
            raise
        sentence = error.sentence if isinstance(error, ServiceError) else "the database is unavailable"
        click.echo(f"waiting: {sentence} ({job.name})", err=True)
