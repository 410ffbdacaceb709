"""What commands work with, and how they say that they can't."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from app.config import ConfigurationError
from app.errors import NotFound
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


@contextmanager
def exit_when_not_found() -> Iterator[None]:
    """Say what there isn't, and exit with 1.

    :raises ClickException: when the block raises NotFound.
    """
    try:
        yield
    except NotFound as error:
        raise click.ClickException(error.sentence) from error
