"""Stripe: every call with the key of the app that it is for, a total deadline, and our own errors."""

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar, cast
from urllib.parse import quote

import stripe
from cachetools import LRUCache, cached

from app.errors import ServiceError, StripeRateLimited, StripeRefusal, UpstreamError, UpstreamUnavailable
from app.logs import redact
from app.metrics import upstream_call
from app.services.upstreams.call_context import CallContext, Deadline
from app.services.upstreams.http import Transport
from app.services.upstreams.keys import KeyClient, Provider

UPSTREAM = "Stripe"
# In which Stripe answers us, and in which our webhook endpoints are told.
API_VERSION = str(stripe.api_version)
LIVE_KEYS = ("sk_live_", "rk_live_")
MAX_CLIENTS = 1_000
PAGE_SIZE = 100
MAX_MESSAGE_LENGTH = 500
LONGEST_RETRY_AFTER = 3_600
# An object that another request holds is soon free. https://docs.stripe.com/rate-limits#object-lock-timeouts
LOCK_PAUSES_SECONDS = (0.5, 1.0)

T = TypeVar("T")

_deadline: ContextVar[Deadline] = ContextVar("stripe_deadline")
# What can be one segment of a path: any other id would lead to another route of Stripe's.
_SEGMENT = re.compile(r"(?!\.+$)[^/\x00]{1,255}")

# The SDK logs whole bodies at DEBUG, and a request's URL at INFO; the first hold secrets.
logging.getLogger("stripe").setLevel(logging.WARNING)
stripe.enable_telemetry = False


@dataclass(frozen=True)
class Resource(Generic[T]):
    """One kind of Stripe's objects: where it lies, what Stripe calls it, and how we read it.

    :param path: such as `/v1/payment_intents`
    :param object: what each object of the kind says in its own field `object`: `payment_intent`
    :param read: gives what we use of an object; raises AttributeError, KeyError, TypeError or ValueError when it
        isn't one
    """

    path: str
    object: str
    read: Callable[[Mapping[str, Any]], T]


@dataclass(frozen=True)
class _Call:
    """What is asked of Stripe; `name` is what metrics call it, and holds no id."""

    method: str
    path: str
    name: str
    params: Mapping[str, Any]
    idempotency_key: str | None = None


@dataclass(frozen=True)
class _Answer:
    """What Stripe answered: the JSON of the body, and the headers, by their names in lower case."""

    data: object
    headers: Mapping[str, Any]


@dataclass(frozen=True)
class _Page:
    """A page of a list, and the id after which the next one begins, where there is one."""

    objects: list[object]
    next_after: str | None


class NoSuchObject(StripeRefusal):
    """Stripe has no object of that id."""


class ObjectExists(StripeRefusal):
    """Stripe has another object of that id."""


class CardDeclined(StripeRefusal):
    """Stripe couldn't take the money; the intent by which it was to be taken may be there all the same.

    https://docs.stripe.com/api/errors#errors-payment_intent

    :param decline_code: the issuer's reason
    :param charge_id: the try that failed
    :param intent: as the refusal shows it, with its client secret
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        decline_code: str | None,
        charge_id: str | None,
        intent: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, status=402, code=code)
        self.decline_code = decline_code
        self.charge_id = charge_id
        self.intent = intent

    def read_intent(self, resource: Resource[T]) -> T | None:
        """The payment intent that was declined, where the refusal shows one.

        :raises UpstreamError: when that can't be read.
        """
        return None if self.intent is None else _read(resource, self.intent)


class ObjectLocked(StripeRateLimited):
    """Another request holds the object that this one is about; nothing was executed."""


class StripeKeyRefused(UpstreamError):
    """Stripe answered 401 or 403: nothing was executed."""

    code = "stripe_key_refused"
    verb = "refused the app's key"


class IdempotencyMismatch(UpstreamError):
    """Stripe knows our idempotency key with other parameters: something was executed under it, and not this."""

    code = "stripe_idempotency_mismatch"


class IdempotencyKeyExecuting(UpstreamUnavailable):
    """Stripe is still executing another request under our idempotency key."""


class ReplayedFailure(UpstreamError):
    """Stripe gives a 5xx again that it stored for our idempotency key: asking again will never tell more."""


class _DeadlineClient(stripe.HTTPClient):
    """The SDK's way to send a request, with our transport below it."""

    name = "urllib3"

    def __init__(self, api_base: str) -> None:
        super().__init__()
        self._api_base = api_base
        self._transport = Transport(UPSTREAM, api_base)

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None, **_: Any
    ) -> tuple[Any, int, Mapping[str, str]]:
        # A POST isn't repeated here: that the second try certainly wasn't executed would say nothing of the first.
        answer = self._transport.send(
            method.upper(),
            url.removeprefix(self._api_base),
            headers=headers or {},
            body=(post_data or "").encode(),
            deadline=_deadline.get(),
            repeatable=method == "get",
        )
        # In lower case the SDK doesn't find the notices that it would print.
        return answer.body, answer.status, {name.lower(): value for name, value in answer.headers.items()}

    def close(self) -> None:
        """Connections are closed with the process."""


class Stripe:
    """Calls Stripe on behalf of apps. One HTTP client serves all keys; each key has one SDK client."""

    def __init__(self, *, api_base: str, timeout_seconds: float, keys: KeyClient) -> None:
        self._api_base = api_base
        self._timeout_seconds = timeout_seconds
        self._keys = keys
        self._http = _DeadlineClient(api_base)
        self._client: Callable[[str], stripe.StripeClient] = cached(LRUCache(MAX_CLIENTS), lock=threading.Lock())(
            self._new_client
        )

    def is_live(self, app_id: str, context: CallContext) -> bool:
        """Whether the app's key opens live mode. https://docs.stripe.com/keys#test-live-modes

        :raises NoStripeKey, UpstreamError: as for `require_key`.
        """
        return self._keys.get(Provider.STRIPE, app_id, context).startswith(LIVE_KEYS)

    def require_key(self, app_id: str, context: CallContext) -> None:
        """Make sure that the app has a Stripe key.

        :raises NoStripeKey: when it has none.
        :raises UpstreamError: when key-service can't tell.
        """
        self._keys.get(Provider.STRIPE, app_id, context)

    def create(
        self,
        resource: Resource[T],
        app_id: str,
        params: Mapping[str, Any],
        *,
        idempotency_key: str,
        context: CallContext,
    ) -> T:
        """Create an object. https://docs.stripe.com/api/idempotent_requests

        :raises ObjectExists: when there is one of the id that the parameters choose.
        :raises StripeRefusal: when Stripe refuses for good.
        :raises StripeRateLimited: when it is asked too often; nothing was executed.
        :raises UpstreamError: when it wasn't executed (`executed` False), or nobody can tell (None).
        """
        call = _Call("post", resource.path, f"POST {resource.path}", params, idempotency_key)
        return _read(resource, self._call(app_id, call, context).data)

    def act(
        self,
        resource: Resource[T],
        app_id: str,
        object_id: str,
        action: str,
        params: Mapping[str, Any],
        *,
        idempotency_key: str,
        context: CallContext,
    ) -> T:
        """Do something with an object, which Stripe then shows.

        :param action: the last part of Stripe's path, such as `capture`
        :raises NoSuchObject: when there is none; Stripe isn't asked for an id that can't be one.
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for `create`.
        """
        path = f"{_path_of(resource, object_id)}/{action}"
        call = _Call("post", path, f"POST {resource.path}/{{id}}/{action}", params, idempotency_key)
        return _read(resource, self._call(app_id, call, context).data)

    def change(
        self,
        resource: Resource[T],
        app_id: str,
        object_id: str,
        params: Mapping[str, Any],
        *,
        method: str = "post",
        action: str | None = None,
        idempotency_key: str,
        context: CallContext,
    ) -> tuple[T, int]:
        """Change an object, or end it; return it, and when Stripe answered by its own clock, in seconds since 1970.

        :param method: `delete` ends it
        :param action: the last part of Stripe's path, where it isn't the object's own
        :raises NoSuchObject: when there is none; Stripe isn't asked for an id that can't be one.
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for `create`.
        """
        tail = f"/{action}" if action else ""
        path, name = f"{_path_of(resource, object_id)}{tail}", f"{method.upper()} {resource.path}/{{id}}{tail}"
        answer = self._call(app_id, _Call(method, path, name, params, idempotency_key), context)
        return _read(resource, answer.data), _date_of(answer.headers)

    def retrieve(self, resource: Resource[T], app_id: str, object_id: str, context: CallContext) -> T:
        """One object as Stripe shows it now.

        :raises NoSuchObject: when there is none; Stripe isn't asked for an id that can't be one.
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for `create`.
        """
        call = _Call("get", _path_of(resource, object_id), f"GET {resource.path}/{{id}}", {})
        return _read(resource, self._call(app_id, call, context).data)

    def retrieve_as_of(self, resource: Resource[T], app_id: str, object_id: str, context: CallContext) -> tuple[T, int]:
        """The same, and a second that had passed by Stripe's own clock when it was so: all that happened in it shows.

        :raises NoSuchObject, StripeRefusal, StripeRateLimited, UpstreamError: as for `retrieve`.
        """
        call = _Call("get", _path_of(resource, object_id), f"GET {resource.path}/{{id}}", {})
        began_at = time.monotonic()
        answer = self._call(app_id, call, context)
        took_seconds = math.ceil(time.monotonic() - began_at)
        return _read(resource, answer.data), _date_of(answer.headers) - took_seconds - 1

    def retrieve_only(self, resource: Resource[T], app_id: str, context: CallContext) -> T:
        """The one object of a kind of which an account has no other.

        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for `create`.
        """
        return _read(
            resource, self._call(app_id, _Call("get", resource.path, f"GET {resource.path}", {}), context).data
        )

    def update(
        self, resource: Resource[T], app_id: str, object_id: str, params: Mapping[str, Any], context: CallContext
    ) -> T:
        """Set fields of an object, which comes to the same however often it is done.

        :raises NoSuchObject: when there is none; Stripe isn't asked for an id that can't be one.
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for `create`.
        """
        call = _Call("post", _path_of(resource, object_id), f"POST {resource.path}/{{id}}", params)
        return _read(resource, self._call(app_id, call, context).data)

    def delete(self, resource: Resource[Any], app_id: str, object_id: str, context: CallContext) -> None:
        """Delete an object.

        :raises NoSuchObject: when there is none; Stripe isn't asked for an id that can't be one.
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for `create`.
        """
        call = _Call("delete", _path_of(resource, object_id), f"DELETE {resource.path}/{{id}}", {})
        _read(Resource(resource.path, resource.object, dict), self._call(app_id, call, context).data)

    def list(
        self,
        resource: Resource[T],
        app_id: str,
        filters: Mapping[str, Any],
        *,
        new_context: Callable[[], CallContext],
    ) -> Iterator[T]:
        """All objects that the filters let through, newest first.

        :param new_context: called before each page, since a long list takes longer than any one call may
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for `create`.
        """
        for listed in self.list_as_shown(resource, app_id, filters, new_context=new_context):
            yield _read(resource, listed)

    def find(
        self,
        resource: Resource[T],
        app_id: str,
        metadata: tuple[str, str],
        filters: Mapping[str, Any],
        *,
        new_context: Callable[[], CallContext],
    ) -> T | None:
        """The newest object whose metadata holds this key with this value, among those that the filters let through.

        :param new_context: called before each page
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for `create`.
        """
        for listed in self.list_as_shown(resource, app_id, filters, new_context=new_context):
            if _holds(listed, metadata):
                return _read(resource, listed)
        return None

    def list_as_shown(
        self,
        resource: Resource[Any],
        app_id: str,
        filters: Mapping[str, Any],
        *,
        new_context: Callable[[], CallContext],
    ) -> Iterator[object]:
        """What all pages hold, as Stripe shows it and unread: one that can't be read need not hide the others.

        https://docs.stripe.com/api/pagination

        :param new_context: called before each page
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for `create`.
        """
        pages = Resource(resource.path, "list", _read_page)
        after: dict[str, str] = {}
        while True:
            params = {**filters, "limit": PAGE_SIZE, **after}
            call = _Call("get", pages.path, f"GET {pages.path}", params)
            page = _read(pages, self._call(app_id, call, new_context()).data)
            yield from page.objects
            if page.next_after is None:
                return
            after = {"starting_after": page.next_after}

    def _call(self, app_id: str, call: _Call, context: CallContext) -> _Answer:
        """Call with the app's key; when Stripe refuses that, once more with the one that key-service has now."""
        context = context.within(self._timeout_seconds)
        key = self._keys.get(Provider.STRIPE, app_id, context)
        try:
            return self._call_until_unlocked(key, call, context)
        except StripeKeyRefused:
            self._keys.forget(Provider.STRIPE, app_id, key)
            fresh_key = self._keys.get(Provider.STRIPE, app_id, context)
            if fresh_key == key:
                raise
            return self._call_with_key(fresh_key, call, context)

    def _call_until_unlocked(self, key: str, call: _Call, context: CallContext) -> _Answer:
        """Call, and again after a pause while another request holds the object, as long as there is time."""
        for pause in LOCK_PAUSES_SECONDS:
            try:
                return self._call_with_key(key, call, context)
            except ObjectLocked:
                if context.deadline.remaining_seconds <= pause:
                    raise
            time.sleep(pause)
        return self._call_with_key(key, call, context)

    def _call_with_key(self, key: str, call: _Call, context: CallContext) -> _Answer:
        _deadline.set(context.deadline)
        with upstream_call(UPSTREAM, call.name):
            try:
                # raw_request spares the conversion to StripeObject, a third of the CPU of a call.
                answer = self._client(key).raw_request(
                    call.method, call.path, idempotency_key=call.idempotency_key, **call.params
                )
                return _Answer(answer.data, answer.headers)
            except stripe.StripeError as error:
                failure = _our_error(error)
            except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
                # The SDK trips over some answers that are JSON but nothing of Stripe's, and over deep ones.
                failure = UpstreamError(UPSTREAM, reason="answered something that is not Stripe's")
            # Outside of the handler, so that the SDK's error, which holds the body, isn't chained and logged with ours.
            raise failure

    def _new_client(self, key: str) -> stripe.StripeClient:
        return stripe.StripeClient(
            key, http_client=self._http, base_addresses={"api": self._api_base}, max_network_retries=0
        )


def require_possible_id(object_id: str) -> None:
    """Let nobody ask Stripe for an id that can't be one segment of a path.

    :raises NoSuchObject: when it can't be.
    """
    if not _SEGMENT.fullmatch(object_id):
        raise NoSuchObject("No such object", status=400, code="resource_missing")


def _path_of(resource: Resource[Any], object_id: str) -> str:
    require_possible_id(object_id)
    return f"{resource.path}/{quote(object_id, safe='')}"


def _our_error(error: stripe.StripeError) -> Exception:
    """What an answer of Stripe's means: its HTTP status decides, then its own word for the error.

    A body that can't be read changes neither; but a page that isn't there, without a word of Stripe's, isn't Stripe's
    answer about an object. https://docs.stripe.com/api/errors
    """
    status = error.http_status
    is_refusal = status in (400, 402) or (status == 404 and _told(error, "message") is not None)
    failure = _refusal_of(error) if is_refusal else _outage_of(error)
    if (seconds := _retry_after(error)) is not None and failure.retry_after_seconds is not None:
        failure.retry_after_seconds = seconds
    return failure


def _refusal_of(error: stripe.StripeError) -> ServiceError:
    """A definite refusal; or something was executed under our idempotency key, and not this."""
    if isinstance(error, stripe.IdempotencyError):
        return IdempotencyMismatch(UPSTREAM, reason="knows this idempotency key with other parameters")
    if error.http_status == 402:
        return _decline(error)
    if _told(error, "code") == "resource_missing":
        return _refusal(error, status=400, kind=NoSuchObject)
    if _told(error, "code") == "resource_already_exists":
        return _refusal(error, status=400, kind=ObjectExists)
    return _refusal(error, status=400)


def _outage_of(error: stripe.StripeError) -> ServiceError:
    status = error.http_status
    reason = f"answered {status}"
    if status == 429:
        return ObjectLocked() if _told(error, "code") == "lock_timeout" else StripeRateLimited()
    if status in (401, 403):
        return StripeKeyRefused(UPSTREAM, reason=reason, executed=False)
    if status == 409 and _told(error, "code") == "idempotency_key_in_use":
        return IdempotencyKeyExecuting(UPSTREAM, reason=reason)
    if status is not None and status >= 500 and _headers_of(error).get("idempotent-replayed") == "true":
        return ReplayedFailure(UPSTREAM, reason=f"replayed a {status}")
    if status in (409, 502, 503, 504):
        return UpstreamUnavailable(UPSTREAM, reason=reason)
    return UpstreamError(UPSTREAM, reason=reason)


def _refusal(error: stripe.StripeError, *, status: int, kind: type[StripeRefusal] = StripeRefusal) -> StripeRefusal:
    return kind(_sentence(error), status=status, code=_told(error, "code") or _unsaid_code(error))


def _decline(error: stripe.StripeError) -> CardDeclined:
    body = error.json_body.get("error") if isinstance(error.json_body, Mapping) else None
    intent = body.get("payment_intent") if isinstance(body, Mapping) else None
    return CardDeclined(
        _sentence(error),
        code=_told(error, "code") or _unsaid_code(error),
        decline_code=_told(error, "decline_code"),
        charge_id=_told(error, "charge"),
        intent=intent if isinstance(intent, Mapping) else None,
    )


def _sentence(error: stripe.StripeError) -> str:
    return redact(_told(error, "message") or "Stripe refused the request")[:MAX_MESSAGE_LENGTH]


def _unsaid_code(error: stripe.StripeError) -> str:
    """The code of a refusal for which Stripe has none: of an amount, it says so where the amount has no right form."""
    return "amount_too_large" if _told(error, "param") in ("amount", "amount_to_capture") else "invalid_request"


def _told(error: stripe.StripeError, field: str) -> str | None:
    """What Stripe's own error says in a field; the SDK's has the whole body in its message where that is no JSON."""
    value = getattr(error.error, field, None)
    return value if isinstance(value, str) and value else None


def _headers_of(error: stripe.StripeError) -> Mapping[str, Any]:
    """The answer's headers: where its body is no JSON, version 16 of the SDK hands them over in place of that."""
    found = error.headers or error.json_body
    return found if isinstance(found, Mapping) else {}


def _retry_after(error: stripe.StripeError) -> int | None:
    """The seconds after which Stripe wants to be asked again, where it says so and they are sane."""
    told = str(_headers_of(error).get("retry-after", ""))
    return int(told) if told.isascii() and told.isdigit() and 0 < int(told[:9]) <= LONGEST_RETRY_AFTER else None


def _date_of(headers: Mapping[str, Any]) -> int:
    """When Stripe answered, in seconds since 1970; by our own clock where it doesn't say.

    https://www.rfc-editor.org/rfc/rfc9110#section-6.6.1
    """
    try:
        return int(parsedate_to_datetime(str(headers.get("date"))).timestamp())
    except ValueError:
        return int(time.time())


def _read(resource: Resource[T], answer: object) -> T:
    try:
        found = cast(Mapping[str, Any], answer)
        if found["object"] != resource.object:
            raise ValueError("another object")
        return resource.read(found)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UpstreamError(UPSTREAM, reason="answered another object than was asked for") from None


def _read_page(answer: Mapping[str, Any]) -> _Page:
    objects, has_more = answer["data"], answer["has_more"]
    if not isinstance(objects, list):
        raise TypeError("not a list")
    ids = [listed["id"] for listed in objects if isinstance(listed, Mapping) and _is_id(listed.get("id"))]
    if has_more and objects and not ids:
        raise ValueError("where the next page begins can't be said")
    return _Page(objects, ids[-1] if has_more and ids else None)


def _is_id(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _holds(listed: object, metadata: tuple[str, str]) -> bool:
    key, value = metadata
    held = listed.get("metadata") if isinstance(listed, Mapping) else None
    return isinstance(held, Mapping) and held.get(key) == value
