"""HTTP to an upstream: pooled connections, a deadline for the whole exchange, bounded bodies, no redirects."""

import socket
import ssl
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse, IncompleteRead
from select import POLLIN, poll
from typing import Any
from urllib.parse import urlsplit

import certifi

from app.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from app.services.upstreams.call_context import Deadline

MAX_BODY_BYTES = 16 * 1024 * 1024
USER_AGENT = "stripe-service"

# Servers commonly close a connection that was idle for 5 seconds. A request written just then is lost, and nobody
# can tell whether it was executed; so a connection that was idle for nearly that long isn't used again.
MAX_IDLE_SECONDS = 4.0


@dataclass(frozen=True)
class Answer:
    """What an upstream answered: status, headers and the whole body."""

    status: int
    headers: HTTPMessage
    body: bytes


class _Deadlined:
    """A socket whose every send and read ends with the exchange, where its timeout would start afresh with each.

    An upstream that drips a byte a second would stay within a timeout for ever.
    """

    deadline: Deadline

    def spend_what_remains(self) -> None:
        """Let the next call take as long as the exchange may still take.

        :raises TimeoutError: when that is over.
        """
        remaining = self.deadline.remaining_seconds
        if remaining <= 0:
            raise TimeoutError("timed out")
        self.settimeout(remaining)  # type: ignore[attr-defined]

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.spend_what_remains()
        return super().recv_into(*args, **kwargs)  # type: ignore[misc, no-any-return]

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self.spend_what_remains()
        super().sendall(*args, **kwargs)  # type: ignore[misc]

    def do_handshake(self, *args: Any, **kwargs: Any) -> None:
        self.spend_what_remains()
        super().do_handshake(*args, **kwargs)  # type: ignore[misc]


class _Socket(_Deadlined, socket.socket):
    def pending(self) -> int:
        """How many bytes were taken from the system and not yet read: none, without TLS."""
        return 0


class _TLSSocket(_Deadlined, ssl.SSLSocket):
    pass


class _Connection:
    """An open connection, for one exchange after another."""

    _answer: HTTPResponse
    # On the monotonic clock.
    idle_since = 0.0

    def __init__(self, connected: Any) -> None:
        self._socket = connected

    def ask(self, request: bytes, deadline: Deadline) -> HTTPResponse:
        """Send a request; what is returned has yet to read its answer."""
        self._socket.deadline = deadline
        self._socket.sendall(request)
        self._answer = HTTPResponse(self._socket)
        return self._answer

    @property
    def stays_open(self) -> bool:
        """Whether the upstream said so in its answer."""
        return not self._answer.will_close

    @property
    def is_usable(self) -> bool:
        """Whether another exchange can begin. What is there to be read before it is a farewell, or nothing of ours."""
        if time.monotonic() - self.idle_since >= MAX_IDLE_SECONDS:
            return False
        readable = poll()
        readable.register(self._socket, POLLIN)
        return not (self._socket.pending() or readable.poll(0))

    def close(self) -> None:
        """Let go of the socket, whatever may still come."""
        self._socket.close()


def _connect(host: str, port: int, tls: ssl.SSLContext | None, deadline: Deadline) -> _Connection:
    connected = _connect_to_first(host, port, deadline)
    if tls is None:
        return _Connection(connected)
    secured: Any = tls.wrap_socket(connected, server_hostname=host, do_handshake_on_connect=False)
    secured.deadline = deadline
    try:
        secured.do_handshake()
    except BaseException:
        secured.close()
        raise
    return _Connection(secured)


def _connect_to_first(host: str, port: int, deadline: Deadline) -> _Socket:
    failure: OSError = OSError("the name has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connection = _Socket(family, kind, protocol)
        connection.deadline = deadline
        try:
            connection.spend_what_remains()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure


def _close_all(connections: Iterable[_Connection]) -> None:
    for connection in connections:
        connection.close()


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certifi.where())
    context.sslsocket_class = _TLSSocket
    return context


class Transport:
    """The connections to one upstream. Safe to share between threads; make it after the fork.

    :param url: the upstream's; the paths of all calls are below it
    """

    def __init__(self, upstream: str, url: str) -> None:
        base = urlsplit(url)
        self._upstream = upstream
        self._host = base.hostname or ""
        self._tls = _tls_context() if base.scheme == "https" else None
        self._port = base.port or (80 if self._tls is None else 443)
        self._path = base.path
        self._headers = {
            "Host": base.netloc.rpartition("@")[2],
            "User-Agent": USER_AGENT,
            "Accept-Encoding": "identity",
        }
        self._idle: deque[_Connection] = deque()
        weakref.finalize(self, _close_all, self._idle)

    def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        deadline: Deadline,
        body: bytes = b"",
        repeatable: bool,
    ) -> Answer:
        """Send one request and read the whole answer before the deadline.

        A repeatable request is sent a second time when the connection broke in the middle of the first.

        :raises UpstreamUnavailable: when no connection could be made (`executed` is False), or it broke (None).
        :raises UpstreamTimeout: when the deadline came first; `executed` is False when nothing was sent.
        :raises UpstreamError: when the answer was cut short, too long, a redirect or no HTTP.
        """
        request = self._request(method, path, headers, body)
        try:
            return self._exchange(request, deadline)
        except UpstreamUnavailable as error:
            if not repeatable or error.executed is False:
                raise
            return self._exchange(request, deadline)

    def _request(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        length = {} if method == "GET" else {"Content-Length": str(len(body))}
        fields = {**self._headers, **headers, **length}
        head = [f"{method} {self._path}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        if not all(map(str.isprintable, head)):
            raise ValueError("a header can't hold the end of a line")
        return "\r\n".join((*head, "", "")).encode("ascii") + body

    def _exchange(self, request: bytes, deadline: Deadline) -> Answer:
        if deadline.remaining_seconds <= 0:
            raise UpstreamTimeout(self._upstream, reason="no time was left to ask", executed=False)
        try:
            with self._connection(deadline) as connection, connection.ask(request, deadline) as response:
                return self._read(response)
        except TimeoutError as error:
            raise UpstreamTimeout(self._upstream, reason="no answer in time") from error
        except (HTTPException, OSError, ValueError) as error:
            raise UpstreamUnavailable(self._upstream, reason="the connection broke") from error

    @contextmanager
    def _connection(self, deadline: Deadline) -> Iterator[_Connection]:
        """A connection that is used again unless the exchange fails.

        What may still come on it then must never be read as the answer to somebody else's request.
        """
        connection = self._idle_connection() or self._new_connection(deadline)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if connection.stays_open:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    def _idle_connection(self) -> _Connection | None:
        try:
            while not (connection := self._idle.pop()).is_usable:
                connection.close()
        except IndexError:
            return None
        return connection

    def _new_connection(self, deadline: Deadline) -> _Connection:
        try:
            return _connect(self._host, self._port, self._tls, deadline)
        except TimeoutError as error:
            raise UpstreamTimeout(self._upstream, reason="no connection in time", executed=False) from error
        except OSError as error:
            raise UpstreamUnavailable(self._upstream, reason="no connection", executed=False) from error

    def _read(self, response: HTTPResponse) -> Answer:
        response.begin()
        if response.status < 200:
            # The standard library takes an interim answer for the whole one; the true one follows.
            raise UpstreamError(self._upstream, reason=f"answered {response.status}, an interim answer")
        if 300 <= response.status < 400:
            raise UpstreamError(self._upstream, reason=f"answered {response.status}, a redirect")
        body = response.read(MAX_BODY_BYTES + 1)
        if len(body) > MAX_BODY_BYTES:
            raise UpstreamError(self._upstream, reason="the answer is too long")
        if response.length:
            raise IncompleteRead(body, response.length)
        return Answer(response.status, response.headers, body)
