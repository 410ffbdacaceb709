"""Log lines: JSON, an event a line, or readable text where standard output is a terminal.

What a request is about (its id, its route, its app, its payment) is noted once, by whoever knows it first, and is on
every line that the request writes. No line holds a query string, a body or a header; what still looks like a key is
cut out of it.
"""

import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

import orjson
import psycopg2
from sqlalchemy.exc import StatementError

HANDLER = "stripe-service"
MAX_FACT_LENGTH = 200

# What callers put into `extra`; any other attribute of a record stays out of the line.
EXTRA_FACTS = ("upstream", "reason")

# They say at INFO or below what they send and are sent.
QUIET_LOGGERS = ("stripe", "urllib3", "werkzeug")

# Of a line for a person: what an access line's message says already, and the ids, which are long and come last.
ACCESS_FACTS = ("method", "route", "status")
ID_FACTS = ("app", "payment", "run", "requestId")

access_log = logging.getLogger("app.access")

_SECRET = re.compile(r"\b(?:sk|rk|whsec)_[\w*+/=]+|\b\w+?_secret_\w+")

# https://www.postgresql.org/docs/current/errcodes-appendix.html: what a data exception says quotes the value.
_DATA_EXCEPTION = "22"

# What gunicorn says of a request that is no HTTP, or that it failed to answer: as far as it doesn't quote it.
_GUNICORN_QUOTES = re.compile(r"^(Invalid request from ip=\S+ [^:]*|Error handling request [^?]*).*", re.DOTALL)

_facts: ContextVar[dict[str, object] | None] = ContextVar("log_facts", default=None)


def begin_request(**facts: object) -> None:
    """Note what is known from the beginning of a request, or of a piece of a command's work in a thread of its own."""
    _facts.set(facts)


def about(**facts: object) -> None:
    """Note what the request or the work in hand is about; outside of both, nothing is noted."""
    known = _facts.get()
    if known is not None:
        known.update(facts)


def noted(name: str) -> object:
    """What was noted of the request in hand."""
    return (_facts.get() or {}).get(name)


def end_request(**facts: object) -> None:
    """Write the one access line of a request."""
    about(**facts)
    access_log.info("%s %s %s", noted("method"), noted("route"), noted("status"))
    _facts.set(None)


def configure_logging(level: int = logging.INFO) -> None:
    """Write to standard output from now on; a second time changes nothing but the stream."""
    root = logging.getLogger()
    configured = [handler for handler in root.handlers if handler.name == HANDLER]
    for handler in configured:
        root.removeHandler(handler)
    root.addHandler(_handler())
    if not configured:
        root.setLevel(level)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def _handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stdout)
    handler.set_name(HANDLER)
    handler.setFormatter(TextFormatter() if sys.stdout.isatty() else JsonFormatter())
    return handler


def redact(text: str) -> str:
    """The text without anything that looks like a key or a client secret of Stripe's."""
    if not text.isascii():
        # A lone surrogate, which JSON can't hold, becomes a question mark.
        text = text.encode(errors="replace").decode()
    return _SECRET.sub("[redacted]", text) if "_" in text else text


class JsonFormatter(logging.Formatter):
    """An object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            **_facts_of(record),
        }
        if (error := _error_of(record)) is not None:
            line["exception"] = describe(error)
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """A line for a person: when, how bad, what happened, and then what it was about; the traceback is below it."""

    def format(self, record: logging.LogRecord) -> str:
        message = _message(record)
        # In UTC, as are the times on the pages and in answers.
        parts = [f"{_time(record):%H:%M:%S}", f"{record.levelname:<7}", message, *_unsaid(message, _facts_of(record))]
        line = " ".join(_printable(part) for part in parts)
        error = _error_of(record)
        return line if error is None else f"{line}\n{describe(error)}"


class WithoutRequest(logging.Filter):
    """Cuts off what gunicorn quotes of a request, which may be a header or a query."""

    def filter(self, record: logging.LogRecord) -> bool:
        if found := _GUNICORN_QUOTES.match(record.getMessage()):
            record.msg, record.args = found[1], ()
        return True


def describe(error: BaseException) -> str:
    """A traceback, with all that led to the error, and without the values that a database quotes."""
    return "\n".join(_describe_chain(error))


def _describe_chain(error: BaseException) -> Iterator[str]:
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _describe_chain(cause)
        yield "which led to:"
    yield "Traceback (most recent call last):"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    yield redact(f"{type(error).__module__}.{type(error).__qualname__}: {_words_of(error)}")


def _words_of(error: BaseException) -> str:
    if isinstance(error, StatementError):
        # The statement has placeholders; what the driver said of it is the error that led to this one.
        return f"[{error.statement}]" if error.statement else ""
    if isinstance(error, psycopg2.Error):
        return _words_of_database(error)
    return str(error)


def _words_of_database(error: psycopg2.Error) -> str:
    """The first line: those after it quote the statement, into which psycopg2 has written the values, and the row."""
    if error.pgcode and error.pgcode.startswith(_DATA_EXCEPTION):
        return f"SQLSTATE {error.pgcode}"
    return str(error).partition("\n")[0]


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _message(record: logging.LogRecord) -> str:
    return redact(record.getMessage())


def _facts_of(record: logging.LogRecord) -> dict[str, object]:
    facts = {**(_facts.get() or {}), **{name: getattr(record, name, None) for name in EXTRA_FACTS}}
    return {name: _fact(value) for name, value in facts.items() if value is not None}


def _unsaid(message: str, facts: Mapping[str, object]) -> list[str]:
    """What the message doesn't say, with the ids last."""
    said = message.split()
    unsaid = [name for name, value in facts.items() if name not in ACCESS_FACTS or str(value) not in said]
    unsaid.sort(key=lambda name: ID_FACTS.index(name) if name in ID_FACTS else -1)
    return [f"{name}={facts[name]}" for name in unsaid]


def _fact(value: object) -> object:
    return value if isinstance(value, int | float) else redact(str(value)[:MAX_FACT_LENGTH])


def _error_of(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if record.exc_info else None


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)
