"""gunicorn's threaded worker, whose threads never wait for a client.

gunicorn 27 hands a thread each connection that is new or has sent a byte, and the thread waits for the rest; then it
waits until the client has taken the answer. Here the loop that polls all connections reads what comes and sends what a
client had no room for; a thread is handed what has wholly come, and leaves what it can't send at once.
tests/test_gunicorn_worker.py names what of gunicorn's inside is used here.
"""

import selectors
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from http import HTTPStatus
from itertools import islice
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
# How much of a request gunicorn's parser is given at once: it copies what is left of it for each chunk that it finds.
PARSED_AT_ONCE_BYTES = 8 * 1024
# Of all requests of a process that are still coming, and of all answers that are still going; over it, the one that
# waits the longest for its client is given up.
MAX_WAITING_BYTES = 64 * 1024 * 1024
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


class ClientSocket(socket.socket):
    """A client's connection, on which nobody waits for the client to make room for an answer."""

    def __init__(self, accepted: socket.socket) -> None:
        super().__init__(fileno=accepted.detach())
        self.unsent = bytearray()

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send what there is room for, and keep the rest."""
        if not self.unsent:
            data = data[self._send_some(data, flags) :]
        self.unsent += data

    def send_rest(self) -> bool:
        """Send more of what was kept; return whether that was all.

        :raises OSError: when the connection is lost.
        """
        del self.unsent[: self._send_some(self.unsent)]
        return not self.unsent

    def _send_some(self, data: Any, flags: int = 0) -> int:
        try:
            return self.send(data, flags | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0


class Received(Unreader):  # type: ignore[misc]
    """What has come of a connection's next request, and all that gunicorn's parser can read."""

    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray()
        self.begin()

    def begin(self) -> None:
        """Go on to the next request, which may have come together with the one before."""
        self.data = bytearray(self.take_buffered()) + self.data
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
        """The next piece of it.

        :raises NoMoreData: when the parser wants more than has come.
        """
        if not self.data:
            raise NoMoreData
        piece = bytes(self.data[: max(size_hint or 0, PARSED_AT_ONCE_BYTES)])
        del self.data[: len(piece)]
        return piece


class WholeRequestWorker(ThreadWorker):  # type: ignore[misc]
    """A ThreadWorker whose threads and whose loop never wait for a client."""

    # For a whole request to come, from the first moment to its last byte; and for its whole answer to go.
    request_read_seconds: float = 10.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Those whose request is still coming or whose answer is still going, with how many bytes of it are held, and
        # those that are being closed; each in the order in which their time ends.
        self._waiting: dict[TConn, int] = {}
        self._waiting_bytes = 0
        self._closing: dict[TConn, int] = {}
        # Of each of these, and of the kept ones; so that they leave a place for each thread.
        self._most_of_a_sort = (self.worker_connections - self.cfg.threads) // 3

    def enqueue_req(self, conn: TConn) -> None:
        """Read a connection's next request: all that gunicorn would hand a thread comes by here."""
        if not conn.initialized:
            conn.initialized = True
            conn.sock = ClientSocket(conn.sock)
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
            if conn not in self._waiting:
                self.poller.register(conn.sock, selectors.EVENT_READ, lambda _: self._read(conn))
            self._hold(conn, len(conn.parser.unreader.data))

    def _hold(self, conn: TConn, held_bytes: int) -> None:
        self._waiting_bytes += held_bytes - self._waiting.get(conn, 0)
        self._waiting[conn] = held_bytes

    def finish_request(self, conn: TConn, fs: "Future[bool]") -> None:
        """Send what the client had no room for, then keep the connection or close it."""
        if fs.exception() is not None:
            super().finish_request(conn, fs)
            return
        conn.timeout = time.monotonic() + self.request_read_seconds
        self._send_rest(conn, finish=partial(self._finish, conn, fs))

    def _send_rest(self, conn: TConn, *, finish: Callable[[], None]) -> None:
        try:
            is_sent = conn.sock.send_rest()
        except OSError:
            self._drop(conn)
            return
        if is_sent:
            self._stop_polling(conn)
            finish()
        else:
            if conn not in self._waiting:
                self.poller.register(conn.sock, selectors.EVENT_WRITE, lambda _: self._send_rest(conn, finish=finish))
            self._hold(conn, len(conn.sock.unsent))

    def _finish(self, conn: TConn, fs: "Future[bool]") -> None:
        if not fs.result():
            self._close(conn)
        elif conn.parser.unreader.data:
            self.enqueue_req(conn)
        else:
            super().finish_request(conn, fs)

    def _close(self, conn: TConn) -> None:
        """Close a connection once its client has: gunicorn would have its loop wait for that."""
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(conn)
            return
        conn.timeout = time.monotonic() + LINGER_SECONDS
        self._closing[conn] = 0
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
        """A worker that stops waits as long for a client as for the next request on a kept connection."""
        super()._cap_keepalive(deadline)
        for conn in self._waiting:
            conn.timeout = min(conn.timeout, deadline)

    def murder_keepalived(self, force: bool = False) -> None:
        """Close the kept connections whose time is over, and the oldest of too many."""
        for conn in islice(self.keepalived_conns, max(0, len(self.keepalived_conns) - self._most_of_a_sort)):
            conn.timeout = 0.0
        super().murder_keepalived(force)

    def murder_pending(self) -> None:
        """Close the others in the same way; the loop calls both after what it polled, at least once a second."""
        while self._waiting and (self._is_first_over(self._waiting) or self._waiting_bytes > MAX_WAITING_BYTES):
            conn = next(iter(self._waiting))
            count_unfinished_request("whole" if conn.sock.unsent else conn.parser.unreader.part())
            self._drop(conn)
        while self._closing and self._is_first_over(self._closing):
            self._drop(next(iter(self._closing)))

    def _is_first_over(self, connections: dict[TConn, int]) -> bool:
        return len(connections) > self._most_of_a_sort or bool(next(iter(connections)).timeout <= time.monotonic())

    def _drop(self, conn: TConn) -> None:
        self._stop_polling(conn)
        self.nr_conns -= 1
        conn.close()

    def _stop_polling(self, conn: TConn) -> None:
        if conn in self._waiting or conn in self._closing:
            self.poller.unregister(conn.sock)
        self._waiting_bytes -= self._waiting.pop(conn, 0)
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
