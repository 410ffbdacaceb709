"""`flask endpoints`: what Stripe's webhook endpoints are set up with."""

import click
from flask.cli import AppGroup

from app.services.reconciliation.reconcile import EVENT_TYPES

endpoints = AppGroup("endpoints", help="Set up Stripe's webhook endpoints.")


@endpoints.command("types")
@click.option("--comma", is_flag=True, help="On one line, by commas, as `stripe listen --events` takes them.")
def show_types(comma: bool) -> None:
    """Show the types of events that an endpoint sends to the service, a line each."""
    click.echo(("," if comma else "\n").join(EVENT_TYPES))
