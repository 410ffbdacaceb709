"""All commands: their help needs no settings, and without settings they say what is missing."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import click
import pytest
from flask import Flask
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError

from app import create_app
from app.config import Settings
from app.extensions import db
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
    "payments show": ["payments", "show", str(UUID(int=1))],
    "payments stuck": ["payments", "stuck"],
    "payments refund": ["payments", "refund", str(UUID(int=1))],
    "events replay": ["events", "replay", "--since", "2026-03-01"],
    "events unreadable": ["events", "unreadable"],
    "endpoints show": ["endpoints", "show"],
    "endpoints sync": ["endpoints", "sync"],
    "events deliveries": ["events", "deliveries"],
    "events redeliver": ["events", "redeliver", str(UUID(int=1))],
    "keys create": ["keys", "create", "--app", "shop"],
    "keys list": ["keys", "list"],
    "keys rotate": ["keys", "rotate", str(UUID(int=1))],
    "keys revoke": ["keys", "revoke", str(UUID(int=1))],
}
# Those that work without.
NEED_NOTHING = ["endpoints types", "sandbox", "version"]


@pytest.fixture(scope="module")
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
        assert {name for name, _ in commands_of(app.cli)} == {*LINES, *NEED_NOTHING}

    @pytest.mark.parametrize("name", [name for name in LINES if name != "worker"])
    def test_it_says_which_variables_are_missing(self, app: Flask, name: str) -> None:
        result = app.test_cli_runner().invoke(args=LINES[name])

        assert (result.exit_code, result.stdout, result.stderr) == (1, "", MISSING)

    def test_the_worker_says_so_as_a_process(self) -> None:
        """Without the sentence it would go on for ever."""
        result = run("worker")

        assert (result.returncode, result.stdout, result.stderr) == (1, "", MISSING)


# Each command of `flask db` that looks at a database.
MIGRATIONS = [
    ["db", "upgrade"],
    ["db", "downgrade"],
    ["db", "current"],
    ["db", "check"],
    ["db", "stamp", "head"],
    ["db", "history", "--indicate-current"],
    ["db", "revision", "--autogenerate"],
    ["db", "migrate"],
]


class TestNoDatabaseIsNamed:
    @pytest.mark.parametrize("line", MIGRATIONS, ids=" ".join)
    def test_a_migration_says_which_variable_to_set(self, app: Flask, line: list[str]) -> None:
        result = app.test_cli_runner().invoke(args=line)

        advice = "set it to the postgresql:// URL of the database to work on"
        assert result.stderr == f"Error: STRIPE_SERVICE_DATABASE_URL is not set: {advice}.\n"
        assert (result.exit_code, result.stdout) == (1, "")

    def test_a_migration_says_what_is_wrong_with_the_url(self) -> None:
        app = create_app(Settings.from_environment({"STRIPE_SERVICE_DATABASE_URL": "mysql://db/payments"}))
        result = app.test_cli_runner().invoke(args=["db", "upgrade"])

        assert result.stderr.startswith("Error: STRIPE_SERVICE_DATABASE_URL must be a postgresql:// URL: set it ")
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)

    def test_what_reads_files_alone_needs_none(self, app: Flask) -> None:
        result = app.test_cli_runner().invoke(args=["db", "heads"])

        assert (result.exit_code, result.stderr) == (0, "")

    @pytest.mark.integration
    def test_nothing_connects_to_what_libpq_would_take(
        self, app: Flask, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        named = make_url(database_url)
        host = named.query.get("host", named.host)
        for name, value in {
            "HOST": host,
            "PORT": named.port,
            "USER": named.username,
            "PASSWORD": named.password,
        }.items():
            if value is not None:
                monkeypatch.setenv(f"PG{name}", str(value))
        monkeypatch.setenv("PGDATABASE", str(named.database))

        with app.app_context(), pytest.raises(OperationalError, match="no database is named"):
            db.engine.connect()


class TestDatabaseIsAway:
    @pytest.fixture
    def app(self) -> Flask:
        environment = dict.fromkeys(REQUIRED, "x") | {
            "STRIPE_SERVICE_DATABASE_URL": "postgresql://somebody:secret@127.0.0.1:1/payments",
            "KEY_SERVICE_URL": "http://127.0.0.1:1",
            "RUNS_SERVICE_URL": "http://127.0.0.1:1",
            "PUBLIC_URL": "https://pay.example.com",
        }
        return create_app(Settings.from_environment(environment).require_valid())

    @pytest.mark.parametrize(
        "line",
        [*(line for name, line in LINES.items() if name != "worker"), ["events", "replay", "--all"], *MIGRATIONS],
        ids=" ".join,
    )
    def test_it_says_so_in_one_sentence(self, app: Flask, line: list[str]) -> None:
        result = app.test_cli_runner().invoke(args=line)

        assert result.stderr.startswith("Error: the database is unavailable (")
        assert "STRIPE_SERVICE_DATABASE_URL" in result.stderr
        assert "secret" not in result.stderr
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)


@pytest.mark.integration
class TestDatabaseIsNotMigrated:
    def test_it_says_what_to_run(self, settings: Settings) -> None:
        """Its tables are in another schema than the one that the command looks into."""
        url = make_url(settings.database_url).update_query_dict({"options": "-csearch_path=pg_catalog"})
        app = create_app(replace(settings, database_url=url.render_as_string(hide_password=False)))
        result = app.test_cli_runner().invoke(args=["payments", "stuck"])

        assert result.stderr == "Error: the database lacks migrations of this version: run `flask db upgrade`\n"
        assert result.exit_code == 1


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
