"""gunicorn's threaded worker, which hands a thread only what has wholly come.

gunicorn 27 hands a thread each connection that is new or has sent a byte, and the thread waits for the rest. Here the
loop that polls all connections reads them; a thread reads what has come, and never from the connection.
tests/test_gunicorn_worker.py names what of gunicorn's inside is used here.
"""

import selectors
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from http import HTTPStatus
from typing import Any

import orjson
from gunicorn.http import get_parser
from gunicorn.http.errors import (
    ExpectationFailed,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.http.unreader import Unreader
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn, ThreadWorker

from app.errors import (
    HeaderFieldsTooLarge,
    MalformedRequest,
    RequestLineTooLong,
    ServiceError,
    UnknownExpectation,
    UnknownTransferCoding,
    error_body,
)
from app.http_framing import Missing, until_whole
from app.metrics import count_unfinished_request
from app.request_context import record_unread_request

RECEIVED_AT_ONCE_BYTES = 64 * 1024
# Of all requests of a process that are still coming; over it, the one that has come the longest is given up.
MAX_COMING_BYTES = 64 * 1024 * 1024
# How long the client has to read an answer after which we close, before what it still sends makes TCP throw it away
# (RFC 9112, section 9.6).
LINGER_SECONDS = 2.0

# As what each is answered that gunicorn's parser refuses; any other is a request that isn't HTTP.
REFUSALS: Mapping[type[Exception], Callable[[], ServiceError]] = {
    LimitRequestLine: RequestLineTooLong,
    ExpectationFailed: UnknownExpectation,
    LimitRequestHeaders: HeaderFieldsTooLarge,
    UnsupportedTransferCoding: UnknownTransferCoding,
}
# What the application said wrong; to gunicorn, they are kinds of what a client does wrong.
OURS = (InvalidResponseHeader, InvalidResponseHeaderName)


class Received(Unreader):  # type: ignore[misc]
    """What has come of a connection's next request, and all that gunicorn's parser can read."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        """Go on to the next request, which may have come together with the one before."""
        self.data = bytearray(self.take_buffered())
        self._progress = until_whole(self.data)
        self._missing = Missing.HEAD

    def take(self, connection: socket.socket) -> bool:
        """Take what has come, without waiting; return whether a thread can have it.

        :raises OSError: when the connection is lost, or ended before a request.
        """
        while missing := next(self._progress, None):
            self._missing = missing
            if missing is Missing.EXPECTED_BODY:
                connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            try:
                more = connection.recv(RECEIVED_AT_ONCE_BYTES)
            except BlockingIOError:
                return False
            if not more:
                return self._at_end()
            self.data += more
        return True

    def _at_end(self) -> bool:
        # What ends early is the parser's to refuse.
        if not self.data:
            raise ConnectionError
        return True

    def part(self) -> str:
        """How much of the request has come, as it is counted."""
        return ("head" if self._missing is Missing.HEAD else "body") if self.data else "nothing"

    def chunk(self, size_hint: int | None = None) -> bytes:
        """All of it, once.

        :raises NoMoreData: when the parser wants more than has come.
        """
        data, self.data = bytes(self.data), bytearray()
        if not data:
            raise NoMoreData
        return data


class WholeRequestWorker(ThreadWorker):  # type: ignore[misc]
    """A ThreadWorker whose threads and whose loop never wait for a client to send."""

    # For a whole request, from the first moment to its last byte.
    request_read_seconds: float = 10.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Each in the order in which their time ends, the first with how many bytes have come.
        self._coming: dict[TConn, int] = {}
        self._coming_bytes = 0
        self._closing: dict[TConn, None] = {}

    def enqueue_req(self, conn: TConn) -> None:
        """Read a connection's next request: all that gunicorn would hand a thread comes by here."""
        if not conn.initialized:
            conn.initialized = True
            conn.parser = get_parser(self.cfg, (), conn.client)
            conn.parser.unreader = Received()
        conn.parser.unreader.begin()
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + (self.request_read_seconds if self.alive else STOP_KEEPALIVE_LINGER)
        self._read(conn)

    def _read(self, conn: TConn) -> None:
        try:
            is_whole = conn.parser.unreader.take(conn.sock)
        except OSError:
            self._drop(conn)
            return
        if is_whole:
            self._stop_polling(conn)
            super().enqueue_req(conn)
        else:
            self._wait(conn)

    def _wait(self, conn: TConn) -> None:
        if conn not in self._coming:
            self.poller.register(conn.sock, selectors.EVENT_READ, lambda _: self._read(conn))
        come = len(conn.parser.unreader.data)
        self._coming_bytes += come - self._coming.get(conn, 0)
        self._coming[conn] = come

    def finish_request(self, conn: TConn, fs: "Future[bool]") -> None:
        """Keep a connection, or close it: gunicorn would have its loop wait for the client to close it as well."""
        if fs.exception() is not None or fs.result():
            super().finish_request(conn, fs)
            return
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(conn)
            return
        conn.timeout = time.monotonic() + LINGER_SECONDS
        self._closing[conn] = None
        self.poller.register(conn.sock, selectors.EVENT_READ, lambda _: self._throw_away(conn))

    def _throw_away(self, conn: TConn) -> None:
        try:
            is_open = bool(conn.sock.recv(RECEIVED_AT_ONCE_BYTES))
        except BlockingIOError:
            is_open = True
        except OSError:
            is_open = False
        if not is_open:
            self._drop(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        """A worker that stops waits as long for the rest of a request as for the next one on a kept connection."""
        super()._cap_keepalive(deadline)
        for conn in self._coming:
            conn.timeout = min(conn.timeout, deadline)

    def murder_pending(self) -> None:
        """Close the connections whose time is over; the loop calls it after what it polled, at least once a second."""
        now = time.monotonic()
        while self._coming:
            conn = next(iter(self._coming))
            if conn.timeout > now and not self._is_full():
                break
            count_unfinished_request(conn.parser.unreader.part())
            self._drop(conn)
        while self._closing and (conn := next(iter(self._closing))).timeout <= now:
            self._drop(conn)

    def _is_full(self) -> bool:
        """Whether requests that are still coming take what others need: memory, or the last places for connections."""
        return self._coming_bytes > MAX_COMING_BYTES or self.nr_conns >= self.worker_connections

    def _drop(self, conn: TConn) -> None:
        self._stop_polling(conn)
        self.nr_conns -= 1
        conn.close()

    def _stop_polling(self, conn: TConn) -> None:
        if conn in self._coming or conn in self._closing:
            self.poller.unregister(conn.sock)
        self._coming_bytes -= self._coming.pop(conn, 0)
        self._closing.pop(conn, None)

    def handle_request(self, req: Any, conn: TConn) -> bool:
        """Answer a request; its client was told to continue while it came."""
        req._expected_100_continue = False
        return bool(super().handle_request(req, conn))

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer what gunicorn can't read as a request, in the shape of all errors, and without what was sent."""
        error = _as_service_error(exc)
        if error.status == 500:
            self.log.error("Error handling request", exc_info=exc)
        else:
            self.log.warning("Invalid request from ip=%s: %s", addr[0] if addr else "", exc)
        try:
            client.sendall(_answer_unread(error))
        except OSError as lost:
            self.log.debug("The client didn't wait for the answer: %s", lost)


def _as_service_error(error: Exception) -> ServiceError:
    if isinstance(error, ParseException) and not isinstance(error, OURS):
        return REFUSALS.get(type(error), MalformedRequest)()
    return ServiceError("Internal server error")


def _answer_unread(error: ServiceError) -> bytes:
    body = orjson.dumps(error_body(error.sentence, error.code, record_unread_request(error)))
    head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
