"""HTTP to an upstream: pooled connections, a deadline for the whole exchange, bounded bodies, no redirects."""

import socket
import ssl
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import certifi
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ReadTimeoutError,
)

from app.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable

MAX_CONNECTIONS = 64
MAX_BODY_BYTES = 16 * 1024 * 1024

# Servers commonly close a connection that was idle for 5 seconds. A request written just then is lost, and nobody
# can tell whether it was executed; so a connection that was idle for nearly that long isn't used again.
MAX_IDLE_SECONDS = 4.0


@dataclass(frozen=True)
class Deadline:
    """A moment on the monotonic clock after which nothing more is sent."""

    ends_at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    @property
    def remaining_seconds(self) -> float:
        return self.ends_at - time.monotonic()

    def within(self, seconds: float) -> "Deadline":
        """This deadline, or the one `seconds` from now where that is sooner."""
        return Deadline(min(self.ends_at, time.monotonic() + seconds))


@dataclass(frozen=True)
class CallContext:
    """On whose behalf an upstream is called, and until when.

    `path` is the template of our route that asks (`/status/{paymentId}`) or the command's name: it never holds an id.
    """

    method: str
    path: str
    request_id: str
    deadline: Deadline

    def within(self, seconds: float) -> "CallContext":
        return CallContext(self.method, self.path, self.request_id, self.deadline.within(seconds))


@dataclass(frozen=True)
class Answer:
    """What an upstream answered: status, headers (names in lower case) and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


# When the exchange that this thread is in has to be over, on the monotonic clock.
_exchange_ends_at: ContextVar[float] = ContextVar("exchange_ends_at")


def _remaining_seconds() -> float:
    remaining = _exchange_ends_at.get() - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("timed out")
    return remaining


class _Deadlined:
    """A socket whose every send and read ends with the exchange, where its timeout would start afresh with each.

    An upstream that drips a byte a second would stay within a timeout for ever.
    """

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(_remaining_seconds())  # type: ignore[attr-defined]
        return super().recv_into(*args, **kwargs)  # type: ignore[misc, no-any-return]

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self.settimeout(_remaining_seconds())  # type: ignore[attr-defined]
        super().sendall(*args, **kwargs)  # type: ignore[misc]

    def do_handshake(self, *args: Any, **kwargs: Any) -> None:
        self.settimeout(_remaining_seconds())  # type: ignore[attr-defined]
        super().do_handshake(*args, **kwargs)  # type: ignore[misc]


class _Socket(_Deadlined, socket.socket):
    pass


class _TLSSocket(_Deadlined, ssl.SSLSocket):
    pass


class _BoundedConnection:
    """Connects to all addresses of a host within one deadline, and tells how long it has been idle."""

    used_at = 0.0

    def connect(self) -> None:
        try:
            super().connect()  # type: ignore[misc]
        except OSError as error:
            # The TLS handshake failed or took too long: nothing of the request was sent.
            raise NewConnectionError(self, "no TLS connection") from error  # type: ignore[arg-type]

    def _new_conn(self) -> socket.socket:
        try:
            return self._connect_to_first()
        except socket.gaierror as error:
            raise NewConnectionError(self, "name not resolved") from error  # type: ignore[arg-type]
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "connect timed out") from error
        except OSError as error:
            raise NewConnectionError(self, "connection refused") from error  # type: ignore[arg-type]

    def _connect_to_first(self) -> socket.socket:
        failure: OSError = OSError("the name has no address")
        addresses = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)  # type: ignore[attr-defined]
        for family, kind, protocol, _, address in addresses:
            connection = _Socket(family, kind, protocol)
            try:
                connection.settimeout(_remaining_seconds())
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.connect(address)
            except OSError as error:
                connection.close()
                failure = error
            else:
                return connection
        raise failure

    @property
    def is_connected(self) -> bool:
        return time.monotonic() - self.used_at < MAX_IDLE_SECONDS and super().is_connected  # type: ignore[misc]

    def getresponse(self) -> Any:
        response = super().getresponse()  # type: ignore[misc]
        self.used_at = time.monotonic()
        return response


class _HTTPConnection(_BoundedConnection, HTTPConnection):
    pass


class _HTTPSConnection(_BoundedConnection, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


def _pool_manager() -> urllib3.PoolManager:
    context = ssl.create_default_context(cafile=certifi.where())
    context.sslsocket_class = _TLSSocket
    manager = urllib3.PoolManager(maxsize=MAX_CONNECTIONS, retries=False, ssl_context=context)
    manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
    return manager


class Transport:
    """The connections to one upstream. Safe to share between threads; make it after the fork."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._pools = _pool_manager()

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        deadline: Deadline,
        body: bytes | str | None = None,
        repeatable: bool,
    ) -> Answer:
        """Send one request and read the whole answer before the deadline.

        A repeatable request is sent a second time when the connection broke in the middle of the first.

        :raises UpstreamUnavailable: when no connection could be made (`executed` is False), or it broke (None).
        :raises UpstreamTimeout: when the deadline came first; `executed` is False when nothing was sent.
        :raises UpstreamError: when the answer was cut short, too long, a redirect or no HTTP.
        """
        try:
            return self._exchange(method, url, headers=headers, deadline=deadline, body=body)
        except UpstreamUnavailable as error:
            if not repeatable or error.executed is False:
                raise
            return self._exchange(method, url, headers=headers, deadline=deadline, body=body)

    def _exchange(
        self, method: str, url: str, *, headers: Mapping[str, str], deadline: Deadline, body: bytes | str | None
    ) -> Answer:
        remaining = deadline.remaining_seconds
        if remaining <= 0:
            raise UpstreamTimeout(self._upstream, reason="no time was left to ask", executed=False)
        _exchange_ends_at.set(deadline.ends_at)
        try:
            response = self._pools.urlopen(
                method,
                url,
                headers=headers,
                body=body,
                timeout=urllib3.Timeout(total=remaining),
                redirect=False,
                preload_content=False,
            )
            answer = self._read(response)
        except NewConnectionError as error:
            raise UpstreamUnavailable(self._upstream, reason="no connection", executed=False) from error
        except ConnectTimeoutError as error:
            raise UpstreamTimeout(self._upstream, reason="no connection in time", executed=False) from error
        except (ReadTimeoutError, TimeoutError) as error:
            raise UpstreamTimeout(self._upstream, reason="no answer in time") from error
        except (HTTPError, OSError, ValueError) as error:
            raise UpstreamUnavailable(self._upstream, reason="the connection broke") from error
        if 300 <= answer.status < 400:
            raise UpstreamError(self._upstream, reason=f"answered {answer.status}, a redirect")
        return answer

    def _read(self, response: urllib3.BaseHTTPResponse) -> Answer:
        if response.status < 200:
            # The standard library takes an interim answer for the whole one; the true one, which follows on this
            # connection, must never be read as the answer to somebody else's request.
            response.close()
            raise UpstreamError(self._upstream, reason=f"answered {response.status}, an interim answer")
        body = response.read(MAX_BODY_BYTES + 1, decode_content=True)
        if len(body) > MAX_BODY_BYTES:
            response.close()
            raise UpstreamError(self._upstream, reason="the answer is too long")
        response.release_conn()
        return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, body)
