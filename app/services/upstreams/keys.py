"""key-service: the Stripe key and the webhook signing secrets of each app."""

import threading
from concurrent.futures import Future
from enum import StrEnum
from urllib.parse import urlencode

import orjson
from cachetools import TTLCache

from app.errors import NoStripeKey, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from app.logs import about
from app.metrics import upstream_call
from app.services.upstreams.call_context import CallContext, Deadline
from app.services.upstreams.http import Answer, Transport

UPSTREAM = "key-service"
MAX_CACHED_KEYS = 10_000
# Who sends what no key fits can make us ask for an app's key this often, and not more.
REFRESH_SECONDS = 5


class Provider(StrEnum):
    """What kind of key an app has one of."""

    STRIPE = "stripe"
    STRIPE_WEBHOOK = "stripe-webhook"


class KeyClient:
    """Asks key-service for keys and remembers them for a short time.

    One caller asks for a key at a time; whoever needs the same one meanwhile shares its answer or its failure, so that
    neither an expiry nor an outage makes every thread ask.
    """

    def __init__(self, *, url: str, api_key: str, timeout_seconds: float, cache_seconds: float) -> None:
        self._api_key = api_key
        self._timeout_seconds = timeout_seconds
        self._transport = Transport(UPSTREAM, url)
        self._lock = threading.Lock()
        self._keys: TTLCache[tuple[Provider, str], str] = TTLCache(MAX_CACHED_KEYS, cache_seconds)
        self._refreshed: TTLCache[tuple[Provider, str], bool] = TTLCache(MAX_CACHED_KEYS, REFRESH_SECONDS)
        self._asking: dict[tuple[Provider, str], Future[str]] = {}

    def get(self, provider: Provider, app_id: str, context: CallContext) -> str:
        """The app's key.

        :raises NoStripeKey: when key-service has none.
        :raises UpstreamError: when key-service doesn't answer as it should.
        :raises UpstreamTimeout: when the deadline comes before the answer, also where another has asked.
        """
        about(app=app_id)
        with self._lock:
            if (key := self._keys.get((provider, app_id))) is not None:
                return key
            answer = self._asking.get((provider, app_id))
            if first := answer is None:
                answer = self._asking[provider, app_id] = Future()
        if first:
            self._ask_for_all(provider, app_id, context, answer)
        return _wait(answer, context.deadline)

    def forget(self, provider: Provider, app_id: str, key: str | None = None) -> None:
        """Drop a key that turned out to be wrong, unless it was replaced meanwhile; or whichever there is."""
        with self._lock:
            if (kept := self._keys.get((provider, app_id))) is not None and key in (None, kept):
                del self._keys[provider, app_id]

    def get_afresh(self, provider: Provider, app_id: str, context: CallContext) -> str | None:
        """The key that key-service has now; None when it was asked afresh just before.

        :raises NoStripeKey, UpstreamError: as for `get`.
        """
        with self._lock:
            if (provider, app_id) in self._refreshed:
                return None
            self._refreshed[provider, app_id] = True
        self.forget(provider, app_id)
        return self.get(provider, app_id, context)

    def _ask_for_all(self, provider: Provider, app_id: str, context: CallContext, answer: "Future[str]") -> None:
        try:
            with upstream_call(UPSTREAM, f"GET /internal/app-keys/{provider}/decrypt"):
                key = self._ask(provider, app_id, context)
        except BaseException as error:
            self._settle(provider, app_id, None)
            answer.set_exception(error)
        else:
            self._settle(provider, app_id, key)
            answer.set_result(key)

    def _settle(self, provider: Provider, app_id: str, key: str | None) -> None:
        with self._lock:
            del self._asking[provider, app_id]
            if key is not None:
                self._keys[provider, app_id] = key

    def _ask(self, provider: Provider, app_id: str, context: CallContext) -> str:
        answer = self._transport.send(
            "GET",
            f"/internal/app-keys/{provider}/decrypt?{urlencode({'appId': app_id})}",
            headers={
                "X-API-Key": self._api_key,
                "X-Caller-Service": "stripe",
                "X-Caller-Method": context.method,
                "X-Caller-Path": context.path,
                "X-Request-ID": context.request_id,
            },
            deadline=context.deadline.within(self._timeout_seconds),
            repeatable=True,
        )
        if answer.status == 404:
            raise NoStripeKey(app_id)
        return _read_key(answer)


def _wait(answer: "Future[str]", deadline: Deadline) -> str:
    """The answer, which another may have asked for: whoever waits has a deadline of its own."""
    try:
        return answer.result(max(0.0, deadline.remaining_seconds))
    except TimeoutError:
        raise UpstreamTimeout(UPSTREAM, reason="no answer in time", executed=False) from None


def _read_key(answer: Answer) -> str:
    if answer.status in (429, 502, 503, 504):
        raise UpstreamUnavailable(UPSTREAM, reason=f"answered {answer.status}")
    if answer.status != 200:
        raise UpstreamError(UPSTREAM, reason=f"answered {answer.status}")
    try:
        key = orjson.loads(answer.body)["key"]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        key = None
    # It is sent in a header: anything but printable ASCII is no key.
    if not (isinstance(key, str) and key and key.isascii() and key.isprintable()):
        raise UpstreamError(UPSTREAM, reason="answered 200 without a key") from None
    return key
