"""The `flask` commands."""

import click
from flask import Flask


def register_commands(app: Flask) -> None:
    """Add the service's commands to those of Flask and its extensions."""
    app.cli.add_command(run_sandbox)


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
