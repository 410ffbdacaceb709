"""The signing secrets of apps: what is kept of them, and how often key-service may be asked for them.

Anyone can send a webhook, and nothing but a secret tells a forged one. So an app is known once a webhook of its own was
verified, which no forgery brings about; what is kept and asked for known apps is apart from what is asked for others.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cachetools import LRUCache, TTLCache

from app.errors import NoStripeKey, Overloaded, UpstreamError
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.keys import KeyClient, Provider
from app.services.upstreams.limits import ConcurrencyLimit

MAX_APPS = 10_000
# How long an app isn't asked about again after an ask that verified nothing.
REFRESH_SECONDS = 5
# How long a webhook that a kept secret fits waits to hear whether that is still the app's.
PATIENCE_SECONDS = 2
# About apps that aren't known: so many that those of a busy service are soon known again after its start.
UNKNOWN_ASKS_A_SECOND = 20


@dataclass(frozen=True)
class Learned:
    """An app's secrets, none where it has none, and when key-service was asked for them, on the monotonic clock."""

    secrets: tuple[str, ...]
    asked_at: float


class SigningSecrets:
    """Says whether an app's secret signed a webhook.

    The secrets of a known app are kept until key-service tells others: an outage takes none away, nor does a forgery.

    :param cache_seconds: how long a kept secret is taken without asking
    :param threads: of the process; a sixteenth may wait for an answer that another has asked for, half as many ask
        about known apps, and as many about others
    """

    def __init__(self, keys: KeyClient, *, cache_seconds: float, threads: int) -> None:
        share = threads // 32
        waiting = ConcurrencyLimit(2 * share)
        self._cache_seconds = cache_seconds
        self._lock = threading.Lock()
        self._kept: LRUCache[str, Learned] = LRUCache(MAX_APPS)
        self._known = _Asks(keys, ConcurrencyLimit(share), waiting)
        self._others = _Asks(keys, ConcurrencyLimit(share, a_second=UNKNOWN_ASKS_A_SECOND), waiting)

    def has_signed(self, app_id: str, fits: Callable[[tuple[str, ...]], bool], context: CallContext) -> bool:
        """Whether one of the app's secrets fits a webhook that has just come in.

        :param fits: whether one of these secrets signed it
        :raises Overloaded: when that can't be known, since key-service may not be asked now.
        :raises UpstreamError: when key-service doesn't answer as it should.
        """
        came_at = time.monotonic()
        kept = self._find(app_id)
        if kept is None or not fits(kept.secrets):
            asks = self._others if kept is None else self._known
            return self._decide(app_id, asks.learn(app_id, context), fits, came_at)
        if came_at < kept.asked_at + self._cache_seconds:
            return True
        try:
            learned = self._known.learn(app_id, context.within(PATIENCE_SECONDS))
        except (Overloaded, UpstreamError):
            # An old secret rather than an outage; the metric of calls counts the failure.
            return True
        return self._decide(app_id, learned, fits, came_at)

    def _decide(self, app_id: str, learned: Learned, fits: Callable[[tuple[str, ...]], bool], came_at: float) -> bool:
        """Whether these secrets fit. They can't say no when they are older than the webhook: one may have come since.

        :raises Overloaded: then.
        """
        is_genuine = fits(learned.secrets)
        self._keep(app_id, learned, is_genuine=is_genuine)
        if not is_genuine and learned.asked_at < came_at:
            raise Overloaded
        return is_genuine

    def _find(self, app_id: str) -> Learned | None:
        with self._lock:
            return self._kept.get(app_id)

    def _keep(self, app_id: str, learned: Learned, *, is_genuine: bool) -> None:
        with self._lock:
            kept = self._kept.get(app_id)
            if is_genuine if kept is None else kept.asked_at < learned.asked_at:
                self._kept[app_id] = learned
        if is_genuine:
            self._known.forget(app_id)
            self._others.forget(app_id)


@dataclass
class _Ask:
    """One that is under way, or was done in the last seconds."""

    done: threading.Event = field(default_factory=threading.Event)
    # None also where it failed.
    learned: Learned | None = None


class _Asks:
    """Asks key-service about each app at most once in REFRESH_SECONDS; whoever comes meanwhile shares the answer.

    :param asking: the places of those who ask
    :param waiting: the places of those who wait for another's answer
    """

    def __init__(self, keys: KeyClient, asking: ConcurrencyLimit, waiting: ConcurrencyLimit) -> None:
        self._keys = keys
        self._asking = asking
        self._waiting = waiting
        self._lock = threading.Lock()
        self._recent: TTLCache[str, _Ask] = TTLCache(MAX_APPS, REFRESH_SECONDS)

    def learn(self, app_id: str, context: CallContext) -> Learned:
        """What key-service says of the app, or has just said.

        :raises Overloaded: when it may not be asked, or has just failed another who asked.
        :raises UpstreamError: when it doesn't answer as it should.
        """
        mine = _Ask()
        with self._lock:
            ask = self._recent.setdefault(app_id, mine)
        if ask is not mine:
            return self._wait(ask, context)
        try:
            with self._asking.hold():
                mine.learned = self._ask(app_id, context)
        except Overloaded:
            # Nobody was asked.
            self.forget(app_id)
            raise
        finally:
            mine.done.set()
        return mine.learned

    def forget(self, app_id: str) -> None:
        """Let the app be asked about again at once."""
        with self._lock:
            self._recent.pop(app_id, None)

    def _wait(self, ask: _Ask, context: CallContext) -> Learned:
        if not ask.done.is_set():
            with self._waiting.hold():
                ask.done.wait(max(0.0, context.deadline.remaining_seconds))
        if ask.learned is None:
            raise Overloaded
        return ask.learned

    def _ask(self, app_id: str, context: CallContext) -> Learned:
        asked_at = time.monotonic()
        try:
            told = self._keys.ask(Provider.STRIPE_WEBHOOK, app_id, context)
        except NoStripeKey:
            told = ""
        # Several, by commas, while one is rotated.
        return Learned(tuple(part.strip() for part in told.split(",") if part.strip()), asked_at)
