"""A TCP proxy before an upstream, which spoils what passes through it."""

import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path

CHUNK = 65_536
DRIP_SECONDS = 0.1
# Longer than any test waits.
HANG_SECONDS = 60


class Spoil(StrEnum):
    """What becomes of a message to the upstream, or of its answer."""

    NOTHING = "nothing"
    REFUSE = "refuse"
    HANG = "hang"
    DRIP = "drip"
    RESET = "reset"
    RESET_AFTER = "reset after it was done"
    HTML = "html"
    LIST = "list"
    REDIRECT = "redirect"
    HALF = "half a body"


def _http(head: str, body: str) -> bytes:
    return f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


INSTEAD = {
    Spoil.HTML: _http("200 OK\r\nContent-Type: text/html", "<html><body>Welcome to nginx!</body></html>"),
    Spoil.LIST: _http("200 OK\r\nContent-Type: application/json", "[1]"),
    Spoil.REDIRECT: _http("302 Found\r\nLocation: /elsewhere", ""),
}


class Proxy:
    """Passes bytes between clients and an upstream, a TCP port or a socket's path, as `spoil` says at that moment."""

    def __init__(self, upstream: tuple[str, int] | Path) -> None:
        self.upstream = upstream
        self.ended = threading.Event()
        self.port = 0
        self._server: _Server | None = None
        self._spoil = Spoil.NOTHING
        self._spared = 0
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> "Iterator[Proxy]":
        """Listen on a port of the loopback interface, and end every connection afterwards."""
        self._listen()
        try:
            yield self
        finally:
            self.ended.set()
            self._close()

    def become(self, spoil: Spoil, *, after: int = 0) -> None:
        """Spoil every message but the first so many; refuse connections at once."""
        with self._lock:
            self._spoil, self._spared = spoil, after
        if spoil is Spoil.REFUSE:
            self._close()
        elif self._server is None:
            self._listen()

    def next_spoil(self, message: bytes) -> Spoil:
        """What becomes of a message that has just come."""
        with self._lock:
            if self._spared:
                self._spared -= 1
                return Spoil.NOTHING
            return self._spoil

    def _listen(self) -> None:
        self._server = _Server(self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _close(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server.end_connections()
            self._server = None

    def connect(self) -> socket.socket:
        """A connection to the upstream."""
        if isinstance(self.upstream, Path):
            upstream = socket.socket(socket.AF_UNIX)
            upstream.connect(str(self.upstream))
            return upstream
        return socket.create_connection(self.upstream)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", proxy.port), _Connection)

    def end_connections(self) -> None:
        for client in tuple(self.open):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


class _Connection(socketserver.BaseRequestHandler):
    server: _Server
    spoil = Spoil.NOTHING

    def handle(self) -> None:
        self.server.open.add(self.request)
        try:
            with suppress(OSError), self.server.proxy.connect() as upstream:
                answering = threading.Thread(target=self._pass_answers, args=(upstream,), daemon=True)
                answering.start()
                self._pass_messages(upstream)
                upstream.shutdown(socket.SHUT_RDWR)
                answering.join()
        finally:
            self.server.open.discard(self.request)

    def _pass_messages(self, upstream: socket.socket) -> None:
        while message := self.request.recv(CHUNK):
            self.spoil = self.server.proxy.next_spoil(message)
            if self.spoil is Spoil.RESET:
                return self._reset()
            if self.spoil in INSTEAD:
                return self.request.sendall(INSTEAD[self.spoil])
            if self.spoil is Spoil.HANG:
                self.server.proxy.ended.wait(HANG_SECONDS)
                return None
            upstream.sendall(message)
        return None

    def _pass_answers(self, upstream: socket.socket) -> None:
        with suppress(OSError):
            while answer := upstream.recv(CHUNK):
                if self.spoil is Spoil.RESET_AFTER:
                    return self._reset()
                if self.spoil is Spoil.HALF:
                    self.request.sendall(answer[: len(answer) // 2])
                    return self.request.shutdown(socket.SHUT_RDWR)
                self._send(answer, slowly=self.spoil is Spoil.DRIP)
            self.request.shutdown(socket.SHUT_WR)
        return None

    def _send(self, answer: bytes, *, slowly: bool) -> None:
        if not slowly:
            return self.request.sendall(answer)
        for position in range(len(answer)):
            if self.server.proxy.ended.wait(DRIP_SECONDS):
                return None
            self.request.sendall(answer[position : position + 1])
        return None

    def _reset(self) -> None:
        """Close with a RST, so that the client hears of it as an error and not as an end."""
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.request.shutdown(socket.SHUT_RD)
        self.request.close()


class HangsFor(Proxy):
    """A proxy that never answers a message that holds a mark, such as an app's key, and passes all others on."""

    def __init__(self, upstream: tuple[str, int] | Path, mark: bytes) -> None:
        super().__init__(upstream)
        self.mark = mark
        self.hanging = 0

    def next_spoil(self, message: bytes) -> Spoil:
        if self.mark not in message:
            return Spoil.NOTHING
        self.hanging += 1
        return Spoil.HANG
