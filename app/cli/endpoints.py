"""`flask endpoints`: Stripe's webhook endpoints, shown, made and mended."""

from collections.abc import Mapping

import click
from flask.cli import AppGroup

from app.cli.configured import ServiceCommand, configured_services
from app.cli.printing import Printer, as_json
from app.cli.signals import require_end, stopping_on_signals
from app.config import ConfigurationError
from app.services import Services
from app.services.operators.versions import other_versions
from app.services.reconciliation.reconcile import EVENT_TYPES
from app.services.webhook_endpoints.sync import Looked, show_endpoints, sync_endpoints

endpoints = AppGroup("endpoints", help="Set up Stripe's webhook endpoints.")
of_app = click.option("--app", "app_id", help="Only the account of this app, which may have no payment yet.")


@endpoints.command("types")
@click.option("--comma", is_flag=True, help="On one line, by commas, as `stripe listen --events` takes them.")
def show_types(comma: bool) -> None:
    """Show the types of events that an endpoint sends to the service, a line each."""
    click.echo(("," if comma else "\n").join(EVENT_TYPES))


@endpoints.command("sync", cls=ServiceCommand)
@of_app
@click.option("--dry-run", is_flag=True, help="Change nothing, and show what differs.")
@as_json
def sync(app_id: str | None, dry_run: bool, as_json: bool) -> None:
    """Make or mend one webhook endpoint in each Stripe account.

    Exits with 1 when one of them could not be brought to what it should be.
    """
    if dry_run:
        _show("flask endpoints sync", app_id, as_json=as_json)
        return
    services, printer = _reachable_services(), Printer(as_json=as_json)
    failed = False
    with stopping_on_signals(services.stop):
        for looked in sync_endpoints(services, command="flask endpoints sync", app_id=app_id):
            print_synced(looked, printer)
            failed = failed or looked.error is not None
    require_end(services.stop)
    if failed:
        raise SystemExit(1)


@endpoints.command("show", cls=ServiceCommand)
@of_app
@as_json
def show(app_id: str | None, as_json: bool) -> None:
    """Show for each app which endpoint tells of its payments, and what differs from what it should be.

    Exits with 1 when Stripe or key-service doesn't say what is there.
    """
    _show("flask endpoints show", app_id, as_json=as_json)


def print_synced(looked: Looked, printer: Printer) -> None:
    """Print what was done for an account."""
    printer.thing(
        "endpoint",
        apps=",".join(looked.apps),
        account=looked.account_id,
        url=looked.plan and looked.plan.wanted.url,
        done="; ".join(looked.done) or (None if looked.error else "nothing"),
        error=looked.error,
    )


def _show(command: str, app_id: str | None, *, as_json: bool) -> None:
    services, printer = _reachable_services(), Printer(as_json=as_json)
    versions, failed = other_versions(services), False
    with stopping_on_signals(services.stop):
        for looked in show_endpoints(services, command=command, app_id=app_id):
            failed = failed or looked.error is not None
            for shown in looked.apps:
                _print_app(shown, looked, versions.pop(shown, {}), printer)
    require_end(services.stop)
    for other in versions if app_id is None else ():
        printer.thing("events", app=other, other_versions=_told(versions[other]))
    if failed:
        raise SystemExit(1)


def _print_app(app_id: str, looked: Looked, versions: Mapping[str, int], printer: Printer) -> None:
    plan = looked.plan
    printer.thing(
        "app",
        app=app_id,
        account=looked.account_id,
        url=plan and plan.wanted.url,
        endpoint=plan and plan.current and plan.current.id,
        differs=plan and "; ".join(plan.differences()),
        others=plan and ", ".join(f"{each.id} {each.url}" for each in plan.others),
        other_versions=_told(versions),
        error=looked.error,
    )


def _told(versions: Mapping[str, int]) -> str:
    return ", ".join(f"{count} events in {version}" for version, count in versions.items())


def _reachable_services() -> Services:
    """The services, where it is known at which address Stripe reaches them.

    :raises ClickException: when it isn't, or settings are missing; it says which.
    """
    services = configured_services()
    try:
        services.settings.require_public_url()
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error
    return services
