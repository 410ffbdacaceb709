"""How many may ask an upstream, or much of the database, at once, and how often."""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import Overloaded


class RateLimit:
    """A bounded number of beginnings in any one second."""

    def __init__(self, a_second: int) -> None:
        self._lock = threading.Lock()
        # When the last ones began, on the monotonic clock, the earliest first.
        self._begun_at = deque([-math.inf] * a_second, maxlen=a_second)

    def take(self) -> None:
        """Count a beginning.

        :raises Overloaded: when the last second has had all of its own.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._begun_at[0] < 1:
                raise Overloaded
            self._begun_at.append(now)


class ConcurrencyLimit:
    """A bounded number of places; who finds none free is refused at once rather than answered late.

    :param a_second: how often a place may be taken
    :param waiting: how many may wait for a place, each for `wait_seconds`, where one is soon free
    """

    def __init__(
        self, places: int, *, a_second: int | None = None, waiting: int = 0, wait_seconds: float = 0.0
    ) -> None:
        self._free = threading.BoundedSemaphore(max(1, places))
        self._waiting = threading.BoundedSemaphore(waiting)
        self._wait_seconds = wait_seconds
        self._rate = None if a_second is None else RateLimit(a_second)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold a place for the time of a block.

        :raises Overloaded: when none is free, or too many were taken in the last second.
        """
        if not (self._free.acquire(blocking=False) or self._wait_for_place()):
            raise Overloaded
        try:
            if self._rate is not None:
                self._rate.take()
            yield
        finally:
            self._free.release()

    def _wait_for_place(self) -> bool:
        if not self._waiting.acquire(blocking=False):
            return False
        try:
            return self._free.acquire(timeout=self._wait_seconds)
        finally:
            self._waiting.release()
