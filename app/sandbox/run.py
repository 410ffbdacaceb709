"""Run the whole service on this machine, with stand-ins for what isn't set: `python -m app.sandbox.run [--reload]`."""

import argparse
import ctypes
import errno
import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from string import Template

from dotenv import dotenv_values

from app.config import DATABASE_URL, Settings
from app.sandbox import folder, postgres
from app.sandbox.changes import Changes

ROOT = Path(__file__).resolve().parents[2]
SERVICE = "app.sandbox.service:create_service()"
READY_SECONDS = 60
STOP_SECONDS = 40
# How often files are looked at.
LOOK_SECONDS = 0.5

DEFAULTS = {
    "HOST": "127.0.0.1",
    "PORT": "3011",
    "WEB_CONCURRENCY": "2",
    "STRIPE_SERVICE_API_KEY": "sandbox-api-key",
    "STRIPE_WEBHOOK_SECRET": "whsec_sandbox",
    "SANDBOX_PORT": "3012",
    "ALLOW_PRIVATE_ENDPOINTS": "1",
    "PYTHONUNBUFFERED": "1",
}

# https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)

# Whatever proxy the environment names, it is not for the addresses of this machine.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

WELCOME = Template("""
The service is ready. Create a checkout, create a payment intent, and see what became of the checkout:

PAYMENT_ID=$$(curl -sS -w '\\n' $service/checkout/create -H $key -H "Content-Type: application/json" \
-d '{"appId": "demo", "lineItems": [{"priceId": "$price", "quantity": 1}], \
"successUrl": "$thanks", "cancelUrl": "$service/"}' \
| tee /dev/stderr | sed -n 's/.*"paymentId": *"\\([^"]*\\)".*/\\1/p')
curl -sS -w '\\n' $service/payment-intent/create -H $key -H "Content-Type: application/json" \
-d '{"appId": "demo", "amountInCents": 1999}'
curl -sS -w '\\n' $service/status/$$PAYMENT_ID -H $key

In another terminal, for the commands that the README names, such as `flask payments stuck`:

. $environment

Documentation: $service/docs
Stand-ins:     $stand_ins
Ctrl-C ends everything.
""")


class RunError(Exception):
    """The service can't be run; the message is for the person at the terminal."""


@dataclass(frozen=True)
class Plan:
    """The environment of all processes, and whether any of it leads to the stand-ins."""

    environment: dict[str, str]
    needs_stand_ins: bool
    service_url: str
    stand_ins_url: str


def main() -> int:
    """Run until Ctrl-C or a signal that asks for the same, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m app.sandbox.run")
    parser.add_argument("--reload", action="store_true", help="restart everything when a file changes")
    arguments = parser.parse_args()
    processes = Processes()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: processes.interrupt())
    try:
        plan = make_plan(read_variables())
        with suppress(KeyboardInterrupt), folder.claimed():
            try:
                run(plan, processes, reload=arguments.reload)
            finally:
                processes.stop()
    except (RunError, folder.AlreadyRuns, postgres.PostgresError) as err:
        print(err, file=sys.stderr)
        return 1
    return 0


def read_variables() -> dict[str, str | None]:
    """Return what the environment sets, and the file `.env` of what that doesn't."""
    return {**dotenv_values(ROOT / ".env"), **os.environ}


def make_plan(variables: Mapping[str, str | None]) -> Plan:
    """Fill in what isn't set; an empty variable counts as not set.

    :raises RunError: when the Stripe key is not one of test mode.
    """
    given = {name: value for name, value in variables.items() if value and value.strip()}
    _require_test_key(given.get("SANDBOX_STRIPE_KEY"))
    environment = DEFAULTS | given
    service_url = f"http://{environment['HOST'].replace('0.0.0.0', '127.0.0.1')}:{environment['PORT']}"
    stand_ins_url = f"http://127.0.0.1:{environment['SANDBOX_PORT']}"
    webhooks = {"SANDBOX_WEBHOOK_URL": f"{service_url}/webhooks/stripe"}
    played = _played(given, stand_ins_url)
    return Plan(webhooks | played | environment, bool(played), service_url, stand_ins_url)


def _played(given: Mapping[str, str], stand_ins_url: str) -> dict[str, str]:
    """Return what leads to the stand-ins of those services whose address isn't set."""
    played: dict[str, str] = {}
    if "KEY_SERVICE_URL" not in given:
        played["KEY_SERVICE_URL"] = f"{stand_ins_url}/key-service"
        played["KEY_SERVICE_API_KEY"] = "sandbox-key-service"
    if "RUNS_SERVICE_URL" not in given:
        played["RUNS_SERVICE_URL"] = f"{stand_ins_url}/runs-service"
        played["RUNS_SERVICE_API_KEY"] = "sandbox-runs-service"
    if not given.keys() & {"STRIPE_API_BASE", "SANDBOX_STRIPE_KEY"}:
        played["STRIPE_API_BASE"] = stand_ins_url
    return played


def _require_test_key(stripe_key: str | None) -> None:
    if stripe_key and not stripe_key.startswith(("sk_test_", "rk_test_")):
        raise RunError("SANDBOX_STRIPE_KEY must be a key of Stripe's test mode: sk_test_... or rk_test_...")


def run(plan: Plan, processes: "Processes", *, reload: bool) -> None:
    """Start everything, say how to try it, and go on until a signal or the end of a process.

    :param reload: start everything again when a file of the program changes, and go on when a process ends
    :raises KeyboardInterrupt: when a signal asks for the end.
    :raises RunError: when something can't be started, or ended by itself.
    :raises PostgresError: when the embedded PostgreSQL doesn't start.
    """
    _require_free_ports(plan)
    _require_valid(plan.environment)
    changes = Changes(ROOT)
    environment = with_storage(plan.environment)
    processes.run_to_end("flask db upgrade", "flask", "db", "upgrade", environment=environment)
    if plan.needs_stand_ins:
        processes.start("stand-ins", "app.sandbox.server", environment=environment)
    processes.start("service", "gunicorn", "-c", "python:app.gunicorn_config", SERVICE, environment=environment)
    processes.start("worker", "flask", "worker", environment=environment)
    _wait_until_ready(plan, processes)
    print(welcome(plan, folder.write_environment(environment)), flush=True)
    while not reload:
        processes.watch()
    _reload_on_change(plan, processes, changes)


def _reload_on_change(plan: Plan, processes: "Processes", changes: Changes) -> None:
    while True:
        with _saying_what_fails():
            processes.watch(seconds=LOOK_SECONDS)
        if changed := changes.since_last_look():
            print(f"Changed: {', '.join(changed)}. Starting again.", flush=True)
            processes.restart()
            with _saying_what_fails():
                _wait_until_ready(plan, processes)
                print("Ready again.", flush=True)


@contextmanager
def _saying_what_fails() -> Iterator[None]:
    try:
        yield
    except RunError as err:
        print(f"{err} The next change of a file starts everything again.", flush=True)


def _require_valid(environment: Mapping[str, str]) -> None:
    """Check the settings before anything is started, as if the database that is started here already were."""
    problems = Settings.from_environment({DATABASE_URL: "postgresql:///development", **environment}).problems
    if problems:
        raise RunError("\n".join(problems))


def _require_free_ports(plan: Plan) -> None:
    wanted = [(plan.environment["HOST"], "PORT")]
    if plan.needs_stand_ins:
        wanted.append(("127.0.0.1", "SANDBOX_PORT"))
    with ExitStack() as listeners:
        for host, variable in wanted:
            listener = listeners.enter_context(socket.socket())
            _listen(listener, host, variable, plan.environment[variable])


def _listen(listener: socket.socket, host: str, variable: str, port: str) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, _port(variable, port)))
        listener.listen()
    except (socket.gaierror, UnicodeError) as err:
        raise RunError("HOST must be an IPv4 address of this machine, without a port.") from err
    except OSError as err:
        if err.errno == errno.EADDRNOTAVAIL:
            raise RunError("HOST must be an IPv4 address of this machine, without a port.") from err
        raise RunError(f"Port {port} of {host} can't be used ({err.strerror}): set {variable} to another.") from err


def _port(variable: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and 0 < int(value) < 65536):
        raise RunError(f"{variable} must be a port from 1 to 65535, not {value!r}.")
    return int(value)


def with_storage(environment: Mapping[str, str]) -> dict[str, str]:
    """Add where the data goes that isn't told where to go; the database is started for it.

    :raises PostgresError: when the embedded PostgreSQL doesn't start.
    """
    storage = {"SANDBOX_DATA": str(folder.data_file())}
    if DATABASE_URL not in environment:
        storage[DATABASE_URL] = postgres.start(postgres.DEVELOPMENT)
    return storage | dict(environment)


def _wait_until_ready(plan: Plan, processes: "Processes") -> None:
    deadline = time.monotonic() + READY_SECONDS
    stand_ins = [f"{plan.stand_ins_url}/"] if plan.needs_stand_ins else []
    for url in (*stand_ins, f"{plan.service_url}/health/ready"):
        print(f"Waiting for {url}", flush=True)
        while not _answers(url):
            if time.monotonic() > deadline:
                raise RunError(f"{url} did not answer 200 within {READY_SECONDS} seconds.")
            processes.watch(seconds=0.2)


def _answers(url: str) -> bool:
    try:
        with DIRECT.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def welcome(plan: Plan, environment: Path) -> str:
    """Return what to try now: lines for the shell, and pages.

    :param environment: the file that sets what `flask` needs
    """
    api_key = plan.environment["STRIPE_SERVICE_API_KEY"].strip(" ,").partition(",")[0].strip()
    plays_stripe = plan.environment.get("STRIPE_API_BASE") == plan.stand_ins_url
    return WELCOME.substitute(
        service=plan.service_url,
        key=shlex.quote(f"X-API-Key: {api_key}"),
        price="price_sandbox" if plays_stripe else "price_...",
        thanks=f"{plan.stand_ins_url}/paid/{{CHECKOUT_SESSION_ID}}" if plays_stripe else f"{plan.service_url}/",
        environment=shlex.quote(str(environment)),
        stand_ins=f"{plan.stand_ins_url}/" if plan.needs_stand_ins else "none",
    )


@dataclass(frozen=True)
class Started:
    """A process, and what it takes to start it again."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    process: subprocess.Popen[bytes]


@dataclass(frozen=True)
class Ended:
    """The news that a process ended, with its exit status."""

    started: Started
    status: int


class Processes:
    """The processes that were started, and the news of them and of signals, in the order in which they come."""

    def __init__(self) -> None:
        self._started: list[Started] = []
        self._news: SimpleQueue[Ended | None] = SimpleQueue()

    def interrupt(self) -> None:
        """Have whoever waits for news stop waiting; signal handlers may call it."""
        self._news.put(None)

    def start(self, name: str, *command: str, environment: dict[str, str]) -> None:
        """Start a Python module. It has a session of its own, so that Ctrl-C reaches it only through `stop`.

        :param command: the module and its arguments
        """
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        started = Started(name, command, environment, process)
        self._started.append(started)
        threading.Thread(target=lambda: self._news.put(Ended(started, process.wait())), daemon=True).start()

    def run_to_end(self, name: str, *command: str, environment: dict[str, str]) -> None:
        """Run a Python module while no other runs.

        :raises RunError: when it fails.
        """
        self.start(name, *command, environment=environment)
        ended = self._next_news(None)
        if ended is None or ended.status != 0:
            raise RunError(f"{name} failed.")
        self._started.pop()

    def restart(self) -> None:
        """End the processes and start them again."""
        ended = self._started
        self.stop()
        for each in ended:
            self.start(each.name, *each.command, environment=each.environment)

    def watch(self, seconds: float | None = None) -> None:
        """Wait until there is news, at most so long, without `seconds` for ever.

        :raises RunError: when a process ended by itself.
        """
        ended = self._next_news(seconds)
        if ended is not None:
            raise RunError(f"The {ended.started.name} ended by itself with status {ended.status}.")

    def _next_news(self, seconds: float | None) -> Ended | None:
        try:
            news = self._news.get(timeout=seconds)
        except Empty:
            return None
        if news is None:
            raise KeyboardInterrupt
        # A process that `restart` has ended is no news.
        return news if news.started in self._started else None

    def stop(self) -> None:
        """End the processes, the last started first, so that each finds what it needs to the end."""
        for process in (started.process for started in reversed(self._started)):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            # What is left: a process that didn't heed, or the children of one that was killed. Of a group in which
            # nobody lives any more, Linux says ESRCH, macOS may say EPERM.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        self._started = []


def _end_with_parent() -> None:
    """Have this process asked to end when its parent is gone, also when that was killed."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
