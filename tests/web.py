"""The service under gunicorn, as a process of its own."""

import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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

    @classmethod
    @contextmanager
    def start(cls, environment: Mapping[str, str]) -> "Iterator[WebProcess]":
        """Start it on a free port, and end it by its process id."""
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "python:app.gunicorn_config", "wsgi:app"],
            cwd=ROOT,
            env={**clean_environment(), **environment, "HOST": "127.0.0.1", "PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        web = cls(f"http://127.0.0.1:{port}", process)
        try:
            wait_until(web.is_up, seconds=30, what="the service")
            yield web
        finally:
            process.terminate()
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()

    def is_up(self) -> bool:
        assert self.process.poll() is None, "the service ended"
        try:
            return requests.get(f"{self.url}/health", timeout=2).ok
        except requests.ConnectionError:
            return False

    def workers(self) -> list[int]:
        """The process ids of gunicorn's workers."""
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def post(self, path: str, body: object, **headers: str) -> requests.Response:
        return requests.post(self.url + path, json=body, headers={"X-API-Key": API_KEY, **headers}, timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment() -> dict[str, str]:
    """What a process needs of this one's environment: nothing that configures the service."""
    import os

    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
