"""How many may ask an upstream at once, and how often."""

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
    """

    def __init__(self, places: int, *, a_second: int | None = None) -> None:
        self._free = threading.BoundedSemaphore(max(1, places))
        self._rate = None if a_second is None else RateLimit(a_second)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold a place for the time of a block.

        :raises Overloaded: when none is free, or too many were taken in the last second.
        """
        if not self._free.acquire(blocking=False):
            raise Overloaded
        try:
            if self._rate is not None:
                self._rate.take()
            yield
        finally:
            self._free.release()
