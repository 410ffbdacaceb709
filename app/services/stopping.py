"""The end of a process that works on its own: asked for by a signal, and looked at between rows and pages."""

from contextlib import suppress
from queue import Empty, SimpleQueue


class Stopping(Exception):
    """The end was asked for: what is in hand is left as it stands, for whoever goes on with it."""

    def __init__(self) -> None:
        super().__init__("stopped before the end")


class Stop:
    """Whether the end was asked for; any number of threads may wait for it.

    A signal's handler may run in the middle of `wait`. An `Event` would then wait for a lock that its own thread holds;
    a `SimpleQueue` has none. https://docs.python.org/3/library/queue.html#queue.SimpleQueue.put
    """

    def __init__(self) -> None:
        self.is_set = False
        self._asked: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Ask for the end."""
        self.is_set = True
        self._asked.put(None)

    def wait(self, seconds: float | None = None) -> None:
        """Return after the time, or as soon as the end is asked for."""
        with suppress(Empty):
            self._asked.get(timeout=None if seconds is None else max(0.0, seconds))
            # For the next one who waits.
            self._asked.put(None)

    def check(self) -> None:
        """Go on, unless the end was asked for.

        :raises Stopping: when it was.
        """
        if self.is_set:
            raise Stopping
