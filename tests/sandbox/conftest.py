"""A sandbox in a process of its own, and an endpoint that takes its webhooks."""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe

ROOT = Path(__file__).parents[2]
WEBHOOK_SECRET = "whsec_of_the_tests"
TIMEOUT_SECONDS = 10


@dataclass
class Sandbox:
    """A running sandbox, and how to talk to it."""

    url: str
    process: "subprocess.Popen[str]"
    session: requests.Session = field(default_factory=requests.Session)

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        return self.session.request(method, self.url + path, timeout=TIMEOUT_SECONDS, **options)

    def control(self, path: str, /, **body: Any) -> dict[str, Any]:
        answer = self.call("POST", f"/_sandbox/{path}", json=body)
        assert answer.ok, answer.text
        return dict(answer.json())

    def read(self, path: str, **query: Any) -> dict[str, Any]:
        return dict(self.call("GET", f"/_sandbox/{path}", params=query).json())

    def ledger(self, service: str) -> list[dict[str, Any]]:
        return list(self.read("ledger", service=service)["entries"])

    def client(self, key: str = "sk_test_one") -> Any:
        """Stripe's SDK, untyped: tests pass what it wouldn't take."""
        return stripe.StripeClient(key, base_addresses={"api": self.url}, max_network_retries=0)


@contextmanager
def running_sandbox(**environment: str) -> Iterator[Sandbox]:
    """Start a sandbox on a free port, and end it by its process id."""
    unset = ("SANDBOX_", "STRIPE_", "KEY_SERVICE_", "RUNS_SERVICE_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    process = subprocess.Popen(
        [sys.executable, "-m", "app.sandbox.server"],
        cwd=ROOT,
        env=inherited | {"SANDBOX_PORT": "0"} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        sandbox = Sandbox(process.stdout.readline().split()[-1], process)
        with sandbox.session:
            yield sandbox
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_SECONDS)


class Receiver:
    """An endpoint for webhooks, which answers with the statuses of `answers` and then with 200."""

    def __init__(self) -> None:
        self.received: queue.Queue[tuple[str, str]] = queue.Queue()
        self.answers: queue.Queue[int] = queue.Queue()
        received, answers = self.received, self.answers

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                received.put((body, self.headers["Stripe-Signature"]))
                self.send_response(200 if answers.empty() else answers.get())
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/webhooks"

    def events(self, count: int) -> list[stripe.Event]:
        """The next events, each verified as an app does it."""
        deliveries = [self.received.get(timeout=TIMEOUT_SECONDS) for _ in range(count)]
        return [stripe.Webhook.construct_event(body, signature, WEBHOOK_SECRET) for body, signature in deliveries]

    def clear(self) -> None:
        while not self.received.empty():
            self.received.get()


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def running(receiver: Receiver) -> Iterator[Sandbox]:
    with running_sandbox(SANDBOX_WEBHOOK_URL=receiver.url, STRIPE_WEBHOOK_SECRET=f"{WEBHOOK_SECRET},older") as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running: Sandbox, receiver: Receiver) -> Sandbox:
    """The sandbox as new; its webhooks are held until a test releases them."""
    running.control("reset")
    running.control("webhooks", mode="hold")
    receiver.clear()
    return running
