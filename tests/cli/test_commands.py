"""All commands: their help needs no settings, and without settings they say what is missing."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import click
import pytest
from flask import Flask

from app import create_app
from app.config import Settings
from tests.web import clean_environment

ROOT = Path(__file__).parents[2]
REQUIRED = (
    "STRIPE_SERVICE_DATABASE_URL",
    "STRIPE_SERVICE_API_KEY",
    "STRIPE_WEBHOOK_SECRET",
    "KEY_SERVICE_URL",
    "KEY_SERVICE_API_KEY",
    "RUNS_SERVICE_URL",
    "RUNS_SERVICE_API_KEY",
)
MISSING = "\n".join(["Error: the settings are incomplete:", *(f"{name} is not set." for name in REQUIRED), ""])
# A valid line for each command that needs settings.
LINES = {
    "worker": ["worker"],
    "recover": ["recover"],
    "reconcile": ["reconcile"],
    "payments show": ["payments", "show", str(uuid4())],
    "payments stuck": ["payments", "stuck"],
    "events replay": ["events", "replay", "--since", "2026-03-01"],
}
# Those that work without.
NEED_NOTHING = {"sandbox"}


@pytest.fixture
def app() -> Flask:
    """An application without settings."""
    return create_app(Settings.from_environment({}))


def commands_of(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Our own commands with their whole names."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{prefix}{name} ")
        elif command.callback and command.callback.__module__.startswith("app."):
            yield f"{prefix}{name}", command


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "flask", *arguments],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


class TestWithoutSettings:
    def test_each_command_is_tried(self, app: Flask) -> None:
        """Fails when a command is added that the tests below don't know."""
        assert {name for name, _ in commands_of(app.cli)} == set(LINES) | NEED_NOTHING

    @pytest.mark.parametrize("name", [name for name in LINES if name != "worker"])
    def test_it_says_which_variables_are_missing(self, app: Flask, name: str) -> None:
        result = app.test_cli_runner().invoke(args=LINES[name])

        assert (result.exit_code, result.stdout, result.stderr) == (1, "", MISSING)

    def test_the_worker_says_so_as_a_process(self) -> None:
        """Without the sentence it would go on for ever."""
        result = run("worker")

        assert (result.returncode, result.stdout, result.stderr) == (1, "", MISSING)


class TestHelp:
    def test_it_lists_all_commands_in_a_process_without_settings(self, app: Flask) -> None:
        result = run("--help")

        assert (result.returncode, result.stderr) == (0, "")
        listed = {line.split()[0] for line in result.stdout.partition("Commands:")[2].splitlines() if line}
        assert listed >= {name.split()[0] for name in [*LINES, *NEED_NOTHING]}

    @pytest.mark.parametrize("name", [*LINES, *NEED_NOTHING])
    def test_each_command_describes_itself_without_settings(self, app: Flask, name: str) -> None:
        result = app.test_cli_runner().invoke(args=[*name.split(), "--help"])

        command = dict(commands_of(app.cli))[name]
        assert command.help
        assert command.help.split("\n")[0] in " ".join(result.stdout.split())
        assert result.exit_code == 0
