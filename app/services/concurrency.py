"""How many requests may wait for upstreams at once, so that reads, webhooks and health keep threads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import Overloaded


class ConcurrencyLimit:
    """A bounded number of places; who finds none free is refused at once rather than answered late."""

    def __init__(self, threads: int) -> None:
        # Of 32 threads, 24: as many creates at a time are never refused.
        self._free = threading.BoundedSemaphore(max(1, threads * 3 // 4))

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold a place for the time of a block.

        :raises Overloaded: when none is free.
        """
        if not self._free.acquire(blocking=False):
            raise Overloaded
        try:
            yield
        finally:
            self._free.release()
