"""Stripe: every call with the key of the app that it is for, a total deadline, and our own errors."""

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar, cast
from urllib.parse import quote

import stripe
from cachetools import LRUCache, cached
from stripe.params import (
    CouponCreateParams,
    PaymentIntentCreateParams,
    PriceCreateParams,
    PriceListParams,
    ProductCreateParams,
)
from stripe.params.checkout import SessionCreateParams

from app.errors import StripeRateLimited, StripeRefusal, UpstreamError, UpstreamUnavailable
from app.logs import redact
from app.metrics import upstream_call
from app.services.upstreams.call_context import CallContext, Deadline
from app.services.upstreams.http import Transport
from app.services.upstreams.keys import KeyClient, Provider

UPSTREAM = "Stripe"
MAX_CLIENTS = 1_000
PAGE_SIZE = 100
MAX_PRICES = 10_000
MAX_MESSAGE_LENGTH = 500
MAX_TEXT_LENGTH = 255
# Of a product. https://github.com/stripe/openapi
MAX_NAME_LENGTH = 5_000
MAX_URL_LENGTH = 10_000

T = TypeVar("T")

_deadline: ContextVar[Deadline] = ContextVar("stripe_deadline")
# What can be one segment of a path: any other id would lead to another route of Stripe's.
_SEGMENT = re.compile(r"(?!\.+$)[^/\x00]+")
# What an object's id follows in a path; no other resource that is used has two words.
_RESOURCE = re.compile(r"/v1/(checkout/sessions|[a-z_]+)")

# The SDK logs whole bodies at DEBUG, and a request's URL at INFO; the first hold secrets.
logging.getLogger("stripe").setLevel(logging.WARNING)
stripe.enable_telemetry = False


@dataclass(frozen=True, kw_only=True)
class CheckoutSession:
    """What we use of Stripe's checkout session. Amounts are in the currency's smallest unit."""

    id: str
    url: str | None
    payment_intent_id: str | None
    subscription_id: str | None
    customer_id: str | None
    amount_total: int | None
    currency: str | None


@dataclass(frozen=True, kw_only=True)
class PaymentIntent:
    """What we use of Stripe's payment intent. The amount is in the currency's smallest unit."""

    id: str
    client_secret: str
    status: str
    amount: int
    currency: str
    customer_id: str | None


@dataclass(frozen=True, kw_only=True)
class Product:
    """What we use of Stripe's product."""

    id: str
    name: str
    description: str | None


@dataclass(frozen=True, kw_only=True)
class Price:
    """What we use of Stripe's price. The amount is in the currency's smallest unit; a tiered price has none."""

    id: str
    product_id: str
    unit_amount: int | None
    currency: str
    active: bool


@dataclass(frozen=True, kw_only=True)
class Coupon:
    """What we use of Stripe's coupon. It takes off a percentage, or an amount in the currency's smallest unit."""

    id: str
    name: str | None
    percent_off: float | None
    amount_off: int | None
    currency: str | None
    duration: str
    valid: bool


@dataclass(frozen=True)
class _Page:
    objects: list[dict[str, Any]]
    has_more: bool


class NoSuchObject(StripeRefusal):
    """Stripe has no object of that id."""


class ObjectExists(StripeRefusal):
    """Stripe has another object of that id."""


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

    name = "http.client"

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

    def require_key(self, app_id: str, context: CallContext) -> None:
        """Make sure that the app has a Stripe key.

        :raises NoStripeKey: when it has none.
        :raises UpstreamError: when key-service can't tell.
        """
        self._keys.get(Provider.STRIPE, app_id, context)

    def create_checkout_session(
        self, app_id: str, params: SessionCreateParams, *, idempotency_key: str, context: CallContext
    ) -> CheckoutSession:
        """https://docs.stripe.com/api/checkout/sessions/create

        :raises StripeRefusal: when Stripe refuses for good.
        :raises StripeRateLimited: when it is asked too often; nothing was executed.
        :raises UpstreamError: when it wasn't executed (`executed` False), or nobody can tell (None).
        """
        answer = self._call(app_id, "post", "/v1/checkout/sessions", params, idempotency_key, context)
        return _read(_checkout_session, answer)

    def create_payment_intent(
        self, app_id: str, params: PaymentIntentCreateParams, *, idempotency_key: str, context: CallContext
    ) -> PaymentIntent:
        """https://docs.stripe.com/api/payment_intents/create

        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for a checkout session.
        """
        answer = self._call(app_id, "post", "/v1/payment_intents", params, idempotency_key, context)
        return _read(_payment_intent, answer)

    def retrieve_payment_intent(self, app_id: str, payment_intent_id: str, context: CallContext) -> PaymentIntent:
        """https://docs.stripe.com/api/payment_intents/retrieve

        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for a checkout session.
        """
        answer = self._call(app_id, "get", f"/v1/payment_intents/{payment_intent_id}", {}, None, context)
        return _read(_payment_intent, answer)

    def create_product(
        self, app_id: str, params: ProductCreateParams, *, idempotency_key: str, context: CallContext
    ) -> Product:
        """https://docs.stripe.com/api/products/create

        :raises ObjectExists: when there is one of that id.
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for a checkout session.
        """
        return _read(_product, self._call(app_id, "post", "/v1/products", params, idempotency_key, context))

    def retrieve_product(self, app_id: str, product_id: str, context: CallContext) -> Product:
        """https://docs.stripe.com/api/products/retrieve

        :raises NoSuchObject: when there is none.
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for a checkout session.
        """
        return _read(_product, self._retrieve(app_id, "products", product_id, context))

    def create_price(
        self, app_id: str, params: PriceCreateParams, *, idempotency_key: str, context: CallContext
    ) -> Price:
        """https://docs.stripe.com/api/prices/create

        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for a checkout session.
        """
        return _read(_price, self._call(app_id, "post", "/v1/prices", params, idempotency_key, context))

    def retrieve_price(self, app_id: str, price_id: str, context: CallContext) -> Price:
        """https://docs.stripe.com/api/prices/retrieve

        :raises NoSuchObject: when there is none.
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for a checkout session.
        """
        return _read(_price, self._retrieve(app_id, "prices", price_id, context))

    def list_active_prices(self, app_id: str, product_id: str, context: CallContext) -> list[Price]:
        """All active prices of a product, newest first. https://docs.stripe.com/api/prices/list

        :raises NoSuchObject: when Stripe says that there is no such product.
        :raises UpstreamError: also when there are more than `MAX_PRICES`.
        :raises StripeRefusal, StripeRateLimited: as for a checkout session.
        """
        _require_possible(product_id)
        filters: PriceListParams = {"product": product_id, "active": True}
        prices = self.list_objects(app_id, "/v1/prices", filters, new_context=lambda: context)
        listed = [_read(_price, price) for price in islice(prices, MAX_PRICES + 1)]
        if len(listed) > MAX_PRICES:
            too_many = f"{UPSTREAM} lists more than {MAX_PRICES} active prices of this product"
            raise UpstreamError(UPSTREAM, reason="the list is too long", sentence=too_many)
        return listed

    def create_coupon(
        self, app_id: str, params: CouponCreateParams, *, idempotency_key: str, context: CallContext
    ) -> Coupon:
        """https://docs.stripe.com/api/coupons/create

        :raises ObjectExists: when there is one of that id.
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for a checkout session.
        """
        return _read(_coupon, self._call(app_id, "post", "/v1/coupons", params, idempotency_key, context))

    def retrieve_coupon(self, app_id: str, coupon_id: str, context: CallContext) -> Coupon:
        """https://docs.stripe.com/api/coupons/retrieve

        :raises NoSuchObject: when there is none.
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for a checkout session.
        """
        return _read(_coupon, self._retrieve(app_id, "coupons", coupon_id, context))

    def find_checkout_session(
        self, app_id: str, payment_id: str, *, created_after: datetime, new_context: Callable[[], CallContext]
    ) -> CheckoutSession | None:
        """The session that carries a payment's id in its metadata, looked for among those made since a time.

        :param new_context: called before each page
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for creating one.
        """
        made = self._find_made(app_id, "/v1/checkout/sessions", payment_id, created_after, new_context)
        return None if made is None else _read(_checkout_session, made)

    def find_payment_intent(
        self, app_id: str, payment_id: str, *, created_after: datetime, new_context: Callable[[], CallContext]
    ) -> PaymentIntent | None:
        """The intent that carries a payment's id in its metadata, looked for among those made since a time.

        :param new_context: called before each page
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for creating one.
        """
        made = self._find_made(app_id, "/v1/payment_intents", payment_id, created_after, new_context)
        return None if made is None else _read(_payment_intent, made)

    def list_objects(
        self, app_id: str, path: str, filters: Mapping[str, Any], *, new_context: Callable[[], CallContext]
    ) -> Iterator[dict[str, Any]]:
        """All objects of one of Stripe's lists, newest first. https://docs.stripe.com/api/pagination

        :param path: such as `/v1/events`
        :param new_context: called before each page, since a long list takes longer than any one call may
        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for creating a checkout session.
        """
        after: dict[str, str] = {}
        while True:
            params = {**filters, "limit": PAGE_SIZE, **after}
            page = _read(_page, self._call(app_id, "get", path, params, None, new_context()))
            yield from page.objects
            if not (page.has_more and page.objects):
                return
            after = {"starting_after": page.objects[-1]["id"]}

    def retrieve_object(self, app_id: str, path: str, context: CallContext) -> dict[str, Any]:
        """One object as Stripe shows it now.

        :raises StripeRefusal, StripeRateLimited, UpstreamError: as for creating a checkout session.
        """
        return _read(_any_object, self._call(app_id, "get", path, {}, None, context))

    def _retrieve(self, app_id: str, resource: str, object_id: str, context: CallContext) -> object:
        _require_possible(object_id)
        return self._call(app_id, "get", f"/v1/{resource}/{quote(object_id, safe='')}", {}, None, context)

    def _find_made(
        self, app_id: str, path: str, payment_id: str, created_after: datetime, new_context: Callable[[], CallContext]
    ) -> dict[str, Any] | None:
        filters = {"created": {"gte": int(created_after.timestamp())}}
        for made in self.list_objects(app_id, path, filters, new_context=new_context):
            if (made.get("metadata") or {}).get("paymentId") == payment_id:
                return made
        return None

    def _call(
        self,
        app_id: str,
        method: str,
        path: str,
        params: Mapping[str, Any],
        idempotency_key: str | None,
        context: CallContext,
    ) -> object:
        """Call with the app's key; when Stripe refuses that, once more with the one that key-service has now."""
        context = context.within(self._timeout_seconds)
        key = self._keys.get(Provider.STRIPE, app_id, context)
        try:
            return self._call_with_key(key, method, path, params, idempotency_key, context)
        except StripeKeyRefused:
            self._keys.forget(Provider.STRIPE, app_id, key)
            fresh_key = self._keys.get(Provider.STRIPE, app_id, context)
            if fresh_key == key:
                raise
            return self._call_with_key(fresh_key, method, path, params, idempotency_key, context)

    def _call_with_key(
        self,
        key: str,
        method: str,
        path: str,
        params: Mapping[str, Any],
        idempotency_key: str | None,
        context: CallContext,
    ) -> object:
        _deadline.set(context.deadline)
        with upstream_call(UPSTREAM, _call_name(method, path)):
            try:
                # raw_request spares the conversion to StripeObject, a third of the CPU of a call.
                return self._client(key).raw_request(method, path, idempotency_key=idempotency_key, **params).data
            except stripe.StripeError as error:
                failure = _our_error(error)
            except (AttributeError, KeyError, TypeError, ValueError):
                # The SDK trips over some answers that are JSON but nothing of Stripe's.
                failure = UpstreamError(UPSTREAM, reason="answered something that is not Stripe's")
            # Outside of the handler, so that the SDK's error, which holds the body, isn't chained and logged with ours.
            raise failure

    def _new_client(self, key: str) -> stripe.StripeClient:
        return stripe.StripeClient(
            key, http_client=self._http, base_addresses={"api": self._api_base}, max_network_retries=0
        )


def _call_name(method: str, path: str) -> str:
    """The call without ids: `GET /v1/payment_intents/{id}`."""
    resource = _RESOURCE.match(path)
    if resource is None:
        raise ValueError("no path of Stripe's")
    return f"{method.upper()} {resource[0]}{'' if resource[0] == path else '/{id}'}"


def _our_error(error: stripe.StripeError) -> Exception:
    status = error.http_status
    reason = f"answered {status}"
    match error:
        case stripe.CardError():
            return _refusal(error, status=402)
        case stripe.IdempotencyError():
            return IdempotencyMismatch(UPSTREAM, reason="knows this idempotency key with other parameters")
        case stripe.RateLimitError():
            return StripeRateLimited()
        case stripe.InvalidRequestError(code="resource_missing"):
            return _refusal(error, status=400, kind=NoSuchObject)
        case stripe.InvalidRequestError(code="resource_already_exists"):
            return _refusal(error, status=400, kind=ObjectExists)
        case stripe.InvalidRequestError():
            return _refusal(error, status=400)
        case stripe.AuthenticationError() | stripe.PermissionError():
            return StripeKeyRefused(UPSTREAM, reason=reason, executed=False)
        case stripe.APIError(http_status=409, error=stripe.ErrorObject(code="idempotency_key_in_use")):
            return IdempotencyKeyExecuting(UPSTREAM, reason=reason)
    if status is not None and status >= 500 and (error.headers or {}).get("idempotent-replayed") == "true":
        return ReplayedFailure(UPSTREAM, reason=f"replayed a {status}")
    if status in (409, 502, 503, 504):
        return UpstreamUnavailable(UPSTREAM, reason=reason)
    return UpstreamError(UPSTREAM, reason=reason)


def _refusal(error: stripe.StripeError, *, status: int, kind: type[StripeRefusal] = StripeRefusal) -> StripeRefusal:
    message = error.user_message if isinstance(error.user_message, str) else "Stripe refused the request"
    code = error.code if isinstance(error.code, str) and error.code else "invalid_request"
    return kind(redact(message)[:MAX_MESSAGE_LENGTH], status=status, code=code)


def _read(parse: Callable[[dict[str, Any]], T], answer: object) -> T:
    try:
        return parse(cast(dict[str, Any], answer))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UpstreamError(UPSTREAM, reason="answered another object than was asked for") from None


def _page(answer: dict[str, Any]) -> _Page:
    _require(answer, "list")
    objects = answer["data"]
    for listed in objects:
        _text(listed["id"])
    return _Page(objects, bool(answer["has_more"]))


def _any_object(answer: dict[str, Any]) -> dict[str, Any]:
    _text(answer["object"])
    return answer


def _checkout_session(answer: dict[str, Any]) -> CheckoutSession:
    _require(answer, "checkout.session")
    return CheckoutSession(
        id=_text(answer["id"]),
        url=None if answer.get("url") is None else _text(answer["url"], at_most=MAX_URL_LENGTH),
        payment_intent_id=_id_of(answer.get("payment_intent")),
        subscription_id=_id_of(answer.get("subscription")),
        customer_id=_id_of(answer.get("customer")),
        amount_total=None if answer.get("amount_total") is None else _cents(answer["amount_total"]),
        currency=None if answer.get("currency") is None else _currency(answer["currency"]),
    )


def _payment_intent(answer: dict[str, Any]) -> PaymentIntent:
    _require(answer, "payment_intent")
    return PaymentIntent(
        id=_text(answer["id"]),
        client_secret=_text(answer["client_secret"]),
        status=_text(answer["status"]),
        amount=_cents(answer["amount"]),
        currency=_currency(answer["currency"]),
        customer_id=_id_of(answer.get("customer")),
    )


def _product(answer: dict[str, Any]) -> Product:
    _require(answer, "product")
    name = _text(answer["name"], at_most=MAX_NAME_LENGTH)
    return Product(id=_text(answer["id"]), name=name, description=answer.get("description"))


def _price(answer: dict[str, Any]) -> Price:
    _require(answer, "price")
    return Price(
        id=_text(answer["id"]),
        product_id=_text(_id_of(answer["product"])),
        unit_amount=_optional(int, answer.get("unit_amount")),
        currency=_text(answer["currency"]),
        active=bool(answer["active"]),
    )


def _coupon(answer: dict[str, Any]) -> Coupon:
    _require(answer, "coupon")
    return Coupon(
        id=_text(answer["id"]),
        name=answer.get("name"),
        percent_off=_optional(float, answer.get("percent_off")),
        amount_off=_optional(int, answer.get("amount_off")),
        currency=answer.get("currency"),
        duration=_text(answer["duration"]),
        valid=bool(answer["valid"]),
    )


def _require_possible(object_id: str) -> None:
    """Ask Stripe for no id that can't be one segment of a path.

    :raises NoSuchObject: when it can't be.
    """
    if not _SEGMENT.fullmatch(object_id):
        raise NoSuchObject("No such object", status=400, code="resource_missing")


def _require(answer: dict[str, Any], kind: str) -> None:
    if answer["object"] != kind:
        raise ValueError(f"not a {kind}")


def _text(value: object, *, at_most: int = MAX_TEXT_LENGTH) -> str:
    """A string that a column can take."""
    if not (isinstance(value, str) and 0 < len(value) <= at_most and "\x00" not in value):
        raise TypeError("not a usable string")
    value.encode()
    return value


def _cents(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise TypeError("not an amount")
    return value


def _currency(value: object) -> str:
    return _text(value, at_most=3)


def _optional(read: Callable[[Any], T], value: Any) -> T | None:
    return None if value is None else read(value)


def _id_of(reference: Any) -> str | None:
    """The id of what a field refers to, whether it holds the id or the expanded object."""
    return None if reference is None else _text(reference if isinstance(reference, str) else reference["id"])
