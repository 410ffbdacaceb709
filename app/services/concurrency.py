"""How much is worked on at once, and how much of that for one app: what is slow for one holds up no other."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import Overloaded


class Places:
    """A bounded number of places, of which apps that hold theirs for long leave some to others.

    Of the last places, the contested ones, an app gets one only while it holds fewer than are free. So where all are
    contested, one app holds half of them at most; and each further app finds one, as long as one is free.
    """

    def __init__(self, count: int, *, contested: int) -> None:
        self._free = count
        self._contested = contested
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, app_id: str) -> bool:
        """Take a place for an app; return whether there was one."""
        with self._lock:
            if not self._is_one_for(app_id):
                return False
            self._free -= 1
            self._held[app_id] += 1
            return True

    def give_back(self, app_id: str) -> None:
        """Give back a place that an app took."""
        with self._lock:
            self._free += 1
            self._held[app_id] -= 1
            # Apps may be any number.
            if not self._held[app_id]:
                del self._held[app_id]

    def _is_one_for(self, app_id: str) -> bool:
        return self._free > self._contested or self._held[app_id] < self._free


class ConcurrencyLimit:
    """How many requests may wait for upstreams at once, so that reads, webhooks and health keep threads.

    Who finds no place is refused at once rather than answered late.
    """

    def __init__(self, threads: int) -> None:
        # Of 32 threads 28, and the last 4 contested: 24 creates of one app at a time are never refused while no other
        # app has any, and leave places to those.
        self._places = Places(max(1, threads * 7 // 8), contested=max(1, threads // 8))

    @contextmanager
    def hold(self, app_id: str) -> Iterator[None]:
        """Hold a place for an app for the time of a block.

        :raises Overloaded: when none is free for it.
        """
        if not self._places.take(app_id):
            raise Overloaded
        try:
            yield
        finally:
            self._places.give_back(app_id)
