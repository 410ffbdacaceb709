"""The stand-ins for Stripe, key-service and runs-service, as a process that tests steer over HTTP."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.web import API_KEY, clean_environment

ROOT = Path(__file__).parents[1]
KEY_SERVICE_API_KEY = "sandbox-key-service"
RUNS_SERVICE_API_KEY = "sandbox-runs-service"


@dataclass(frozen=True)
class StandIns:
    """Running stand-ins."""

    url: str
    session: requests.Session = field(default_factory=requests.Session, repr=False)

    @classmethod
    @contextmanager
    def start(cls) -> "Iterator[StandIns]":
        """Start them on a free port, and end them by their process id."""
        process = subprocess.Popen(
            [sys.executable, "-m", "app.sandbox.server"],
            cwd=ROOT,
            env={
                **clean_environment(),
                "SANDBOX_PORT": "0",
                "STRIPE_SERVICE_API_KEY": API_KEY,
                "PYTHONUNBUFFERED": "1",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        try:
            address = re.search(r"http://\S+", process.stdout.readline())
            assert address, "the stand-ins did not start"
            yield cls(address[0])
        finally:
            process.terminate()
            process.communicate(timeout=20)

    @property
    def environment(self) -> dict[str, str]:
        """What makes the service use them."""
        return {
            "STRIPE_API_BASE": self.url,
            "KEY_SERVICE_URL": f"{self.url}/key-service",
            "KEY_SERVICE_API_KEY": KEY_SERVICE_API_KEY,
            "RUNS_SERVICE_URL": f"{self.url}/runs-service",
            "RUNS_SERVICE_API_KEY": RUNS_SERVICE_API_KEY,
        }

    def control(self, path: str, /, **body: Any) -> dict[str, Any]:
        """Do what a customer, a bank or a network does."""
        response = self.session.post(f"{self.url}/_sandbox/{path}", json=body, timeout=30)
        assert response.ok, response.text
        return dict(response.json())

    def reset(self) -> None:
        self.control("reset")
        self.control("webhooks", mode="drop")

    def fault(self, service: str, /, kind: str, **options: Any) -> None:
        """Make a stand-in fail; see the control API for the options."""
        self.control("faults", service=service, kind=kind, **options)

    def faults(self) -> list[dict[str, Any]]:
        """The faults that are still to happen."""
        return list(self.session.get(f"{self.url}/_sandbox/faults", timeout=30).json()["faults"])

    def new_run(self) -> str:
        """A run of the caller's own; the value is its id."""
        body = {"clerkOrgId": "org_1", "appId": "shop", "serviceName": "caller", "taskName": "order"}
        headers = {"X-API-Key": RUNS_SERVICE_API_KEY}
        return str(
            self.session.post(f"{self.url}/runs-service/v1/runs", json=body, headers=headers, timeout=10).json()["id"]
        )

    def heal(self) -> None:
        assert self.session.delete(f"{self.url}/_sandbox/faults", timeout=30).ok

    def ledger(self, service: str | None = None) -> list[dict[str, Any]]:
        """Every request to a stand-in, in order of execution."""
        query = {"service": service} if service else {}
        answer = self.session.get(f"{self.url}/_sandbox/ledger", params=query, timeout=30).json()
        return [entry for entry in answer["entries"] if entry["service"] != "webhook"]

    def effects(self) -> list[str]:
        """What was executed, in order."""
        return [entry["effect"] for entry in self.ledger() if entry["effect"] and not entry["replayed"]]

    def state(self) -> dict[str, Any]:
        return dict(self.session.get(f"{self.url}/_sandbox/state", timeout=30).json())

    def events(self) -> list[dict[str, Any]]:
        """The events of all accounts, those of each account the oldest first."""
        accounts = self.state()["accounts"].values()
        return [event for account in accounts for event in reversed(account["objects"]["event"])]

    def runs(self) -> dict[str, dict[str, Any]]:
        """The runs by id."""
        return {run["id"]: run for run in self.state()["runs"]}
