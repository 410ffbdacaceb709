"""`flask events`: folding stored events again, a look at what is none, and what apps are told."""

import signal
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import click
from flask.cli import AppGroup

from app.cli.configured import ServiceCommand, configured_services, exit_when_not_found
from app.cli.printing import Printer, as_json, print_json, print_table
from app.models import DeliveryState
from app.services import Services
from app.services.notifications.app_events import list_undelivered, redeliver_event
from app.services.notifications.endpoints import ALWAYS, redeliver_dead
from app.services.operators.replay import Replayed, replay_all, replay_payment, replay_since
from app.services.operators.unreadable_events import list_unreadable_events

# As a shell says that a command was interrupted.
INTERRUPTED = 130
PROGRESS_SECONDS = 5.0
OPEN_STATES = [str(state) for state in DeliveryState if state is not DeliveryState.DONE]

events = AppGroup("events", help="Work with Stripe's events, and those that apps are told.")


@events.command("replay", cls=ServiceCommand)
@click.option("--payment", "payment_id", type=click.UUID, help="Fold this payment again.")
@click.option("--since", type=click.DateTime(), help="Fold the payments with events received since then, in UTC.")
@click.option("--all", "all_payments", is_flag=True, help="Fold all payments again, as after a change of the rules.")
@click.option("--after", type=click.UUID, help="With --all: go on after this payment, where an earlier pass stopped.")
@as_json
def replay(
    payment_id: uuid.UUID | None, since: datetime | None, all_payments: bool, after: uuid.UUID | None, as_json: bool
) -> None:
    """Fold the stored events of payments again, and print what of them changes.

    It may run beside the service, be stopped at any time, and go on from where it was.
    """
    if [payment_id is not None, since is not None, all_payments].count(True) != 1:
        raise click.UsageError("Give one of --payment, --since and --all.")
    if after is not None and not all_payments:
        raise click.UsageError("--after goes with --all.")
    services, printer = configured_services(), Printer(as_json=as_json)
    with exit_when_not_found():
        _print_pages(_pages(payment_id, since, after, services), printer)


@events.command("unreadable", cls=ServiceCommand)
@as_json
def show_unreadable(as_json: bool) -> None:
    """List what Stripe listed among its events and nobody could read, as it came."""
    unreadable = list_unreadable_events(services=configured_services())
    if as_json:
        for listed in unreadable:
            print_json(listed)
    elif unreadable:
        print_table(unreadable)
    else:
        click.echo("Nothing is unreadable.")


@events.command("deliveries", cls=ServiceCommand)
@click.option("--app", "app_id", help="List no other app's.")
@click.option("--state", type=click.Choice(OPEN_STATES), help="List no other state's.")
@as_json
def show_deliveries(app_id: str | None, state: str | None, as_json: bool) -> None:
    """List what is on its way to apps or was given up, the newest first."""
    wanted = None if state is None else DeliveryState(state)
    found = list_undelivered(app_id=app_id, state=wanted, services=configured_services())
    if as_json:
        for delivery in found:
            print_json(delivery)
    elif found:
        print_table(found)
    else:
        click.echo("Nothing is on its way.")


@events.command("redeliver", cls=ServiceCommand)
@click.argument("event_id", required=False)
@click.option("--endpoint", "endpoint_id", help="Send this endpoint again what was given up.")
@click.option("--since", type=click.DateTime(), help="With --endpoint: only what was given up since then, in UTC.")
def redeliver(event_id: str | None, endpoint_id: str | None, since: datetime | None) -> None:
    """Send an event to its endpoints again, or an endpoint what was given up; the worker does it."""
    if (event_id is None) == (endpoint_id is None):
        raise click.UsageError("Give either an event or --endpoint.")
    services = configured_services()
    with exit_when_not_found():
        if event_id is not None:
            redeliver_event(event_id, services=services)
        elif endpoint_id is not None:
            redeliver_dead(endpoint_id, since=since.replace(tzinfo=UTC) if since else ALWAYS, services=services)
    click.echo("The worker sends it.")


def _pages(
    payment_id: uuid.UUID | None, since: datetime | None, after: uuid.UUID | None, services: Services
) -> Iterator[Replayed]:
    if payment_id is not None:
        yield replay_payment(payment_id, services=services)
    elif since is not None:
        yield from replay_since(since.replace(tzinfo=UTC), until=datetime.now(UTC), services=services)
    else:
        yield from replay_all(after=after, services=services)


def _print_pages(pages: Iterator[Replayed], printer: Printer) -> None:
    """Print each change, and now and then how far it is: to the standard error, so that a file holds changes only."""
    # Whatever is in hand is one transaction, or nothing yet: it can be left anywhere.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    looked_at, said_at, resume = 0, time.monotonic(), ""
    try:
        for page in pages:
            for payment_id, changes in page.changes.items():
                printer.thing("changed", payment=payment_id, **changes)
            looked_at, resume = looked_at + page.payments, _resume_option(page)
            if time.monotonic() - said_at > PROGRESS_SECONDS:
                said_at = time.monotonic()
                click.echo(f"{_told(looked_at, printer)}; from here it goes on with {resume}", err=True)
    except KeyboardInterrupt:
        advice = f"Go on with: flask events replay {resume}" if resume else "Start again."
        click.echo(f"Stopped: {_told(looked_at, printer)}. {advice}", err=True)
        raise SystemExit(INTERRUPTED) from None
    printer.counts["looked at"] = looked_at
    printer.summary("")


def _told(looked_at: int, printer: Printer) -> str:
    return f"{looked_at} looked at, {printer.counts.get('changed', 0)} changed"


def _resume_option(page: Replayed) -> str:
    if isinstance(page.resume_after, uuid.UUID):
        return f"--all --after {page.resume_after}"
    return f"--since {page.resume_after:%Y-%m-%dT%H:%M:%S}"
