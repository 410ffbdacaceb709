"""The README's lines, pasted into shells, in a copy of the project that `make run` runs."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.sandbox.test_run import ROOT, are_gone, free_ports
from tests.soak import SOAKING
from tests.waiting import wait_until
from tests.web import clean_environment

README = (ROOT / "README.md").read_text()
# Some commands need to know where Stripe reaches the service.
PUBLIC_URL = "https://pay.example.com"
SERVICE = "http://127.0.0.1:3011"
FOLDERS, FILES = ("app", "migrations", "openapi"), ("wsgi.py", "Makefile", "pyproject.toml")
# What these tests are run with stands for what `make install` installs.
MAKE = f'make() {{ command make --old-file=install VENV={shlex.quote(sys.prefix)} "$@"; }}\n'
SHOWN_ID = re.compile(r"status/([0-9a-f-]{36})")

pytestmark = pytest.mark.integration


def section(title: str) -> str:
    """The text below a heading of the README."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def shown(title: str) -> list[tuple[str, str]]:
    """The lines for the shell that a section shows, each with the answer below it."""
    blocks = re.findall(r"```console\n(.*?)```", section(title), re.DOTALL)
    lines = [line for block in blocks for line in re.split(r"^\$ ", block, flags=re.MULTILINE) if line]
    parted = [re.fullmatch(r"(.*?\n)(\{.*)?", line, re.DOTALL) for line in lines]
    return [(found[1].strip(), found[2] or "") for found in parted if found]


def shape(value: object) -> object:
    """What an answer consists of, without its values."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else type(value).__name__


@dataclass(frozen=True)
class Sandbox:
    """A project in which `make run` runs, on ports that stand for the usual ones."""

    project: Path
    runner: "subprocess.Popen[bytes]"
    ports: dict[str, str]
    printed: Path

    @classmethod
    def start(cls, project: Path) -> "Sandbox":
        (command,) = [line for line, _ in shown("Run it") if line.startswith("make run")]
        ports = dict(zip(("3011", "3012"), map(str, free_ports()), strict=True))
        printed = project.with_name("printed")
        with printed.open("w") as output:
            runner = subprocess.Popen(
                ["bash", "-c", MAKE + command],
                cwd=project,
                env=_environment(ports),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(project, runner, ports, printed)

    @property
    def output(self) -> str:
        return self.printed.read_text()

    def is_ready(self) -> bool:
        assert self.runner.poll() is None, self.output
        return "\nCtrl-C" in self.output

    def paste(self, line: str, *, directory: Path | None = None) -> str:
        """What a line prints in a second terminal, with the ports in place of the usual ones."""
        for usual, port in self.ports.items():
            line = line.replace(f":{usual}", f":{port}")
        done = subprocess.run(
            ["bash", "-ec", MAKE + line],
            cwd=directory or self.project,
            env=_environment(self.ports),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout

    def flask(self, command: str) -> str:
        """What a command prints in any folder, after the line that `make run` prints for it."""
        (line,) = re.findall(r"^\. .*$", self.output, re.MULTILINE)
        return self.paste(f"{line}\n{command}", directory=Path("/"))

    def end(self) -> None:
        """Press Ctrl-C, and see that nothing is left."""
        processes = psutil.Process(self.runner.pid).children(recursive=True)
        os.killpg(self.runner.pid, signal.SIGINT)
        self.runner.wait(60)
        assert are_gone(processes)
        assert list(self.project.glob(".sandbox/development/data-*/PG_VERSION"))
        assert not list(self.project.glob(".sandbox/development/data-*/postmaster.pid"))


def _environment(ports: dict[str, str]) -> dict[str, str]:
    return clean_environment() | {"PORT": ports["3011"], "SANDBOX_PORT": ports["3012"]}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    project = tmp_path_factory.mktemp("private") / "project"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, project / name)
    for name in FILES:
        shutil.copy(ROOT / name, project)
    sandbox = Sandbox.start(project)
    try:
        wait_until(sandbox.is_ready, seconds=60, what="the sandbox")
        yield sandbox
    finally:
        sandbox.end()


@dataclass(frozen=True)
class Paid:
    """What came of the lines of "One payment": the answers, and those that the README shows."""

    payment_id: str
    created: dict[str, Any]
    again: dict[str, Any]
    status: dict[str, Any]
    shown: list[dict[str, Any]]


@pytest.fixture(scope="module")
def paid(sandbox: Sandbox) -> Paid:
    (create, shown_create), (status, shown_status) = shown("One payment")
    created, again = (json.loads(sandbox.paste(create)) for _ in range(2))
    assert requests.post(f"{created['url']}/pay", allow_redirects=False, timeout=10).status_code == 303
    status = SHOWN_ID.sub(f"status/{created['paymentId']}", status)

    def answer() -> dict[str, Any]:
        return dict(json.loads(sandbox.paste(status)))

    wait_until(lambda: answer()["payment"]["tracking"]["state"] == "complete", seconds=20, what="the payment")
    return Paid(created["paymentId"], created, again, answer(), [json.loads(shown_create), json.loads(shown_status)])


class TestRunIt:
    def test_its_commands_are_those_of_the_makefile(self) -> None:
        # The others need an account of Stripe's.
        ours = [line.split("#")[0].split() for line, _ in shown("Run it") if "stripe listen" not in line]
        assert ours == [["make", "run"], ["make", "test"]]

    def test_make_run_says_last_what_to_do(self, sandbox: Sandbox) -> None:
        said = sandbox.output.partition("\nCtrl-C")[0].splitlines()

        assert said[-2:] == [
            f"Documentation: http://127.0.0.1:{sandbox.ports['3011']}/docs",
            f"Stand-ins:     http://127.0.0.1:{sandbox.ports['3012']}/",
        ]
        last_log_line = max(number for number, line in enumerate(said) if line.startswith("{"))
        assert said[last_log_line + 2].startswith("The service is ready.")

    def test_the_lines_that_it_prints_do_what_they_promise(self, sandbox: Sandbox) -> None:
        lines = [line for line in sandbox.output.splitlines() if "curl" in line]

        intent, status = map(json.loads, sandbox.paste("\n".join(lines)).splitlines())

        assert intent["success"] is True
        assert status["payment"]["status"] == "checkout_created"


class TestPages:
    def test_each_leads_to_the_other(self, sandbox: Sandbox) -> None:
        service, stand_ins = (f"http://127.0.0.1:{port}" for port in sandbox.ports.values())

        assert f'<a href="{stand_ins}/">' in requests.get(f"{service}/docs", timeout=10).text
        assert f'<a href="{service}/docs">' in requests.get(stand_ins, timeout=10).text

    def test_the_stand_ins_show_the_key_that_the_lines_to_paste_send(self, sandbox: Sandbox) -> None:
        page = requests.get(f"http://127.0.0.1:{sandbox.ports['3012']}", timeout=10).text

        assert set(re.findall(r"X-API-Key: ([^']+)'", sandbox.output)) == {"sandbox-api-key"}
        assert "<code>sandbox-api-key</code>" in page


class TestOnePayment:
    def test_the_answers_have_the_shape_that_is_shown(self, paid: Paid) -> None:
        assert [shape(paid.created), shape(paid.status)] == [shape(answer) for answer in paid.shown]

    def test_the_same_line_again_makes_no_second_payment(self, paid: Paid) -> None:
        assert paid.again == paid.created

    def test_it_is_paid(self, paid: Paid) -> None:
        assert paid.status["payment"]["status"] == paid.shown[1]["payment"]["status"] == "succeeded"


class TestCommands:
    @pytest.mark.soak
    def test_each_that_the_table_names_works_in_a_second_terminal(self, sandbox: Sandbox, paid: Paid) -> None:
        """Outside of the soak every third, as each takes seconds to start, and those whose answer is known."""
        named = re.findall(r"^\| `(flask [^`]+)` \|", section("Production"), re.MULTILINE)
        assert len(named) >= 5
        shows, stuck = "flask payments show ID", "flask payments stuck"
        commands = named if SOAKING else sorted({*named[::3], shows, stuck})
        assert {shows, stuck} <= set(named)
        told = sandbox.paste(f"curl -s '{SERVICE}/events?appId=demo&limit=1' -H 'X-API-Key: sandbox-api-key'")
        event_id = json.loads(told)["events"][0]["eventId"]

        with ThreadPoolExecutor(2) as terminals:
            given = {"ID": paid.payment_id, "EVENT": event_id}
            filled = [re.sub(r"\b(ID|EVENT)\b", lambda found: given[found[0]], each) for each in commands]
            lines = [f"export PUBLIC_URL={PUBLIC_URL}\n{each}" for each in filled]
            answers = dict(zip(commands, terminals.map(sandbox.flask, lines), strict=True))

        assert paid.payment_id in answers[shows]
        assert answers[stuck] == "No payment is stuck.\n"

    def test_make_flask_works_too(self, sandbox: Sandbox) -> None:
        (line,) = re.findall(r"`(make flask [^`]+)`", section("Production"))

        assert sandbox.paste(line) == "No payment is stuck.\n"

    def test_make_migration_writes_one(self, sandbox: Sandbox) -> None:
        (line,) = re.findall(r"`(make migration [^`]+)`", section("Work on it"))
        versions = sandbox.project / "migrations/versions"
        before = set(versions.glob("*.py"))

        sandbox.paste(line)

        (new,) = set(versions.glob("*.py")) - before
        assert new.read_text().count("    pass\n") == 2
        new.unlink()
