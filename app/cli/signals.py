"""Signals that ask a command to end: it ends between two rows or pages, where another one goes on."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import click

from app.services.stopping import Stop

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stopping_on_signals(stop: Stop) -> Iterator[None]:
    """Within the block, a signal asks for the end and does nothing else."""
    former = {number: signal.signal(number, lambda *_: stop.set()) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def require_end(stop: Stop) -> None:
    """Say that a command was stopped, where it was.

    :raises ClickException: when the end was asked for.
    """
    if stop.is_set:
        raise click.ClickException("stopped before the end; run it again to go on from there")
