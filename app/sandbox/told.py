"""What the stand-in of an app was told."""

from collections import deque

from app.sandbox.json_object import JsonObject

MAX_KEPT = 1_000


class Told:
    """Events that were verified, the newest first."""

    def __init__(self) -> None:
        self._events: deque[JsonObject] = deque(maxlen=MAX_KEPT)

    def add(self, event: JsonObject, *, at: str) -> None:
        self._events.appendleft({**event, "receivedAt": at})

    def all(self) -> list[JsonObject]:
        return list(self._events)

    def clear(self) -> None:
        self._events.clear()
