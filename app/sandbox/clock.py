"""The sandbox's clock: the real time, and whatever it was advanced by."""

import time
from datetime import UTC, datetime


class Clock:
    """Tells the time of the sandbox, in seconds since 1970."""

    def __init__(self) -> None:
        self.offset_seconds = 0.0

    def time(self) -> float:
        return time.time() + self.offset_seconds

    def now(self) -> int:
        """The time in whole seconds, as Stripe writes it."""
        return int(self.time())

    def iso(self) -> str:
        """The time in ISO 8601 with milliseconds, as runs-service writes it."""
        return iso(self.time())

    def advance(self, seconds: float) -> None:
        self.offset_seconds += seconds

    def clear(self) -> None:
        self.offset_seconds = 0.0


def iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
