"""What commands work with, and how they say that they can't."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from psycopg2.errors import UndefinedColumn, UndefinedTable
from sqlalchemy.exc import DBAPIError

from app.config import ConfigurationError
from app.errors import NotFound, is_database_outage
from app.request_context import services
from app.services import Services


def configured_services() -> Services:
    """The services of the current application.

    :raises ClickException: when settings are missing or malformed; it says which.
    """
    try:
        services().settings.require_valid()
    except ConfigurationError as error:
        raise click.ClickException("\n".join(["the settings are incomplete:", *error.problems])) from error
    return services()


def require_database() -> None:
    """Check the one setting that migrations need.

    :raises ClickException: when no database is named.
    """
    try:
        services().settings.require_database()
    except ConfigurationError as error:
        (problem,) = error.problems
        advice = "set it to the postgresql:// URL of the database to work on"
        raise click.ClickException(f"{problem.rstrip('.')}: {advice}.") from error


class ServiceCommand(click.Command):
    """A command that says in one sentence that the database doesn't serve it."""

    def invoke(self, ctx: click.Context) -> Any:
        with exit_when_database_fails():
            return super().invoke(ctx)


@contextmanager
def exit_when_database_fails() -> Iterator[None]:
    """Say that the database is away or lacks migrations, and exit with 1; any other error stays what it is.

    :raises ClickException: when the block raises an error that says so.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DBAPIError) and isinstance(error.orig, UndefinedTable | UndefinedColumn):
            sentence = "the database lacks migrations of this version: run `flask db upgrade`"
            raise click.ClickException(sentence) from error
        if not is_database_outage(error):
            raise
        raise click.ClickException(_outage(error)) from error


def _outage(error: Exception) -> str:
    """The driver's first line names host, user and database, and never the password."""
    told = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    return f"the database is unavailable ({told}): see that STRIPE_SERVICE_DATABASE_URL names one that answers"


@contextmanager
def exit_when_not_found() -> Iterator[None]:
    """Say what there isn't, and exit with 1.

    :raises ClickException: when the block raises NotFound.
    """
    try:
        yield
    except NotFound as error:
        raise click.ClickException(error.sentence) from error
