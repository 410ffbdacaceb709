"""Settings, read once from the environment; nothing else reads it, and no secret has a default."""

import math
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

T = TypeVar("T")

# prometheus_client's own variable, which it reads itself.
METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
DATABASE_URL = "STRIPE_SERVICE_DATABASE_URL"


class ConfigurationError(Exception):
    """Raised when settings are missing or are no such thing; `problems` holds one sentence for each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that differs between deployments. Secrets are kept out of the representation."""

    database_url: str = field(repr=False)
    api_keys: tuple[str, ...] = field(repr=False)
    webhook_secrets: tuple[str, ...] = field(repr=False)
    key_service_url: str
    key_service_api_key: str = field(repr=False)
    runs_service_url: str
    runs_service_api_key: str = field(repr=False)
    host: str = "0.0.0.0"  # noqa: S104 -- the documented default of a containerised service
    port: int = 3011
    stripe_api_base: str = "https://api.stripe.com"
    upstream_timeout_seconds: float = 10.0
    stripe_timeout_seconds: float = 20.0
    key_cache_seconds: float = 60.0
    payment_lease_seconds: float = 60.0
    reconcile_seconds: float = 300.0
    web_concurrency: int = os.cpu_count() or 1
    web_threads: int = 32
    request_read_seconds: float = 10.0
    db_pool_size: int = 8
    metrics_by_app: bool = False
    public_url: str | None = None
    allow_private_endpoints: bool = False
    metrics_directory: str | None = None
    problems: tuple[str, ...] = ()

    @property
    def request_deadline_seconds(self) -> float:
        """How long a request may work on a payment: five sixths of the lease, so that it ends well before it lapses."""
        return self.payment_lease_seconds * 5 / 6

    def require_valid(self) -> "Settings":
        """Return these settings.

        :raises ConfigurationError: when one is missing or malformed.
        """
        if self.problems:
            raise ConfigurationError(self.problems)
        return self

    def require_database(self) -> None:
        """Check what a command needs that works with nothing but the database.

        :raises ConfigurationError: when no database is named.
        """
        if not self.database_url:
            raise ConfigurationError(problem for problem in self.problems if problem.startswith(DATABASE_URL))

    def require_public_url(self) -> str:
        """Where Stripe reaches the service.

        :raises ConfigurationError: when nobody has said it.
        """
        if self.public_url is None:
            advice = "set it to the URL at which Stripe reaches the service from outside"
            raise ConfigurationError([f"PUBLIC_URL is not set: {advice}."])
        return self.public_url

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read the environment; what is wrong with it is kept in `problems`, for whoever needs valid settings to raise.

        Without valid settings an application can still be built, for `flask --help` or the OpenAPI document. It
        lets nobody in: it has no API key that a caller could send.
        """
        reader = _Reader(environ)
        return cls(
            database_url=reader.required(DATABASE_URL, _database_url, ""),
            api_keys=reader.required("STRIPE_SERVICE_API_KEY", _secrets, ()),
            webhook_secrets=reader.required("STRIPE_WEBHOOK_SECRET", _secrets, ()),
            key_service_url=reader.required("KEY_SERVICE_URL", _http_url, ""),
            key_service_api_key=reader.required("KEY_SERVICE_API_KEY", _header_value, ""),
            runs_service_url=reader.required("RUNS_SERVICE_URL", _http_url, ""),
            runs_service_api_key=reader.required("RUNS_SERVICE_API_KEY", _header_value, ""),
            host=reader.optional("HOST", str, cls.host),
            port=reader.optional("PORT", _port, cls.port),
            stripe_api_base=reader.optional("STRIPE_API_BASE", _http_url, cls.stripe_api_base),
            upstream_timeout_seconds=reader.optional(
                "UPSTREAM_TIMEOUT_SECONDS", _positive_seconds, cls.upstream_timeout_seconds
            ),
            stripe_timeout_seconds=reader.optional(
                "STRIPE_TIMEOUT_SECONDS", _positive_seconds, cls.stripe_timeout_seconds
            ),
            key_cache_seconds=reader.optional("KEY_CACHE_SECONDS", _seconds, cls.key_cache_seconds),
            payment_lease_seconds=reader.optional(
                "PAYMENT_LEASE_SECONDS", _positive_seconds, cls.payment_lease_seconds
            ),
            reconcile_seconds=reader.optional("RECONCILE_SECONDS", _positive_seconds, cls.reconcile_seconds),
            web_concurrency=reader.optional("WEB_CONCURRENCY", _positive_integer, cls.web_concurrency),
            web_threads=reader.optional("WEB_THREADS", _positive_integer, cls.web_threads),
            request_read_seconds=reader.optional("REQUEST_READ_SECONDS", _positive_seconds, cls.request_read_seconds),
            db_pool_size=reader.optional("DB_POOL_SIZE", _positive_integer, cls.db_pool_size),
            metrics_by_app=reader.optional("METRICS_BY_APP", _yes_or_no, cls.metrics_by_app),
            public_url=reader.optional("PUBLIC_URL", _http_url, cls.public_url),
            allow_private_endpoints=reader.optional("ALLOW_PRIVATE_ENDPOINTS", _yes_or_no, cls.allow_private_endpoints),
            metrics_directory=reader.optional(METRICS_DIRECTORY, _directory, cls.metrics_directory),
            problems=tuple(reader.problems),
        )


def provide_metrics_directory(environ: MutableMapping[str, str] = os.environ) -> str | None:
    """Name a new private directory for the metrics of all processes, unless the environment names one.

    :return: the new one, for whoever made it necessary to remove it
    """
    if environ.get(METRICS_DIRECTORY, "").strip():
        return None
    environ[METRICS_DIRECTORY] = tempfile.mkdtemp(prefix="stripe-service-metrics-")
    return environ[METRICS_DIRECTORY]


def require_own_address(host: str) -> None:
    """Check that this machine can listen at HOST, which is no matter to a command that doesn't.

    :raises ConfigurationError: when it can't.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
            listener.bind((host, 0))
    except (OSError, UnicodeError):
        raise ConfigurationError(["HOST must be an address of this machine, without a port."]) from None


class _Reader:
    """Parses variables one by one and collects a sentence for each that can't be used. No sentence repeats a value."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def required(self, name: str, parse: Callable[[str], T], placeholder: T) -> T:
        if not self._environ.get(name, "").strip():
            self.problems.append(f"{name} is not set.")
            return placeholder
        return self.optional(name, parse, placeholder)

    def optional(self, name: str, parse: Callable[[str], T], default: T) -> T:
        text = self._environ.get(name, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            self.problems.append(f"{name} {error}.")
            return default


def _database_url(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("postgres", "postgresql", "postgresql+psycopg2"):
        raise ValueError("must be a postgresql:// URL")
    # SQLAlchemy 2.1 takes a bare postgresql:// to mean psycopg 3.
    url = f"postgresql+psycopg2://{rest}"
    if not _names_database(url):
        raise ValueError("must be a postgresql:// URL that names a database")
    return url


def _names_database(url: str) -> bool:
    """Whether it says which database is meant: without a name, libpq would take one from its own defaults.

    https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-DBNAME
    """
    try:
        read = make_url(url)
    except (ArgumentError, ValueError):
        return False
    return bool(read.database or read.query.get("dbname") or read.query.get("service"))


def _http_url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or url.port == 0:
        raise ValueError("must be an http:// or https:// URL without a query")
    return text.rstrip("/")


def _header_value(text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise ValueError("must be printable ASCII, since it is sent in a header")
    return text


def _secrets(text: str) -> tuple[str, ...]:
    secrets = tuple(part.strip() for part in text.split(",") if part.strip())
    if not secrets:
        raise ValueError("holds no value between its commas")
    return secrets


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError("must be a number of seconds")
    return seconds


def _positive_seconds(text: str) -> float:
    if not (seconds := _seconds(text)):
        raise ValueError("must be more than 0 seconds")
    return seconds


def _positive_integer(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError("must be a whole number above 0")
    return int(text)


def _yes_or_no(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("must be 0 or 1")
    return text == "1"


def _directory(text: str) -> str:
    if not os.path.isdir(text):
        raise ValueError("must be a directory that exists")
    return text


def _port(text: str) -> int:
    port = _positive_integer(text)
    if port > 65535:
        raise ValueError("must be a port from 1 to 65535")
    return port
