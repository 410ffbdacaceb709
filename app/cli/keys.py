"""`flask keys`: keys of apps, made, listed, rotated and revoked."""

from datetime import timedelta

import click
from flask.cli import AppGroup
from marshmallow import ValidationError

from app.cli.configured import ServiceCommand, configured_services, exit_when_not_found
from app.cli.printing import as_json, print_json, print_table
from app.models import KeyScope
from app.schemas.base import AppId
from app.services.access.keys import create_key, list_keys, revoke_key, rotate_key

keys = AppGroup("keys", help="Make and revoke the keys of apps.")


def _read_app(_: click.Context, __: click.Parameter, value: str) -> str:
    try:
        return str(AppId().deserialize(value))
    except ValidationError as error:
        raise click.BadParameter(" ".join(map(str, error.messages))) from error


SCOPES = click.Choice([str(scope) for scope in KeyScope])


@keys.command("create", cls=ServiceCommand)
@click.option("--app", "app_id", required=True, callback=_read_app, help="The app that the key is for.")
@click.option("--name", help="For people: who has it.")
@click.option("--scope", type=SCOPES, default=str(KeyScope.WRITE), show_default=True, help="What it is good for.")
def create(app_id: str, name: str | None, scope: str) -> None:
    """Make a key for an app, and print it, once."""
    made = create_key(app_id, name=name, scope=KeyScope(scope), services=configured_services())
    _print_once(made["key"], str(made["key_id"]))


@keys.command("list", cls=ServiceCommand)
@click.option("--app", "app_id", help="List no other app's.")
@as_json
def show_list(app_id: str | None, as_json: bool) -> None:
    """List keys, the newest first; none is shown itself."""
    found = list_keys(app_id, services=configured_services())
    if as_json:
        for key in found:
            print_json(key)
    elif found:
        print_table(found)
    else:
        click.echo("There is no key. Make one: flask keys create --app APP")


@keys.command("rotate", cls=ServiceCommand)
@click.argument("key_id")
@click.option(
    "--overlap-hours",
    type=click.IntRange(min=0),
    default=24,
    show_default=True,
    help="How long the old one is good for besides.",
)
def rotate(key_id: str, overlap_hours: int) -> None:
    """Make another key for the app of a key, and print it, once; the old one ends a while later."""
    with exit_when_not_found():
        made = rotate_key(key_id, overlap=timedelta(hours=overlap_hours), services=configured_services())
    _print_once(made["key"], str(made["key_id"]))


@keys.command("revoke", cls=ServiceCommand)
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """Refuse a key from now on: every replica does within 10 seconds."""
    with exit_when_not_found():
        revoke_key(key_id, services=configured_services())
    click.echo(f"Key {key_id} is revoked.")


def _print_once(key: str, key_id: str) -> None:
    click.echo(key)
    click.echo(f"Key {key_id}: it is shown this once. Send it as the header X-API-Key.", err=True)
