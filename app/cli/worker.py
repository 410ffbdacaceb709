"""`flask worker`: jobs side by side, each when it is due, until a signal asks for the end."""

import logging
import threading
import time
from collections.abc import Sequence

import click
from flask.cli import with_appcontext

from app.cli.configured import ServiceCommand, configured_services
from app.cli.jobs import Job, worker_jobs
from app.cli.printing import Printer, as_json
from app.cli.signals import stopping_on_signals
from app.errors import ServiceError, is_database_outage
from app.services import Services
from app.services.stopping import Stop, Stopping
from app.version import VERSION

log = logging.getLogger(__name__)

# How soon a signal is seen that another thread was given.
LOOK_SECONDS = 1.0
# After the last call's deadline, for what is then written and said.
LAST_SECONDS = 5.0

ENDING = "ending: what is in hand is finished, and nothing else is begun"


@click.command("worker", cls=ServiceCommand)
@as_json
@with_appcontext
def run_worker(as_json: bool) -> None:
    """Recover and reconcile for ever; ends cleanly on SIGTERM."""
    services, printer = configured_services(), Printer(as_json=as_json)
    log.info("stripe-service %s", VERSION)
    grace_seconds = services.settings.request_deadline_seconds + LAST_SECONDS
    with stopping_on_signals(services.stop):
        take_turns(worker_jobs(services.settings), services, printer, services.stop, grace_seconds=grace_seconds)
    printer.summary("nothing to do")


def take_turns(
    jobs: Sequence[Job], services: Services, printer: Printer, stop: Stop, *, grace_seconds: float = 0.0
) -> None:
    """Do each job when its turn comes, the first time at once, until the end is asked for.

    A job ends between two rows. One that then still hangs is left behind: others take over when its leases lapse.

    :param grace_seconds: how long the rows in hand are waited for in the end
    """
    crew = [_Repetition(job, services, printer, stop) for job in jobs]
    # The system may give a signal to any thread, and its handler runs here, when this one runs the next time.
    while not stop.is_set:
        stop.wait(LOOK_SECONDS)
    log.info(ENDING)
    ends_at = time.monotonic() + grace_seconds
    for repetition in crew:
        repetition.end(max(0.0, ends_at - time.monotonic()))


class _Repetition:
    """A job that is done again and again, in a thread of its own."""

    def __init__(self, job: Job, services: Services, printer: Printer, stop: Stop) -> None:
        self._job = job
        self._stop = stop
        self._bug: Exception | None = None
        self._thread = threading.Thread(target=self._repeat, args=(services, printer), daemon=True)
        self._thread.start()

    def _repeat(self, services: Services, printer: Printer) -> None:
        try:
            while not self._stop.is_set:
                _take_turn(self._job, services, printer)
                self._stop.wait(self._job.every_seconds)
        except Exception as error:
            self._bug = error
            self._stop.set()

    def end(self, seconds: float) -> None:
        """Wait for the job's end.

        :raises Exception: what it ended with, where that was a bug.
        """
        self._thread.join(seconds)
        if self._bug is not None:
            raise self._bug
        if self._thread.is_alive():
            click.echo(f"left behind: {self._job.name}", err=True)


def _take_turn(job: Job, services: Services, printer: Printer) -> None:
    """Do a job once; while the database or an upstream is away, say so, and leave it to the next turn."""
    try:
        job.take_turn(services, printer)
    except Stopping:
        return
    except Exception as error:
        if not (isinstance(error, ServiceError) or is_database_outage(error)):
            raise
        sentence = error.sentence if isinstance(error, ServiceError) else "the database is unavailable"
        click.echo(f"waiting: {sentence} ({job.name})", err=True)
