"""`flask recover`: recovery by hand."""

import uuid

import click
from flask.cli import with_appcontext

from app.cli.configured import ServiceCommand, configured_services
from app.cli.printing import Printer, Progress, as_json
from app.cli.signals import require_end, stopping_on_signals
from app.services import Services
from app.services.kinds import KINDS
from app.services.operations.recovery import Recovered, RecoveryOutcome, count_left, recover_operations
from app.services.payments.orphan_runs import end_orphan_runs

COMMAND = "flask recover"


@click.command("recover", cls=ServiceCommand)
@click.option("--id", "payment_id", type=click.UUID, help="Only this payment.")
@as_json
@with_appcontext
def recover(payment_id: uuid.UUID | None, as_json: bool) -> None:
    """Walk every payment whose lease has lapsed to its end, and end runs that no payment knows.

    Exits with 1 when a payment is stuck, which only a person can decide.
    """
    services, printer = configured_services(), Printer(as_json=as_json)
    with stopping_on_signals(services.stop):
        _recover_operations(payment_id, services, printer)
        if payment_id is None:
            _end_orphan_runs(services, printer)
    printer.summary("nothing to recover")
    require_end(services.stop)
    if printer.counts.get(RecoveryOutcome.STUCK):
        raise SystemExit(1)


def _recover_operations(only_id: uuid.UUID | None, services: Services, printer: Printer) -> None:
    recovered = recover_operations(services, KINDS, command=COMMAND, only_id=only_id, at_once=True)
    for one in Progress("operations").over(recovered, count=lambda: count_left(services, only_id=only_id)):
        print_recovered(one, printer)


def _end_orphan_runs(services: Services, printer: Printer) -> None:
    for run_id in end_orphan_runs(services, command=COMMAND):
        print_ended_run(run_id, printer)


def print_recovered(recovered: Recovered, printer: Printer) -> None:
    """Print what recovery did with an operation."""
    printer.thing(recovered.outcome, operation=recovered.operation_id, reason=recovered.reason)


def print_ended_run(run_id: str, printer: Printer) -> None:
    """Print that a run was ended which no operation knows."""
    printer.thing("ended orphan run", run=run_id)
