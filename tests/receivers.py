"""An app's endpoints: they keep what they are told, and take it, refuse it, hang, drip or break as they are asked."""

import json
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any


@dataclass(frozen=True)
class Told:
    """A request that came in."""

    path: str
    headers: dict[str, str]
    body: bytes
    came_at: float

    @property
    def event(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def type(self) -> str:
        return str(self.event["type"])


class Receiver(socketserver.ThreadingTCPServer):
    """What listens. `answers` says for each path how the next requests are answered, and then all others."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 512

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.told: list[Told] = []
        self.answers: dict[str, list[str]] = {}
        self.lock = threading.Lock()
        self.at_once: dict[str, int] = {}
        self.most_at_once = 0
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_answer(self, path: str) -> str:
        with self.lock:
            left = self.answers.get(path, [])
            return left.pop(0) if len(left) > 1 else (left or ["200"])[0]

    def told_at(self, path: str) -> list[Told]:
        with self.lock:
            return [each for each in self.told if each.path == path]

    def types(self, path: str = "/") -> list[str]:
        return [each.type.removeprefix("payment.") for each in self.told_at(path)]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever sends may go away."""


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        server, answer = self.server, self.server.next_answer(self.path)
        about = f"{self.path} {json.loads(body).get('data', {}).get('payment', {}).get('id')}"
        # Whoever sends may give up, where nothing is answered.
        counted = not answer.startswith(("hang", "drip", "endless"))
        with server.lock:
            server.told.append(Told(self.path, headers, body, time.monotonic()))
            server.at_once[about] = server.at_once.get(about, 0) + counted
            server.most_at_once = max(server.most_at_once, server.at_once[about])
        try:
            self._answer(answer)
        finally:
            with server.lock:
                server.at_once[about] -= counted

    def _answer(self, answer: str) -> None:
        """`200`, `503 Retry-After: 7`, `hang`, `drip`, `reset`, `endless`, `slow 0.2`."""
        word, _, rest = answer.partition(" ")
        if word == "hang":
            self.server.ended.wait(60)
        elif word == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif word == "drip":
            while not self.server.ended.wait(0.2):
                self.wfile.write(b"H")
                self.wfile.flush()
        elif word == "endless":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while not self.server.ended.is_set():
                self.wfile.write(bytes(65536))
        else:
            if word == "slow":
                self.server.ended.wait(float(rest))
                word, rest = "200", ""
            self.send_response_only(int(word))
            if rest:
                self.send_header(*rest.split(": "))
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Listen, and end with the block."""
    with Receiver() as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield listening
        finally:
            listening.ended.set()
            listening.shutdown()
            thread.join()
