"""The endpoints of apps: each event is sent over a connection of its own, to an address that was checked."""

import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar
from urllib.parse import urlsplit

from urllib3 import BaseHTTPResponse, HTTPConnectionPool, connection_from_url

from app.errors import InvalidRequest, UpstreamError
from app.services.upstreams.addresses import HTTPS_PORT, is_loopback, is_public, problems_of_url
from app.services.upstreams.call_context import Deadline
from app.services.upstreams.http import Answer, Connection, TLSConnection, Transport, look_up, tls_context

UPSTREAM = "the endpoint"
MAX_ANSWER_BYTES = 16 * 1024
NOT_PUBLIC = "has an address that is not public"


class _AddressRefused(OSError):
    """A name leads to an address at which nobody is told events."""


def _checked(addresses: list[Any], is_allowed: Callable[[str], bool]) -> list[Any]:
    """The addresses of a name.

    :raises _AddressRefused: when one of them isn't allowed: whoever mixes them in has something else in mind.
    """
    if not all(is_allowed(address[0]) for *_, address in addresses):
        raise _AddressRefused(NOT_PUBLIC)
    return addresses


class _PublicConnection(TLSConnection):
    """Connects to the public internet. The very addresses that are checked are those that it connects to."""

    def find_addresses(self) -> list[Any]:
        return _checked(super().find_addresses(), is_public)


class _LoopbackConnection(Connection):
    """Connects to this machine, without TLS."""

    def find_addresses(self) -> list[Any]:
        return _checked(super().find_addresses(), is_loopback)


class _Exchange(Transport):
    """One request to an endpoint. Of its answer, the status and the headers are of interest."""

    def _read(self, response: BaseHTTPResponse) -> Answer:
        # Read, so that the endpoint may end as it means to; what is longer is cut off.
        response.read(MAX_ANSWER_BYTES)
        return Answer(response.status, response.headers, b"")

    def _failure(self, error: Exception, deadline: Deadline) -> UpstreamError:
        if isinstance(error.__cause__, _AddressRefused):
            return UpstreamError(UPSTREAM, reason=NOT_PUBLIC, executed=False)
        return super()._failure(error, deadline)


class EventEndpoints:
    """Sends events to where apps want them.

    :param allow_private: whether that may be in a private network, or this machine, and there without TLS
    """

    _IS_ALLOWED: ClassVar[Mapping[str, Callable[[str], bool]]] = {"http": is_loopback, "https": is_public}

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._tls = tls_context()

    def check(self, url: str, deadline: Deadline) -> None:
        """See that a URL may be told events.

        :raises InvalidRequest: when it may not.
        """
        parts = urlsplit(url)
        problems = list(problems_of_url(url, allow_private=self._allow_private))
        if not problems and not (self._allow_private and parts.scheme == "https"):
            try:
                found = look_up(parts.hostname or "", parts.port or HTTPS_PORT, deadline)
                _checked(found, self._IS_ALLOWED[parts.scheme])
            except _AddressRefused:
                problems = ["Must not lead to an address that is not public."]
            except (OSError, UnicodeError):
                problems = ["Must name a host that has an address."]
        if problems:
            raise InvalidRequest({"url": problems})

    def send(self, url: str, body: bytes, headers: Mapping[str, str], deadline: Deadline) -> Answer:
        """Send an event; the answer has no body.

        :raises UpstreamError: when there is no answer, with what kept it away as the reason.
        """
        if any(problems_of_url(url, allow_private=self._allow_private)):
            raise UpstreamError(UPSTREAM, reason=NOT_PUBLIC, executed=False)
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        pool = self._pool(f"{parts.scheme}://{parts.netloc}")
        try:
            exchange = _Exchange(UPSTREAM, "", pool=pool)
            sent = {"Content-Type": "application/json", "Connection": "close", **headers}
            return exchange.send("POST", target, headers=sent, body=body, deadline=deadline, repeatable=False)
        finally:
            pool.close()

    def _pool(self, origin: str) -> HTTPConnectionPool:
        is_tls = origin.startswith("https:")
        tls: dict[str, Any] = {"ssl_context": self._tls} if is_tls else {}
        pool = connection_from_url(origin, maxsize=1, retries=False, **tls)
        checked = TLSConnection if self._allow_private else _PublicConnection
        pool.ConnectionCls = checked if is_tls else _LoopbackConnection
        return pool


def seconds_to_wait(headers: Mapping[str, str]) -> float:
    """How long an answer asks to be left alone; 0 where it doesn't, or says so in a form that can't be read.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    told = headers.get("Retry-After", "").strip()
    if told.isascii() and told.isdigit():
        return float(told[:9])
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except ValueError:
        return 0.0
