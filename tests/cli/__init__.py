"""Tests of the `flask` commands."""

from collections.abc import Callable

from click.testing import Result

# Runs a command in this process: `flask("payments", "stuck")`.
Run = Callable[..., Result]
