"""`flask payments`: a look at one payment, and at those that are stuck; a refund by hand."""

import uuid
from collections.abc import Mapping
from typing import Any

import click
from flask.cli import AppGroup

from app.cli.configured import ServiceCommand, configured_services, exit_when_not_found
from app.cli.printing import as_json, print_json, print_table
from app.errors import NotFound, ServiceError
from app.services.operations.recovery import command_context
from app.services.operators.payments import app_of_payment, list_stuck_operations, show_payment
from app.services.payments.actions import REFUND, act_on_payment

payments = AppGroup("payments", help="Look at payments, and refund them.")
REFUND_COMMAND = "flask payments refund"


@payments.command("show", cls=ServiceCommand)
@click.argument("payment_id", type=click.UUID)
@as_json
def show(payment_id: uuid.UUID, as_json: bool) -> None:
    """Show a payment: its row, its steps, its run, what was done with it, and its events in order."""
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


@payments.command("refund", cls=ServiceCommand)
@click.argument("payment_id", type=click.UUID)
@click.option(
    "--amount", type=click.IntRange(min=1), help="In the currency's smallest unit; without it, all that is left."
)
@click.option("--idempotency-key", help="The key of an earlier try, which is then gone on with, and not made anew.")
def refund(payment_id: uuid.UUID, amount: int | None, idempotency_key: str | None) -> None:
    """Give back what was received for a payment, or a part of it, through the same operation as the route."""
    services, key = configured_services(), idempotency_key or f"operator-{uuid.uuid4()}"
    with exit_when_not_found():
        body = {"app_id": app_of_payment(payment_id, services=services)}
        click.echo(f"To try it again: {REFUND_COMMAND} {payment_id} --idempotency-key {key}", err=True)
        try:
            made = act_on_payment(
                REFUND,
                str(payment_id),
                body if amount is None else {**body, "amount_in_cents": amount},
                idempotency_key=key,
                services=services,
                context=command_context(REFUND_COMMAND, services),
            )
        except NotFound:
            raise
        except ServiceError as error:
            raise click.ClickException(f"{error.sentence} ({error.code})") from error
    click.echo("refund {refund_id}: {amount_in_cents} {currency}, {status}".format(**made))


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
