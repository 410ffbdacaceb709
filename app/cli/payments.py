"""`flask payments`: a look at one payment, and at those that are stuck."""

import uuid
from collections.abc import Mapping
from typing import Any

import click
from flask.cli import AppGroup

from app.cli.configured import ServiceCommand, configured_services, exit_when_not_found
from app.cli.printing import as_json, print_json, print_table
from app.services.operators.payments import list_stuck_operations, show_payment

payments = AppGroup("payments", help="Look at payments.")


@payments.command("show", cls=ServiceCommand)
@click.argument("payment_id", type=click.UUID)
@as_json
def show(payment_id: uuid.UUID, as_json: bool) -> None:
    """Show a payment: its row, its steps, its run, and its events in order."""
    services = configured_services()
    with exit_when_not_found():
        shown = show_payment(payment_id, services=services)
    if as_json:
        print_json(shown)
    else:
        _print_sections(shown)


def _print_sections(shown: Mapping[str, Any]) -> None:
    for section, content in shown.items():
        click.echo(section)
        print_table(content if isinstance(content, list) else _as_rows(content))


def _as_rows(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"field": name, "value": value} for name, value in fields.items()]


@payments.command("stuck", cls=ServiceCommand)
@as_json
def show_stuck(as_json: bool) -> None:
    """List the payments that nobody but a person can decide."""
    stuck = list_stuck_operations(services=configured_services())
    if as_json:
        for operation in stuck:
            print_json(operation)
    elif stuck:
        print_table(stuck)
    else:
        click.echo("No payment is stuck.")
