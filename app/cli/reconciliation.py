"""`flask reconcile`: reconciliation by hand."""

import click
from flask.cli import with_appcontext

from app.cli.configured import ServiceCommand, configured_services
from app.cli.printing import Printer, Progress, as_json
from app.cli.signals import require_end, stopping_on_signals
from app.services import Services
from app.services.operations.recovery import DATABASE_TOO_SLOW, RecoveryOutcome
from app.services.reconciliation.reconcile import Reconciled, find_apps, reconcile_apps
from app.services.reconciliation.waiting_events import Rejoined, delete_old_waiting_events, rejoin_waiting_events


@click.command("reconcile", cls=ServiceCommand)
@as_json
@with_appcontext
def reconcile(as_json: bool) -> None:
    """Ask Stripe for the events that every app with payments may have missed.

    Exits with 1 when an app could not be reconciled, or a payment could not be given what waits for it.
    """
    services, printer = configured_services(), Printer(as_json=as_json)
    with stopping_on_signals(services.stop):
        failed = _reconcile_apps(services, printer)
    require_end(services.stop)
    failed = _rejoin_waiting_events(services, printer) or failed
    printer.thing("deleted waiting events", count=sum(delete_old_waiting_events(services)))
    if failed:
        raise SystemExit(1)


def _reconcile_apps(services: Services, printer: Printer) -> bool:
    """Reconcile every app; return whether one failed."""
    failed, progress = False, Progress("apps")
    reconciled = reconcile_apps(services, command="flask reconcile", on_page=progress.note)
    for app in progress.over(reconciled, count=lambda: len(find_apps(services))):
        print_reconciled(app, printer)
        failed = failed or app.error is not None
    return failed


def _rejoin_waiting_events(services: Services, printer: Printer) -> bool:
    """Join every waiting event that can be; return whether a payment was put off."""
    looks = list(rejoin_waiting_events(services))
    printer.thing("joined events", payments=sum(look.joined for look in looks))
    for look in looks:
        print_put_off(look, printer)
    return any(look.put_off for look in looks)


def print_put_off(rejoined: Rejoined, printer: Printer) -> None:
    """Print which payments were not given the events that wait for them."""
    for payment_id in rejoined.put_off:
        printer.thing(RecoveryOutcome.PUT_OFF, payment=payment_id, reason=DATABASE_TOO_SLOW)


def print_reconciled(app: Reconciled, printer: Printer) -> None:
    """Print what the reconciliation of an app came to."""
    printer.thing(
        "reconciled",
        app=app.app_id,
        listed=app.listed,
        stored=app.stored,
        unreadable=app.unreadable or None,
        objects_read=app.objects_read or None,
        error=app.error,
    )
