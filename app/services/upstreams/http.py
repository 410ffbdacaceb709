"""HTTP to an upstream: urllib3, with a deadline for the whole exchange, bounded bodies and no redirects."""

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

import certifi
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, connection_from_url
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NewConnectionError

from app.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from app.services.upstreams.call_context import Deadline

MAX_BODY_BYTES = 16 * 1024 * 1024
# More than a process has threads: every connection is kept for the next exchange.
MAX_IDLE_CONNECTIONS = 64
USER_AGENT = "stripe-service"

# Servers commonly close a connection that was idle for 5 seconds. A request written just then is lost, and nobody
# can tell whether it was executed; so a connection that was idle for nearly that long isn't used again.
MAX_IDLE_SECONDS = 4.0

# Of names, at once: lookups that hang take no more threads than this, and who comes then waits for one that ends.
MAX_LOOKUPS = 64
_lookups = threading.BoundedSemaphore(MAX_LOOKUPS)

# Of the exchange in hand: urllib3 makes and uses sockets by itself, and knows of timeouts alone.
_deadline: ContextVar[Deadline] = ContextVar("exchange_deadline")

# It warns of headers that it can't read, and quotes them and the URL.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Answer:
    """What an upstream answered: status, headers and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def _remaining_seconds() -> float:
    """How long the exchange may still take.

    :raises TimeoutError: when its deadline has passed.
    """
    remaining = _deadline.get().remaining_seconds
    if remaining <= 0:
        raise TimeoutError("the deadline has passed")
    return remaining


def _resolve(host: str, port: int) -> list[Any]:
    """The addresses of a host, before the deadline.

    Nothing ends a lookup but the system, which waits for a name server for many seconds; so it has a thread of its own,
    which is left behind when the deadline comes first.

    :raises OSError: when there are none, or none in time.
    """
    if not _lookups.acquire(timeout=_remaining_seconds()):
        raise TimeoutError("too many lookups hang")
    found: Future[list[Any]] = Future()
    thread = threading.Thread(target=_look_up, args=(host, port, found), daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        _lookups.release()
        raise OSError("no thread for a lookup") from error
    return found.result(_remaining_seconds())


def look_up(host: str, port: int, deadline: Deadline) -> list[Any]:
    """The addresses of a host, for whoever wants to know them before an exchange.

    :raises OSError: when there are none, or none in time.
    """
    _deadline.set(deadline)
    return _resolve(host, port)


def _look_up(host: str, port: int, found: "Future[list[Any]]") -> None:
    try:
        found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except Exception as error:
        found.set_exception(error)
    finally:
        _lookups.release()


class _Socket(socket.socket):
    """A socket whose every send and read ends with the exchange, where its timeout would start afresh with each.

    An upstream that drips a byte a second would stay within a timeout for ever.
    """

    # On the monotonic clock.
    last_read_at = 0.0

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(_remaining_seconds())
        count = super().recv_into(*args, **kwargs)
        self.last_read_at = time.monotonic()
        return count

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self.settimeout(_remaining_seconds())
        super().sendall(*args, **kwargs)


class _TLSSocket(_Socket, ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        self.settimeout(_remaining_seconds())
        super().do_handshake(block)


class Connection(HTTPConnection):
    """A connection that is made before the deadline, and used again only while that is safe."""

    # A `_Socket`, while there is one.
    sock: Any

    def find_addresses(self) -> list[Any]:
        """The addresses of the host.

        :raises OSError: when there are none, or none in time.
        """
        return _resolve(self.host, self.port)

    def _new_conn(self) -> socket.socket:
        """Connect to the first of the host's addresses that lets us. urllib3 has no public way to choose its sockets.

        Each gets an equal share of the time that is left for it and those after it: a silent one doesn't take it all.
        """
        failure = OSError("the name has no address")
        addresses = self.find_addresses()
        for tried, (*_, address) in enumerate(addresses):
            try:
                plain = socket.create_connection(address[:2], _remaining_seconds() / (len(addresses) - tried))
            except OSError as error:
                failure = error
            else:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return _Socket(fileno=plain.detach())
        raise failure

    def connect(self) -> None:
        """Connect, and agree on TLS where the upstream speaks it.

        :raises NewConnectionError: when either fails; urllib3's other errors come when something may have been sent.
        """
        try:
            super().connect()
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error

    @property
    def is_connected(self) -> bool:
        """Whether another exchange can begin. What can be read before it is a farewell, or nothing of ours."""
        return super().is_connected and time.monotonic() - self.sock.last_read_at < MAX_IDLE_SECONDS


class TLSConnection(Connection, HTTPSConnection):
    """The same over TLS."""

    @property
    def is_connected(self) -> bool:
        """The same. What TLS has decrypted and nobody has read counts too, and the system doesn't know of it."""
        return super().is_connected and not self.sock.pending()


def _new_pool(url: str) -> HTTPConnectionPool:
    is_tls = urlsplit(url).scheme == "https"
    tls: dict[str, Any] = {"ssl_context": tls_context()} if is_tls else {}
    pool = connection_from_url(url, maxsize=MAX_IDLE_CONNECTIONS, retries=False, **tls)
    pool.ConnectionCls = TLSConnection if is_tls else Connection
    return pool


@cache
def tls_context() -> ssl.SSLContext:
    """Trust the public authorities, and also those of the system or of SSL_CERT_FILE and SSL_CERT_DIR.

    Neither replaces the other: one process speaks to Stripe, and to upstreams whose authority may be private. All
    connections share the one that is read first.
    """
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    context.sslsocket_class = _TLSSocket
    return context


class Transport:
    """The connections to one upstream. Safe to share between threads; make it after the fork.

    :param url: the upstream's; the paths of all calls are below it
    :param pool: connections to it that somebody else has made
    """

    def __init__(self, upstream: str, url: str, *, pool: HTTPConnectionPool | None = None) -> None:
        self._upstream = upstream
        self._path = urlsplit(url).path
        # Without settings there is no URL, and an application is built all the same, for `flask --help`.
        self._pool = pool or _new_pool(url or "http://unset.invalid")

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
        :raises UpstreamError: when the answer was too long, a redirect or an interim one.
        :raises ValueError: when a header holds anything but printable ASCII.
        """
        ask = self._request(method, path, headers, body)
        try:
            return self._exchange(ask, deadline)
        except UpstreamUnavailable as error:
            if not repeatable or error.executed is False:
                raise
            return self._exchange(ask, deadline)

    def _request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Callable[[], BaseHTTPResponse]:
        fields = {"User-Agent": USER_AGENT, **headers}
        text = "".join(chain(*fields.items()))
        if not (text.isascii() and text.isprintable()):
            raise ValueError("a header can't hold the end of a line")
        as_it_comes = {"redirect": False, "preload_content": False, "decode_content": False}
        return partial(self._pool.urlopen, method, self._path + path, body or None, fields, **as_it_comes)

    def _exchange(self, ask: Callable[[], BaseHTTPResponse], deadline: Deadline) -> Answer:
        if deadline.remaining_seconds <= 0:
            raise UpstreamTimeout(self._upstream, reason="no time was left to ask", executed=False)
        _deadline.set(deadline)
        try:
            # A response that is left before its end takes the connection with it.
            with ask() as response:
                return self._read(response)
        except (HTTPError, ValueError) as error:
            raise self._failure(error, deadline) from error

    def _read(self, response: BaseHTTPResponse) -> Answer:
        if response.status < 200:
            # urllib3 takes an interim answer for the whole one; the true one follows.
            raise UpstreamError(self._upstream, reason=f"answered {response.status}, an interim answer")
        if 300 <= response.status < 400:
            raise UpstreamError(self._upstream, reason=f"answered {response.status}, a redirect")
        body = bytearray()
        for part in response.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise UpstreamError(self._upstream, reason="the answer is too long")
        return Answer(response.status, response.headers, bytes(body))

    def _failure(self, error: Exception, deadline: Deadline) -> UpstreamError:
        connected = not isinstance(error, NewConnectionError)
        executed = None if connected else False
        if deadline.remaining_seconds <= 0:
            reason = "no answer in time" if connected else "no connection in time"
            return UpstreamTimeout(self._upstream, reason=reason, executed=executed)
        reason = "the connection broke" if connected else "no connection"
        return UpstreamUnavailable(self._upstream, reason=reason, executed=executed)
