"""Tests of app/services/upstreams, and an upstream on the loopback interface that answers what a test says."""

import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import pytest

from app.services.upstreams.call_context import Deadline
from app.services.upstreams.http import Answer, Transport

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
# What is no answer to any request of a test.
ALIEN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nalien"
# How much `http.client` takes from a socket at once. What follows an answer in it is forgotten, and the rest is not.
READ_SIZE = 8192
NAME = "localhost"


class Upstream(socketserver.ThreadingTCPServer):
    """A server that reads one request after another from each connection, and lets a test answer it.

    :param answer: called with the connection once a request has come
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, answer: Callable[[socket.socket], object], tls: ssl.SSLContext | None) -> None:
        self.answer = answer
        self.tls = tls
        self.requests: list[bytes] = []
        self.connections: list[socket.socket] = []
        # How many of them have ended.
        self.ended = 0
        super().__init__(("127.0.0.1", 0), _Connection)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://{NAME}:{self.address[1]}/v1"


@contextmanager
def upstream(answer: Callable[[socket.socket], object], tls: ssl.SSLContext | None = None) -> Iterator[Upstream]:
    """Run one for as long as a test takes."""
    with Upstream(answer, tls) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Connection(socketserver.BaseRequestHandler):
    server: Upstream

    def handle(self) -> None:
        with suppress(OSError), self._connection() as connection, connection.makefile("rb") as sent:
            self.server.connections.append(connection)
            while request := _read_request(sent):
                self.server.requests.append(request)
                self.server.answer(connection)

    def finish(self) -> None:
        self.server.ended += 1

    def _connection(self) -> socket.socket:
        tls = self.server.tls
        return tls.wrap_socket(self.request, server_side=True) if tls else self.request


def _read_request(sent: BinaryIO) -> bytes:
    """Head and body as they were sent; nothing once the client has closed the connection."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (line := sent.readline()):
            return b""
        head += line
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    return head + sent.read(int(length[1]) if length else 0)


def ask(
    transport: Transport,
    path: str = "",
    *,
    method: str = "GET",
    seconds: float = 5,
    repeatable: bool = False,
    **sent: Any,
) -> Answer:
    deadline = Deadline.after(seconds)
    return transport.send(method, path, **{"headers": {}, **sent}, deadline=deadline, repeatable=repeatable)


def get(url: str, *, seconds: float = 5, repeatable: bool = False) -> Answer:
    return ask(Transport("upstream", url), seconds=seconds, repeatable=repeatable)


def answering(*answers: bytes) -> Callable[[socket.socket], None]:
    """Answers one request after another with these bytes, and the connection stays open."""
    remaining = iter(answers)
    return lambda connection: connection.sendall(next(remaining))


def answering_once(answer: bytes) -> Callable[[socket.socket], None]:
    """Answers with these bytes, after which nothing else comes."""

    def close_after(connection: socket.socket) -> None:
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_RDWR)

    return close_after


def resolve(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """Let the name of the upstream have these addresses."""
    really = socket.getaddrinfo

    def resolved(host: str, *arguments: Any, **options: Any) -> list[Any]:
        if host != NAME:
            return really(host, *arguments, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for address in addresses]

    monkeypatch.setattr("app.services.upstreams.http.socket.getaddrinfo", resolved)
