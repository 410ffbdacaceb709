"""Clients that hold a connection and never finish what they ask."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.raw_http import connected, head
from tests.web import WebProcess

CREATE = "/payment-intent/create"
DRIP_SECONDS = 0.1


@dataclass(frozen=True)
class Half:
    """A part of a request, and the byte that the client goes on with, again and again; none when it says no more."""

    sent: bytes
    drip: bytes = b""


_HALF_HEAD = head(CREATE).removesuffix(b"\r\n\r\n") + b"\r\nX-Long: "
_HALF_BODY = head(CREATE, "Content-Type: application/json", "Content-Length: 9999") + b'{"appId": "shop", '
_HALF_CHUNK = head(CREATE, "Content-Type: application/json", "Transfer-Encoding: chunked") + b"ff\r\n{"

HALVES = {
    "nothing": Half(b""),
    "half a line": Half(CREATE[:8].encode()),
    "half the headers": Half(_HALF_HEAD),
    "half a body": Half(_HALF_BODY),
    "half a chunk": Half(_HALF_CHUNK),
    "dripped headers": Half(_HALF_HEAD, b"a"),
    "dripped body": Half(_HALF_BODY, b" "),
}


@contextmanager
def slow_clients(web: WebProcess, halves: list[Half]) -> "Iterator[list[socket.socket]]":
    """Connections on each of which a half was sent, and drips; one that the service closes drips no more."""
    ended = threading.Event()
    with ExitStack() as stack:
        connections = [stack.enter_context(connected(web, half.sent)) for half in halves]
        for connection in connections:
            connection.setblocking(False)
        dripping = {connection: half.drip for connection, half in zip(connections, halves, strict=True) if half.drip}
        thread = threading.Thread(target=_drip, args=(dripping, ended))
        thread.start()
        try:
            yield connections
        finally:
            ended.set()
            thread.join()


def _drip(connections: dict[socket.socket, bytes], ended: threading.Event) -> None:
    while not ended.wait(DRIP_SECONDS):
        for connection, drip in list(connections.items()):
            try:
                connection.sendall(drip)
            except OSError:
                del connections[connection]


def is_closed(connection: socket.socket) -> bool:
    """Whether the service has closed the connection, without an answer."""
    try:
        answered = connection.recv(1)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    assert answered == b"", "the service answered"
    return True
