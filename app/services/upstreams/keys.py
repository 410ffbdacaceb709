"""key-service: the Stripe key of each app, and the secrets with which it is told things and tells them."""

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


class Provider(StrEnum):
    """What kind of key an app has one of."""

    STRIPE = "stripe"
    STRIPE_WEBHOOK = "stripe-webhook"


def provider_of_endpoint(endpoint_id: object) -> str:
    """The provider under which the secret of an endpoint of events is kept."""
    return f"stripe-service-events:{endpoint_id}"


class KeyClient:
    """Asks key-service for keys and remembers those that it was asked to get for a short time.

    One caller gets a key at a time; whoever needs the same one meanwhile shares its answer or its failure, so that
    neither an expiry nor an outage makes every thread ask.
    """

    def __init__(self, *, url: str, api_key: str, timeout_seconds: float, cache_seconds: float) -> None:
        self._api_key = api_key
        self._timeout_seconds = timeout_seconds
        self._transport = Transport(UPSTREAM, url)
        self._lock = threading.Lock()
        self._keys: TTLCache[tuple[str, str], str] = TTLCache(MAX_CACHED_KEYS, cache_seconds)
        self._asking: dict[tuple[str, str], Future[str]] = {}

    def get(self, provider: str, app_id: str, context: CallContext) -> str:
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

    def forget(self, provider: str, app_id: str, key: str) -> None:
        """Drop a key that turned out to be wrong, unless it was replaced meanwhile."""
        with self._lock:
            if self._keys.get((provider, app_id)) == key:
                del self._keys[provider, app_id]

    def ask(self, provider: str, app_id: str, context: CallContext) -> str:
        """The key that key-service has now, which isn't remembered.

        :raises NoStripeKey, UpstreamError: as for `get`.
        """
        with upstream_call(UPSTREAM, f"GET /internal/app-keys/{_kind(provider)}/decrypt"):
            path = f"/internal/app-keys/{provider}/decrypt?{urlencode({'appId': app_id})}"
            answer = self._send("GET", path, context)
            if answer.status == 404:
                raise NoStripeKey(app_id)
            return _read_key(answer)

    def store(self, provider: str, app_id: str, key: str, context: CallContext) -> None:
        """Store a key, in place of the one that there was.

        :raises UpstreamError: when key-service doesn't take it.
        """
        body = orjson.dumps({"appId": app_id, "provider": provider, "apiKey": key})
        with upstream_call(UPSTREAM, "POST /internal/app-keys"):
            _require_ok(self._send("POST", "/internal/app-keys", context, body))

    def delete(self, provider: str, app_id: str, context: CallContext) -> None:
        """Delete a key; one that is gone is no error.

        :raises UpstreamError: when key-service doesn't do it.
        """
        path = f"/internal/app-keys/{provider}?{urlencode({'appId': app_id})}"
        with upstream_call(UPSTREAM, f"DELETE /internal/app-keys/{_kind(provider)}"):
            answer = self._send("DELETE", path, context)
            if answer.status != 404:
                _require_ok(answer)

    def _ask_for_all(self, provider: str, app_id: str, context: CallContext, answer: "Future[str]") -> None:
        try:
            key = self.ask(provider, app_id, context)
        except BaseException as error:
            self._settle(provider, app_id, None)
            answer.set_exception(error)
        else:
            self._settle(provider, app_id, key)
            answer.set_result(key)

    def _settle(self, provider: str, app_id: str, key: str | None) -> None:
        with self._lock:
            del self._asking[provider, app_id]
            if key is not None:
                self._keys[provider, app_id] = key

    def _send(self, method: str, path: str, context: CallContext, body: bytes = b"") -> Answer:
        return self._transport.send(
            method,
            path,
            headers={
                "X-API-Key": self._api_key,
                "X-Caller-Service": "stripe",
                "X-Caller-Method": context.method,
                "X-Caller-Path": context.path,
                "X-Request-ID": context.request_id,
                **({"Content-Type": "application/json"} if body else {}),
            },
            body=body,
            deadline=context.deadline.within(self._timeout_seconds),
            repeatable=True,
        )


def _kind(provider: str) -> str:
    """A provider without the id that it may hold."""
    return provider.partition(":")[0]


def _wait(answer: "Future[str]", deadline: Deadline) -> str:
    """The answer, which another may have asked for: whoever waits has a deadline of its own."""
    try:
        return answer.result(max(0.0, deadline.remaining_seconds))
    except TimeoutError:
        raise UpstreamTimeout(UPSTREAM, reason="no answer in time", executed=False) from None


def _require_ok(answer: Answer) -> None:
    if answer.status in (429, 502, 503, 504):
        raise UpstreamUnavailable(UPSTREAM, reason=f"answered {answer.status}")
    if answer.status != 200:
        raise UpstreamError(UPSTREAM, reason=f"answered {answer.status}")


def _read_key(answer: Answer) -> str:
    _require_ok(answer)
    try:
        key = orjson.loads(answer.body)["key"]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        key = None
    # It is sent in a header: anything but printable ASCII is no key.
    if not (isinstance(key, str) and key and key.isascii() and key.isprintable()):
        raise UpstreamError(UPSTREAM, reason="answered 200 without a key") from None
    return key
