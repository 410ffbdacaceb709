"""`flask sandbox`: the stand-ins."""

import click


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
