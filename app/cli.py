"""The `flask` commands: the worker, recovery and reconciliation by hand, a look at payments, and the stand-ins."""

import dataclasses
import signal
import threading
import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import click
import orjson
from flask import Flask
from flask.cli import AppGroup

from app.config import ConfigurationError
from app.errors import DATABASE_ERRORS, NotFound, ServiceError, is_database_outage
from app.request_context import services
from app.services import Services
from app.services.operations.recovery import RecoveryOutcome, recover_operations
from app.services.operators.payments import list_stuck_operations, replay_events, show_payment
from app.services.payments.kinds import KINDS
from app.services.payments.orphan_runs import end_orphan_runs
from app.services.reconciliation.reconcile import reconcile_apps
from app.services.reconciliation.waiting_events import delete_old_waiting_events, rejoin_waiting_events

# Often enough that a payment waits for recovery no longer than a person would notice.
RECOVERY_SECONDS = 1.0
# What waits is looked at again for this long after it came.
REJOIN_OVERLAP = timedelta(hours=1)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, an object a line, for programs.")

payments = AppGroup("payments", help="Look at payments.")
events = AppGroup("events", help="Work with Stripe's events.")


def register_commands(app: Flask) -> None:
    """Add the service's commands to those of Flask and its extensions."""
    for command in (run_worker, recover, reconcile, payments, events, run_sandbox):
        app.cli.add_command(command)


class Printer:
    """Prints what a command did: a line a thing, and a summary."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.counts: dict[str, int] = {}

    def thing(self, kind: str, **fields: Any) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        shown = {name: value for name, value in fields.items() if value not in (None, "")}
        if self.as_json:
            click.echo(orjson.dumps({"kind": kind, **shown}, default=str))
        else:
            click.echo(" ".join([kind, *(f"{name}={value}" for name, value in shown.items())]))

    def summary(self, nothing: str) -> None:
        if self.as_json:
            click.echo(orjson.dumps({"kind": "summary", **self.counts}))
        else:
            click.echo(", ".join(f"{count} {kind}" for kind, count in self.counts.items()) or nothing)


@click.command("worker")
@as_json
def run_worker(as_json: bool) -> None:
    """Recover and reconcile for ever; ends cleanly on SIGTERM."""
    configured = _configured()
    stopping = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stopping.set())
    printer = Printer(as_json=as_json)
    reconcile_at, waiting_since = time.monotonic(), None
    while not stopping.is_set():
        _survive(lambda: _recover(configured, printer, stopping))
        if time.monotonic() >= reconcile_at and not stopping.is_set():
            began_at = datetime.now(UTC)
            if _survive(partial(_reconcile, configured, printer, stopping, waiting_since)):
                waiting_since = began_at - REJOIN_OVERLAP
            reconcile_at = time.monotonic() + configured.settings.reconcile_seconds
        stopping.wait(RECOVERY_SECONDS)
    printer.summary("nothing to do")


def _survive(work: Any) -> bool:
    """Go on when the database or an upstream is away, and say so: the next round is tried as if nothing happened."""
    try:
        work()
        return True
    except (ServiceError, *DATABASE_ERRORS) as error:
        if not (isinstance(error, ServiceError) or is_database_outage(error)):
            raise
        click.echo(f"waiting: {error if isinstance(error, ServiceError) else 'the database is unavailable'}", err=True)
        return False


def _recover(configured: Services, printer: Printer, stopping: threading.Event) -> None:
    for recovered in recover_operations(configured, KINDS, command="flask worker"):
        printer.thing(recovered.outcome, operation=recovered.operation_id, reason=recovered.reason)
        if stopping.is_set():
            return
    for run_id in end_orphan_runs(configured, command="flask worker"):
        printer.thing("ended orphan run", run=run_id)


def _reconcile(
    configured: Services, printer: Printer, stopping: threading.Event, waiting_since: datetime | None
) -> None:
    for app in reconcile_apps(configured, command="flask worker"):
        if app.stored or app.error:
            printer.thing("reconciled", app=app.app_id, told=app.told, stored=app.stored, error=app.error)
        if stopping.is_set():
            return
    for joined in rejoin_waiting_events(configured, since=waiting_since):
        if joined:
            printer.thing("joined events", payments=joined)
        if stopping.is_set():
            return
    if deleted := delete_old_waiting_events(configured):
        printer.thing("deleted waiting events", count=deleted)


@click.command("recover")
@click.option("--id", "payment_id", type=click.UUID, help="Only this payment.")
@as_json
def recover(payment_id: uuid.UUID | None, as_json: bool) -> None:
    """Walk every payment whose lease has lapsed to its end, and end runs that no payment knows.

    Exits with 1 when a payment is stuck, which only a person can decide.
    """
    configured, printer = _configured(), Printer(as_json=as_json)
    for recovered in recover_operations(configured, KINDS, command="flask recover", only_id=payment_id, at_once=True):
        printer.thing(recovered.outcome, operation=recovered.operation_id, reason=recovered.reason)
    if payment_id is None:
        for run_id in end_orphan_runs(configured, command="flask recover"):
            printer.thing("ended orphan run", run=run_id)
    printer.summary("nothing to recover")
    if printer.counts.get(RecoveryOutcome.STUCK):
        raise SystemExit(1)


@click.command("reconcile")
@as_json
def reconcile(as_json: bool) -> None:
    """Ask Stripe for the events that every app with payments may have missed."""
    configured, printer = _configured(), Printer(as_json=as_json)
    failed = False
    for app in reconcile_apps(configured, command="flask reconcile"):
        printer.thing("reconciled", **_fields(app))
        failed = failed or app.error is not None
    printer.thing("joined events", payments=sum(rejoin_waiting_events(configured)))
    printer.thing("deleted waiting events", count=delete_old_waiting_events(configured))
    if failed:
        raise SystemExit(1)


@payments.command("show")
@click.argument("payment_id", type=click.UUID)
@as_json
def show(payment_id: uuid.UUID, as_json: bool) -> None:
    """Show a payment: its row, its steps, its run, and its events in order."""
    try:
        shown = show_payment(payment_id, services=_configured())
    except NotFound as error:
        raise click.ClickException(error.sentence) from error
    if as_json:
        click.echo(orjson.dumps(shown, default=str))
        return
    for section, fields in shown.items():
        click.echo(section)
        _print_table(fields if isinstance(fields, list) else [{"field": k, "value": v} for k, v in fields.items()])


@payments.command("stuck")
@as_json
def show_stuck(as_json: bool) -> None:
    """List the payments that nobody but a person can decide."""
    stuck = list_stuck_operations(services=_configured())
    if as_json:
        for payment in stuck:
            click.echo(orjson.dumps(payment, default=str))
    elif stuck:
        _print_table(stuck)
    else:
        click.echo("No payment is stuck.")


@events.command("replay")
@click.option("--payment", "payment_id", type=click.UUID, help="Fold this payment again.")
@click.option("--since", type=click.DateTime(), help="Fold the payments with events received since then, in UTC.")
def replay(payment_id: uuid.UUID | None, since: datetime | None) -> None:
    """Fold the stored events of payments again."""
    if (payment_id is None) == (since is None):
        raise click.UsageError("Give either --payment or --since.")
    configured = _configured()
    try:
        folded = replay_events(payment_id=payment_id, since=since and since.replace(tzinfo=UTC), services=configured)
    except NotFound as error:
        raise click.ClickException(error.sentence) from error
    click.echo(f"{folded} folded again")


@click.command("sandbox")
def run_sandbox() -> None:
    """Run the stand-ins for Stripe, key-service and runs-service."""
    # Here and not above: production never imports the stand-ins.
    from app.sandbox.server import serve
    from app.sandbox.settings import SandboxSettings

    try:
        settings = SandboxSettings.from_environment()
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    serve(settings)


def _configured() -> Services:
    """The services, when there are settings to make them work."""
    try:
        services().settings.require_valid()
    except ConfigurationError as error:
        raise click.ClickException("\n".join(["the settings are incomplete:", *error.problems])) from error
    return services()


def _fields(of: Any) -> dict[str, Any]:
    return dataclasses.asdict(of)


def _print_table(rows: Iterable[dict[str, Any]]) -> None:
    rows = [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
    if not rows:
        click.echo("  none")
        return
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    for row in [{name: name for name in widths}, *rows]:
        click.echo("  " + "  ".join(row[name].ljust(width) for name, width in widths.items()).rstrip())
