"""Run the whole service on this machine, with stand-ins for what isn't set: `python -m app.sandbox.run [--reload]`."""

import argparse
import ctypes
import errno
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from string import Template

from dotenv import dotenv_values

from app.config import DATABASE_URL, Settings
from app.sandbox import postgres

ROOT = Path(__file__).resolve().parents[2]
SERVICE = "app.sandbox.service:create_service()"
READY_SECONDS = 60
STOP_SECONDS = 40

DEFAULTS = {
    "HOST": "127.0.0.1",
    "PORT": "3011",
    "WEB_CONCURRENCY": "2",
    "STRIPE_SERVICE_API_KEY": "sandbox-api-key",
    "STRIPE_WEBHOOK_SECRET": "whsec_sandbox",
    "SANDBOX_PORT": "3012",
    "PYTHONUNBUFFERED": "1",
}

# https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)

# Whatever proxy the environment names, it is not for the addresses of this machine.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

WELCOME = Template("""
The service is ready. Create a checkout, create a payment intent, and see what became of the checkout:

PAYMENT_ID=$$(curl -sS -w '\\n' $service/checkout/create -H "X-API-Key: $key" -H "Content-Type: application/json" \
-d '{"appId": "demo", "lineItems": [{"priceId": "$price", "quantity": 1}], \
"successUrl": "$thanks", "cancelUrl": "$service/"}' \
| tee /dev/stderr | sed -n 's/.*"paymentId": *"\\([^"]*\\)".*/\\1/p')
curl -sS -w '\\n' $service/payment-intent/create -H "X-API-Key: $key" -H "Content-Type: application/json" \
-d '{"appId": "demo", "amountInCents": 1999}'
curl -sS -w '\\n' $service/status/$$PAYMENT_ID -H "X-API-Key: $key"

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
    parser.add_argument("--reload", action="store_true", help="restart the service when its code changes")
    arguments = parser.parse_args()
    processes = Processes()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: processes.interrupt())
    try:
        with suppress(KeyboardInterrupt):
            run(make_plan({**dotenv_values(ROOT / ".env"), **os.environ}), processes, reload=arguments.reload)
    except (RunError, postgres.PostgresError) as err:
        print(err, file=sys.stderr)
        return 1
    finally:
        processes.stop()
    return 0


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


def _reloading_web(plan: Plan) -> tuple[str, ...]:
    """The service without its gunicorn settings: they are a module of `app`, and workers fork with what is imported."""
    address = f"{plan.environment['HOST']}:{plan.environment['PORT']}"
    return ("gunicorn", "--reload", "--no-control-socket", "--threads", "32", "--bind", address, SERVICE)


def run(plan: Plan, processes: "Processes", *, reload: bool) -> None:
    """Start everything, say how to try it, and go on until a signal or the end of a process.

    :raises KeyboardInterrupt: when a signal asks for the end.
    :raises RunError: when something can't be started, or ended by itself.
    :raises PostgresError: when the embedded PostgreSQL doesn't start.
    """
    _require_free_ports(plan)
    _require_valid(plan.environment)
    environment = _storage(plan.environment) | plan.environment
    processes.run_to_end("flask db upgrade", "flask", "db", "upgrade", environment=environment)
    if plan.needs_stand_ins:
        processes.start("stand-ins", "app.sandbox.server", environment=environment)
    web = _reloading_web(plan) if reload else ("gunicorn", "-c", "python:app.gunicorn_config", SERVICE)
    processes.start("service", *web, environment=environment)
    processes.start("worker", "flask", "worker", environment=environment)
    _wait_until_ready(plan, processes)
    print(welcome(plan), flush=True)
    processes.watch()


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


def _storage(environment: Mapping[str, str]) -> dict[str, str]:
    """Return where the data goes that isn't told where to go; the database is started for it."""
    storage = {"SANDBOX_DATA": str(postgres.sandbox_directory() / "sandbox.json")}
    if DATABASE_URL not in environment:
        storage[DATABASE_URL] = postgres.start(postgres.DEVELOPMENT)
    return storage


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


def welcome(plan: Plan) -> str:
    """Return what to try now: lines for the shell, and pages."""
    api_key = plan.environment["STRIPE_SERVICE_API_KEY"]
    plays_stripe = plan.environment.get("STRIPE_API_BASE") == plan.stand_ins_url
    return WELCOME.substitute(
        service=plan.service_url,
        key=api_key if api_key == DEFAULTS["STRIPE_SERVICE_API_KEY"] else "$STRIPE_SERVICE_API_KEY",
        price="price_sandbox" if plays_stripe else "price_...",
        thanks=f"{plan.stand_ins_url}/paid/{{CHECKOUT_SESSION_ID}}" if plays_stripe else f"{plan.service_url}/",
        stand_ins=f"{plan.stand_ins_url}/" if plan.needs_stand_ins else "none",
    )


@dataclass(frozen=True)
class Ended:
    """The news that a process ended, with its exit status."""

    name: str
    status: int


class Processes:
    """The processes that were started, and the news of them and of signals, in the order in which they come."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []
        self._news: SimpleQueue[Ended | None] = SimpleQueue()

    def interrupt(self) -> None:
        """Have whoever waits for news stop waiting; signal handlers may call it."""
        self._news.put(None)

    def start(self, name: str, module: str, *arguments: str, environment: dict[str, str]) -> None:
        """Start a Python module. It has a session of its own, so that Ctrl-C reaches it only through `stop`."""
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        self._started.append(process)
        threading.Thread(target=lambda: self._news.put(Ended(name, process.wait())), daemon=True).start()

    def run_to_end(self, name: str, module: str, *arguments: str, environment: dict[str, str]) -> None:
        """Run a Python module while no other runs.

        :raises RunError: when it fails.
        """
        self.start(name, module, *arguments, environment=environment)
        if self._next_news(None) != Ended(name, 0):
            raise RunError(f"{name} failed.")
        self._started.pop()

    def watch(self, seconds: float | None = None) -> None:
        """Wait so long, without `seconds` for ever.

        :raises RunError: when a process ends by itself.
        """
        ended = self._next_news(seconds)
        if ended is not None:
            raise RunError(f"The {ended.name} ended by itself with status {ended.status}: ending the rest.")

    def _next_news(self, seconds: float | None) -> Ended | None:
        try:
            news = self._news.get(timeout=seconds)
        except Empty:
            return None
        if news is None:
            raise KeyboardInterrupt
        return news

    def stop(self) -> None:
        """End the processes, the last started first, so that each finds what it needs to the end."""
        for process in reversed(self._started):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            # What is left: a process that didn't heed, or the children of one that was killed. Of a group in which
            # nobody lives any more, Linux says ESRCH, macOS may say EPERM.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def _end_with_parent() -> None:
    """Have this process asked to end when its parent is gone, also when that was killed."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
