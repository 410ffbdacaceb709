"""The runner, with real processes, which are fakes of those of the service."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from app.sandbox.run import ROOT, SERVICE, RunError, make_plan, welcome

RUN = "import sys; from app.sandbox import run; run.STOP_SECONDS = {stop}; sys.exit(run.main())"
RESET = [sys.executable, "-m", "app.sandbox.reset"]
REAL = {
    "KEY_SERVICE_URL": "http://keys.test",
    "KEY_SERVICE_API_KEY": "real-keys",
    "RUNS_SERVICE_URL": "http://runs.test",
    "RUNS_SERVICE_API_KEY": "real-runs",
    "STRIPE_API_BASE": "https://api.stripe.com",
}

FAKES = {
    "wsgi.py": """
import os, signal, sys, threading
from flask import Flask

app = Flask(__name__)

@app.get("/health/ready")
def ready():
    return dict(os.environ)

@app.cli.group()
def db():
    pass

@db.command()
def upgrade():
    sys.exit(int(os.environ.get("FAKE_UPGRADE_STATUS", "0")))

@app.cli.command()
def worker():
    if "FAKE_STUBBORN_WORKER" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Event().wait()
""",
    "app/gunicorn_config.py": """
import os
bind = f"{os.environ['HOST']}:{os.environ['PORT']}"
workers = int(os.environ["WEB_CONCURRENCY"])
control_socket_disable = True
""",
    "app/sandbox/service.py": """
from wsgi import app

def create_service():
    return app
""",
    "app/sandbox/server.py": """
import os
from http.server import HTTPServer, SimpleHTTPRequestHandler
HTTPServer(("127.0.0.1", int(os.environ["SANDBOX_PORT"])), SimpleHTTPRequestHandler).serve_forever()
""",
}

ENVIRONMENT = Path("/project/.sandbox/environment")

# Of the command line of each process, what tells which it is.
PARTS = {"app.sandbox.server": "stand-ins", SERVICE: "service", "worker": "worker"}

Spawn = Callable[..., "Runner"]


class Runner:
    """A started runner, and what it has said so far."""

    def __init__(
        self, checkout: Path, environment: dict[str, str], *, stop_seconds: int, arguments: Sequence[str]
    ) -> None:
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN.format(stop=stop_seconds), *arguments],
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until_ready(self) -> None:
        self.wait_until_line("Ctrl-C")

    def wait_until_line(self, beginning: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if line.startswith(beginning):
                return
        raise AssertionError(self.output)

    def wait(self) -> int:
        output, _ = self.process.communicate(timeout=30)
        self.output += output
        return self.process.returncode

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def descendant(self, argument: str) -> psutil.Process:
        return next(process for process in self.descendants() if argument in process.cmdline())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the real runner; all else is fake."""
    for name, text in FAKES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in (
        "config.py",
        *(f"sandbox/{module}.py" for module in ("run", "folder", "changes", "postgres", "reset")),
    ):
        shutil.copy(ROOT / "app" / name, tmp_path / "app" / name)
    return tmp_path


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """What the fakes are run with: no database is needed, the ports are free, the temporary directory is their own."""
    port, sandbox_port = free_ports()
    return {
        "PATH": os.environ["PATH"],
        "TMPDIR": str(tmp_path),
        "PORT": str(port),
        "SANDBOX_PORT": str(sandbox_port),
        "STRIPE_SERVICE_DATABASE_URL": "postgresql://nowhere/payments",
        "WEB_CONCURRENCY": "1",
    }


@pytest.fixture
def spawn(project: Path, variables: dict[str, str]) -> Iterator[Spawn]:
    with ExitStack() as ends:

        def start(*, stop_seconds: int = 10, arguments: Sequence[str] = (), **environment: str) -> Runner:
            runner = Runner(project, variables | environment, stop_seconds=stop_seconds, arguments=arguments)
            ends.enter_context(runner.process)
            ends.callback(runner.process.terminate)
            return runner

        yield start


def free_ports() -> list[int]:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        return [listener.getsockname()[1] for listener in (first, second)]


def environment_of_service(variables: dict[str, str]) -> dict[str, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{variables['PORT']}/health/ready") as response:
        environment = json.load(response)
    assert isinstance(environment, dict)
    return environment


def are_gone(processes: list[psutil.Process]) -> bool:
    """Tell whether all of them end soon; those that don't are killed, so that a failed test leaves nothing behind."""
    deadline = time.monotonic() + 10
    alive = processes
    while alive and time.monotonic() < deadline:
        _, alive = psutil.wait_procs(alive, timeout=0.1)
        alive = [process for process in alive if not is_zombie(process)]
    for process in alive:
        process.kill()
    return not alive


def is_zombie(process: psutil.Process) -> bool:
    """Tell whether it has ended, though nobody has waited for it yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class TestMakePlan:
    def test_it_leads_everything_to_the_stand_ins_when_nothing_is_set(self) -> None:
        plan = make_plan({})

        assert plan.needs_stand_ins
        assert plan.environment == {
            "HOST": "127.0.0.1",
            "PORT": "3011",
            "WEB_CONCURRENCY": "2",
            "STRIPE_SERVICE_API_KEY": "sandbox-api-key",
            "STRIPE_WEBHOOK_SECRET": "whsec_sandbox",
            "STRIPE_API_BASE": "http://127.0.0.1:3012",
            "KEY_SERVICE_URL": "http://127.0.0.1:3012/key-service",
            "KEY_SERVICE_API_KEY": "sandbox-key-service",
            "RUNS_SERVICE_URL": "http://127.0.0.1:3012/runs-service",
            "RUNS_SERVICE_API_KEY": "sandbox-runs-service",
            "SANDBOX_PORT": "3012",
            "SANDBOX_WEBHOOK_URL": "http://127.0.0.1:3011/webhooks/stripe",
            "ALLOW_PRIVATE_ENDPOINTS": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def test_it_needs_no_stand_ins_when_everything_is_set(self) -> None:
        plan = make_plan(REAL)

        assert not plan.needs_stand_ins
        assert plan.environment.items() >= REAL.items()

    @pytest.mark.parametrize("name", ["KEY_SERVICE_URL", "RUNS_SERVICE_URL", "STRIPE_API_BASE"])
    def test_it_plays_only_what_is_not_set(self, name: str) -> None:
        plan = make_plan({**REAL, name: ""})

        assert plan.needs_stand_ins
        assert plan.environment[name].startswith("http://127.0.0.1:3012")
        assert {url for url in REAL if plan.environment[url] != REAL[url]} == {name}

    def test_it_makes_up_no_api_key_for_a_real_service(self) -> None:
        plan = make_plan({"KEY_SERVICE_URL": "http://keys.test", "RUNS_SERVICE_URL": "http://runs.test"})

        assert not plan.environment.keys() & {"KEY_SERVICE_API_KEY", "RUNS_SERVICE_API_KEY"}

    def test_it_leaves_stripe_real_when_a_test_key_is_set(self) -> None:
        plan = make_plan({"SANDBOX_STRIPE_KEY": "sk_test_1"})

        assert "STRIPE_API_BASE" not in plan.environment
        assert plan.needs_stand_ins

    def test_it_refuses_a_key_of_live_mode_without_repeating_it(self) -> None:
        with pytest.raises(RunError) as caught:
            make_plan({"SANDBOX_STRIPE_KEY": "sk_live_1"})

        assert str(caught.value) == "SANDBOX_STRIPE_KEY must be a key of Stripe's test mode: sk_test_... or rk_test_..."

    def test_it_leads_to_this_machine_when_the_service_listens_on_every_address(self) -> None:
        assert make_plan({"HOST": "0.0.0.0", "PORT": "80"}).service_url == "http://127.0.0.1:80"


class TestWelcome:
    @pytest.mark.parametrize(
        ("keys", "header"),
        [
            ("of-the-person", "'X-API-Key: of-the-person'"),
            ("new, old", "'X-API-Key: new'"),
            ("it's $HOME", "'X-API-Key: it'\"'\"'s $HOME'"),
        ],
    )
    def test_it_shows_the_api_key_that_works(self, keys: str, header: str) -> None:
        text = welcome(make_plan({"STRIPE_SERVICE_API_KEY": keys}), ENVIRONMENT)

        assert text.count(f"-H {header}") == 3
        assert "sandbox-api-key" not in text

    def test_it_names_no_price_of_the_stand_ins_when_stripe_is_real(self) -> None:
        assert "price_sandbox" not in welcome(make_plan({"SANDBOX_STRIPE_KEY": "sk_test_1"}), ENVIRONMENT)

    def test_it_quotes_the_path_of_the_environment(self) -> None:
        assert "\n. '/a b/environment'\n" in welcome(make_plan({}), Path("/a b/environment"))

    def test_it_leads_the_customer_to_the_page_of_the_stand_ins_only_when_they_play_stripe(self) -> None:
        assert '"http://127.0.0.1:3012/paid/{CHECKOUT_SESSION_ID}"' in welcome(make_plan({}), ENVIRONMENT)
        assert "/paid/" not in welcome(make_plan({"SANDBOX_STRIPE_KEY": "sk_test_1"}), ENVIRONMENT)


class TestRun:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_it_ends_everything_when_it_is_asked_to(self, spawn: Spawn, number: signal.Signals) -> None:
        runner = spawn()
        runner.wait_until_ready()
        descendants = runner.descendants()
        assert len(descendants) >= 4

        assert runner.end(number) == 0
        assert are_gone(descendants)

    @pytest.mark.parametrize(("argument", "name"), PARTS.items())
    def test_it_ends_the_rest_and_says_why_when_a_process_dies(self, spawn: Spawn, argument: str, name: str) -> None:
        runner = spawn()
        runner.wait_until_ready()
        descendants = runner.descendants()

        runner.descendant(argument).kill()

        assert runner.wait() == 1
        assert f"The {name} ended by itself with status -9" in runner.output
        assert are_gone(descendants)

    def test_it_kills_what_does_not_heed(self, spawn: Spawn) -> None:
        runner = spawn(stop_seconds=1, FAKE_STUBBORN_WORKER="1")
        runner.wait_until_ready()
        descendants = runner.descendants()

        assert runner.end() == 0
        assert are_gone(descendants)

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
    def test_it_leaves_nothing_in_the_way_of_the_next_when_it_is_killed(self, spawn: Spawn) -> None:
        runner = spawn()
        runner.wait_until_ready()
        descendants = runner.descendants()
        runner.process.kill()
        assert are_gone(descendants)

        spawn().wait_until_ready()

    def test_it_starts_nothing_else_when_the_migration_fails(self, spawn: Spawn) -> None:
        runner = spawn(FAKE_UPGRADE_STATUS="3")

        assert runner.wait() == 1
        assert runner.output == "flask db upgrade failed.\n"

    def test_it_starts_no_stand_ins_when_it_needs_none(self, spawn: Spawn, variables: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", int(variables["SANDBOX_PORT"]))):
            runner = spawn(**REAL)
            runner.wait_until_ready()

            assert not any("app.sandbox.server" in process.cmdline() for process in runner.descendants())

    def test_it_reads_the_file_of_the_project_and_prefers_the_environment(
        self, spawn: Spawn, project: Path, variables: dict[str, str]
    ) -> None:
        (project / ".env").write_text("WEB_CONCURRENCY=7\nSTRIPE_WEBHOOK_SECRET=whsec_file\nHOST=\n")

        spawn().wait_until_ready()

        environment = environment_of_service(variables)
        assert environment["STRIPE_WEBHOOK_SECRET"] == "whsec_file"
        assert environment["WEB_CONCURRENCY"] == "1"
        assert environment["HOST"] == "127.0.0.1"

    @pytest.mark.parametrize("name", ["PORT", "SANDBOX_PORT"])
    def test_it_names_the_variable_when_a_port_is_taken(
        self, spawn: Spawn, variables: dict[str, str], name: str
    ) -> None:
        with socket.create_server(("127.0.0.1", int(variables[name]))):
            runner = spawn()

            assert runner.wait() == 1
        assert f"Port {variables[name]} of 127.0.0.1 can't be used" in runner.output
        assert f"set {name} to another" in runner.output
        assert runner.output.count("\n") == 1

    def test_it_names_the_variable_when_a_port_is_no_number(self, spawn: Spawn) -> None:
        runner = spawn(SANDBOX_PORT="http")

        assert runner.wait() == 1
        assert runner.output == "SANDBOX_PORT must be a port from 1 to 65535, not 'http'.\n"

    @pytest.mark.parametrize(
        ("name", "value", "sentence"),
        [
            ("WEB_CONCURRENCY", "two", "WEB_CONCURRENCY must be a whole number above 0."),
            ("HOST", "no.such.invalid", "HOST must be an IPv4 address of this machine, without a port."),
            ("HOST", "192.0.2.1", "HOST must be an IPv4 address of this machine, without a port."),
            ("HOST", "a..b", "HOST must be an IPv4 address of this machine, without a port."),
            (
                "STRIPE_SERVICE_DATABASE_URL",
                "mysql://db/payments",
                "STRIPE_SERVICE_DATABASE_URL must be a postgresql:// URL.",
            ),
        ],
    )
    def test_it_starts_nothing_and_names_the_variable_when_a_setting_is_wrong(
        self, spawn: Spawn, name: str, value: str, sentence: str
    ) -> None:
        runner = spawn(**{name: value})

        assert runner.wait() == 1
        assert runner.output == f"{sentence}\n"

    def test_it_names_the_second_variable_when_both_ports_are_the_same(
        self, spawn: Spawn, variables: dict[str, str]
    ) -> None:
        runner = spawn(SANDBOX_PORT=variables["PORT"])

        assert runner.wait() == 1
        assert "set SANDBOX_PORT to another" in runner.output

    def test_it_refuses_to_run_twice_in_one_folder(self, spawn: Spawn, variables: dict[str, str]) -> None:
        first = spawn()
        first.wait_until_ready()
        port, sandbox_port = free_ports()

        second = spawn(PORT=str(port), SANDBOX_PORT=str(sandbox_port))

        assert second.wait() == 1
        assert second.output == f"The sandbox of this folder runs already, as process {first.process.pid}.\n"

    def test_it_writes_what_the_service_reads_for_other_shells_and_for_its_owner_only(
        self, spawn: Spawn, project: Path, variables: dict[str, str]
    ) -> None:
        spawn(STRIPE_SERVICE_API_KEY="it's $HOME", EDITOR="vi").wait_until_ready()

        file = project / ".sandbox/environment"
        show = ["sh", "-c", f". {file}; env -0; type flask"]
        shown = subprocess.run(
            show, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True
        ).stdout
        told = dict(line.split("=", 1) for line in shown.split("\0")[:-1])
        assert file.stat().st_mode & 0o777 == 0o600
        assert told["STRIPE_SERVICE_API_KEY"] == "it's $HOME"
        assert told["STRIPE_SERVICE_DATABASE_URL"] == variables["STRIPE_SERVICE_DATABASE_URL"]
        assert "EDITOR" not in told
        assert "flask is a" in shown.split("\0")[-1]


class TestReload:
    """`--reload`: a change of a file starts all of it again."""

    def test_it_starts_everything_again_when_a_file_changes(self, spawn: Spawn, project: Path) -> None:
        runner = spawn(arguments=["--reload"])
        runner.wait_until_ready()
        before = {part: runner.descendant(part) for part in PARTS}

        (project / "app/sandbox/server.py").write_text(FAKES["app/sandbox/server.py"] + "\n")
        runner.wait_until_line("Ready again.")

        assert "Changed: app/sandbox/server.py. Starting again.\n" in runner.output
        assert are_gone(list(before.values()))
        assert {part: runner.descendant(part) for part in PARTS}.keys() == before.keys()

    def test_it_goes_on_when_the_code_is_broken_and_mended(self, spawn: Spawn, project: Path) -> None:
        runner = spawn(arguments=["--reload"])
        runner.wait_until_ready()

        (project / "app/sandbox/server.py").write_text("broken(")
        runner.wait_until_line("The stand-ins ended by itself with status 1.")
        (project / "app/sandbox/server.py").write_text(FAKES["app/sandbox/server.py"])
        runner.wait_until_line("Ready again.")

        assert runner.end() == 0


class TestReset:
    def test_it_ends_what_runs_and_forgets_its_data(
        self, spawn: Spawn, project: Path, variables: dict[str, str]
    ) -> None:
        runner = spawn()
        runner.wait_until_ready()
        descendants = runner.descendants()
        (project / ".sandbox/sandbox.json").write_text("{}")

        reset = subprocess.run(RESET, cwd=project, env=variables, capture_output=True, text=True, timeout=60)

        assert reset.stderr == ""
        assert reset.returncode == 0
        assert f"Ending the sandbox, process {runner.process.pid}.\n" in reset.stdout
        assert runner.wait() == 0
        assert are_gone(descendants)
        assert not (project / ".sandbox/sandbox.json").exists()

    def test_it_ends_no_process_that_has_the_number_of_one_that_was_killed(
        self, project: Path, variables: dict[str, str]
    ) -> None:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            (project / ".sandbox").mkdir()
            (project / ".sandbox/run.pid").write_text(str(other.pid))

            subprocess.run(RESET, cwd=project, env=variables, timeout=60, check=True)

            assert other.poll() is None
