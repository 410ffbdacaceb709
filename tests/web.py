"""The service under gunicorn, as a process of its own."""

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psutil
import requests

from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
API_KEY = "caller-key"


@dataclass(frozen=True)
class WebProcess:
    """A running service."""

    url: str
    process: "subprocess.Popen[str]"
    output: TextIO

    @classmethod
    @contextmanager
    def start(
        cls, environment: Mapping[str, str], *, directory: Path = ROOT, application: str = "wsgi:app"
    ) -> "Iterator[WebProcess]":
        """Start the code in a directory on a free port, and end it by its process id."""
        port = free_port()
        # A file and not a pipe: nobody reads while the service writes, and a full pipe would stop it.
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "python:app.gunicorn_config", application],
                cwd=directory,
                env={**clean_environment(), **environment, "HOST": "127.0.0.1", "PORT": str(port)},
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
            web = cls(f"http://127.0.0.1:{port}", process, output)
            try:
                wait_until(web.is_up, seconds=30, what="the service")
                yield web
            finally:
                process.terminate()
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def printed(self) -> str:
        """What the service has printed so far."""
        self.output.seek(0)
        return self.output.read()

    def is_up(self) -> bool:
        assert self.process.poll() is None, "the service ended"
        try:
            return requests.get(f"{self.url}/health", timeout=2).ok
        except (requests.ConnectionError, requests.Timeout):
            return False

    def workers(self) -> list[int]:
        """The process ids of gunicorn's workers."""
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def post(self, path: str, body: object, **headers: str) -> requests.Response:
        return requests.post(self.url + path, json=body, headers={"X-API-Key": API_KEY, **headers}, timeout=60)

    def post_until_answered(self, path: str, body: object, key: str) -> requests.Response:
        """What a caller does: while it is told to come back, it does, with the same key, in a tenth of the time."""
        ends_at = time.monotonic() + 60
        while True:
            response = self.post(path, body, **{"Idempotency-Key": key})
            if "Retry-After" not in response.headers:
                return response
            assert time.monotonic() < ends_at, response.text
            time.sleep(int(response.headers["Retry-After"]) / 10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment() -> dict[str, str]:
    """What a process needs of this one's environment: nothing that configures the service."""
    import os

    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
