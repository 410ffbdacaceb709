"""The ledger: every request that a stand-in got, and every webhook that was sent, in order of execution."""

from dataclasses import dataclass
from typing import Any

from flask import request
from werkzeug.wrappers import Request

from app.sandbox.json_object import JsonObject

ENVIRON_KEY = "sandbox.entry"


@dataclass
class Entry:
    """One request; `status` stays None when no answer was sent, `effect` when nothing was executed."""

    service: str
    method: str
    path: str
    sequence: int = 0
    status: int | None = None
    effect: str | None = None
    object_id: str | None = None
    account: str | None = None
    app_id: str | None = None
    idempotency_key: str | None = None
    replayed: bool = False
    request_id: str | None = None
    caller_path: str | None = None
    fault: str | None = None
    at: str | None = None

    @classmethod
    def of(cls, service: str, path: str, incoming: Request) -> "Entry":
        headers = incoming.headers
        return cls(
            service=service,
            method=incoming.method,
            path=path,
            idempotency_key=headers.get("Idempotency-Key"),
            request_id=headers.get("X-Request-ID"),
            caller_path=headers.get("X-Caller-Path"),
        )

    def to_json(self) -> JsonObject:
        return {_camel_case(name): value for name, value in vars(self).items()}


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.title() for word in others)


class Ledger:
    """The entries since the sandbox was started or reset."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def append(self, entry: Entry, *, at: str) -> None:
        self._entries.append(entry)
        entry.sequence = len(self._entries)
        entry.at = at

    def entries(self, *, service: str | None = None, since: int = 0) -> list[JsonObject]:
        """The entries after the sequence number `since`, oldest first."""
        return [entry.to_json() for entry in self._entries[since:] if service in {None, entry.service}]

    def clear(self) -> None:
        self._entries.clear()


def note(**facts: Any) -> None:
    """Write facts about the request that is being answered into its entry."""
    entry = request.environ[ENVIRON_KEY]
    for name, value in facts.items():
        setattr(entry, name, value)
