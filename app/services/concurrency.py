"""How much is worked on at once, and how much of that for one app: what is slow for one holds up no other."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from app.errors import Overloaded
from app.logs import begin_request
from app.services.stopping import Stop, Stopping

T = TypeVar("T")

# Of one job of a command; no app has more than two of them.
THREADS = 4
# How soon work is seen that has come up while all that is in hand hangs.
LOOK_AGAIN_SECONDS = 1.0


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

    @property
    def is_any_free(self) -> bool:
        """Whether one is left for an app that holds none."""
        return self._free > 0

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

    def apps_with_their_share(self) -> list[str]:
        """The apps for which there is no place until one is given back."""
        with self._lock:
            return [app_id for app_id in self._held if not self._is_one_for(app_id)]

    def _is_one_for(self, app_id: str) -> bool:
        return self._free > self._contested or self._held[app_id] < self._free


class FairLimit:
    """How many requests may wait for upstreams at once, so that reads, webhooks and health keep threads.

    Who finds no place is refused at once rather than answered late.
    """

    def __init__(self, threads: int) -> None:
        # Of 32 threads 26, and the last 2 contested: 24 creates of one app at a time are never refused while no other
        # app has any, and leave places to those. Four of the others may wait for key-service on behalf of webhooks.
        self._places = Places(max(1, threads * 13 // 16), contested=max(1, threads // 16))

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


@dataclass(frozen=True)
class Work(Generic[T]):
    """A piece of work, and the app that it is for.

    :param alone_on: what no two pieces are worked on at once
    """

    app_id: str
    do: Callable[[], T]
    alone_on: str | None = None


@dataclass(frozen=True)
class InHand:
    """What is in hand, and so has to be passed over by whoever looks for the next piece of work.

    :param apps: those that have their share
    :param alone_on: what a piece in hand is to be alone on
    """

    apps: list[str]
    alone_on: list[str]


NextWork = Callable[[InHand], Work[T] | None]


def side_by_side(next_work: NextWork[T], *, stop: Stop) -> Iterator[T]:
    """Do work in a few threads until there is none; yield what each piece came to, as it ends.

    When the end is asked for, or a piece or `next_work` raises, no further piece is begun, and those in hand are
    waited for: each takes no longer than the deadline of its calls. The first exception is raised then.

    :param next_work: gives a piece that what is in hand leaves room for, and None when there is none at the moment
    """
    crew: _Crew[T] = _Crew()
    failures: list[Exception] = []
    while True:
        try:
            is_begun = not (stop.is_set or failures) and crew.begin(next_work)
            if not is_begun and crew.is_idle:
                break
            if not is_begun:
                yield from crew.wait()
        except Stopping:
            # Asked for since it was looked at; it is seen from now on.
            continue
        except Exception as error:
            failures.append(error)
    for first in failures[:1]:
        raise first


class _Crew(Generic[T]):
    """The threads of one job: a new one for each piece, so that nothing is left in it of the piece before.

    They don't keep the process from its end: what they hold has a lease.
    """

    def __init__(self) -> None:
        self._places = Places(THREADS, contested=THREADS)
        self._ended: SimpleQueue[tuple[Work[T], Future[T]]] = SimpleQueue()
        self._in_hand: list[Work[T]] = []

    @property
    def is_idle(self) -> bool:
        return not self._in_hand

    def begin(self, next_work: NextWork[T]) -> bool:
        """Begin a piece; return whether there was a place, and one for it."""
        if not self._places.is_any_free:
            return False
        alone_on = [work.alone_on for work in self._in_hand if work.alone_on is not None]
        work = next_work(InHand(self._places.apps_with_their_share(), alone_on))
        if work is None:
            return False
        self._places.take(work.app_id)
        self._in_hand.append(work)
        threading.Thread(target=self._do, args=(work,), daemon=True).start()
        return True

    def _do(self, work: Work[T]) -> None:
        begin_request(app=work.app_id)
        outcome: Future[T] = Future()
        try:
            outcome.set_result(work.do())
        except BaseException as error:
            outcome.set_exception(error)
        self._ended.put((work, outcome))

    def wait(self) -> list[T]:
        """Wait for the end of a piece, a short time at most; return what it came to, if one has ended."""
        try:
            work, outcome = self._ended.get(timeout=LOOK_AGAIN_SECONDS)
        except Empty:
            return []
        self._in_hand.remove(work)
        self._places.give_back(work.app_id)
        return [outcome.result()]
