"""`flask events`: folding stored events again."""

import uuid
from datetime import UTC, datetime

import click
from flask.cli import AppGroup

from app.cli.configured import configured_services, exit_when_not_found
from app.services.operators.payments import replay_events

events = AppGroup("events", help="Work with Stripe's events.")


@events.command("replay")
@click.option("--payment", "payment_id", type=click.UUID, help="Fold this payment again.")
@click.option("--since", type=click.DateTime(), help="Fold the payments with events received since then, in UTC.")
def replay(payment_id: uuid.UUID | None, since: datetime | None) -> None:
    """Fold the stored events of payments again."""
    if (payment_id is None) == (since is None):
        raise click.UsageError("Give either --payment or --since.")
    services = configured_services()
    since = since and since.replace(tzinfo=UTC)
    with exit_when_not_found():
        folded = replay_events(payment_id=payment_id, since=since, services=services)
    click.echo(f"{folded} folded again")
