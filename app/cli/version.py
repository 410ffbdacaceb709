"""`flask version`: which version of the service this is; `flask --version` is Flask's own."""

import click

from app.version import VERSION


@click.command("version")
def show_version() -> None:
    """Show the version of the service."""
    click.echo(f"stripe-service {VERSION}")
