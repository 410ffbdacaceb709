"""On whose behalf an upstream is called, and until when."""

import time
from dataclasses import dataclass


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
