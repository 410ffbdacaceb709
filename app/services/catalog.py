"""The catalog: products, prices and coupons. Stripe keeps them; the service keeps nothing of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeVar

from stripe.params import CouponCreateParams, PriceCreateParams, PriceListParams, ProductCreateParams

from app.errors import NotFound, UpstreamError
from app.services import Services
from app.services.callers_key import answering_for_the_callers_key, stripe_key
from app.services.events.stripe_object import cents_of, currency_of, id_of, optional, required, text_of
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import (
    UPSTREAM,
    NoSuchObject,
    ObjectExists,
    Resource,
    require_possible_id,
)

T = TypeVar("T")

MAX_PRICES = 10_000

# What Stripe calls by the same names as we do.
_PRODUCT_FIELDS: Final = ("id", "name", "description", "metadata")
_COUPON_FIELDS: Final = (
    "id",
    "name",
    "percent_off",
    "duration",
    "duration_in_months",
    "max_redemptions",
    "metadata",
)


@dataclass(frozen=True, kw_only=True)
class Product:
    """What we use of Stripe's product."""

    id: str
    name: str
    description: str | None

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> "Product":
        """:raises KeyError, TypeError, ValueError: when it isn't one."""
        return cls(
            id=required(id_of(answer["id"])),
            name=required(text_of(answer["name"])),
            description=text_of(answer.get("description")),
        )


@dataclass(frozen=True, kw_only=True)
class Price:
    """What we use of Stripe's price. The amount is in the currency's smallest unit; a tiered price has none."""

    id: str
    product_id: str
    unit_amount: int | None
    currency: str
    active: bool

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> "Price":
        """:raises KeyError, TypeError, ValueError: when it isn't one."""
        return cls(
            id=required(id_of(answer["id"])),
            product_id=required(id_of(answer["product"])),
            # It may be negative: the price of a credit is.
            unit_amount=optional(int, answer.get("unit_amount")),
            currency=required(currency_of(answer["currency"])),
            active=bool(answer["active"]),
        )


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

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> "Coupon":
        """:raises KeyError, TypeError, ValueError: when it isn't one."""
        return cls(
            id=required(id_of(answer["id"])),
            name=text_of(answer.get("name")),
            percent_off=optional(float, answer.get("percent_off")),
            amount_off=optional(cents_of, answer.get("amount_off")),
            currency=optional(currency_of, answer.get("currency")),
            duration=required(text_of(answer["duration"])),
            valid=bool(answer["valid"]),
        )


# https://docs.stripe.com/api/products, /prices, /coupons
PRODUCTS = Resource("/v1/products", "product", Product.read)
PRICES = Resource("/v1/prices", "price", Price.read)
COUPONS = Resource("/v1/coupons", "coupon", Coupon.read)


@contextmanager
def _not_found(sentence: str) -> Iterator[None]:
    try:
        yield
    except NoSuchObject:
        raise NotFound(sentence) from None


def create_product(
    body: Mapping[str, Any], *, idempotency_key: str | None, services: Services, context: CallContext
) -> Product:
    """Create a product, or return the one that has its id, as it is.

    :raises IdempotencyKeyReused, IdempotencyKeyInUse: when another request has, or had, the caller's key.
    :raises ServiceError: as the contract's table of errors says.
    """
    params = _product_params(body)
    return _create(
        PRODUCTS, body["app_id"], params, idempotency_key=idempotency_key, services=services, context=context
    )


def create_price(
    body: Mapping[str, Any], *, idempotency_key: str | None, services: Services, context: CallContext
) -> Price:
    """Create a price of a product.

    :raises IdempotencyKeyReused, IdempotencyKeyInUse: when another request has, or had, the caller's key.
    :raises ServiceError: as the contract's table of errors says.
    """
    params = _price_params(body)
    return _create(PRICES, body["app_id"], params, idempotency_key=idempotency_key, services=services, context=context)


def create_coupon(
    body: Mapping[str, Any], *, idempotency_key: str | None, services: Services, context: CallContext
) -> Coupon:
    """Create a coupon, or return the one that has its id, as it is.

    :raises IdempotencyKeyReused, IdempotencyKeyInUse: when another request has, or had, the caller's key.
    :raises ServiceError: as the contract's table of errors says.
    """
    params = _coupon_params(body)
    return _create(COUPONS, body["app_id"], params, idempotency_key=idempotency_key, services=services, context=context)


@_not_found("Product not found")
def find_product(product_id: str, *, app_id: str, services: Services, context: CallContext) -> Product:
    """A product of the app's.

    :raises NotFound: when there is no such product.
    :raises ServiceError: as the contract's table of errors says.
    """
    return services.stripe.retrieve(PRODUCTS, app_id, product_id, context)


@_not_found("Price not found")
def find_price(price_id: str, *, app_id: str, services: Services, context: CallContext) -> Price:
    """A price of the app's.

    :raises NotFound: when there is no such price.
    :raises ServiceError: as the contract's table of errors says.
    """
    return services.stripe.retrieve(PRICES, app_id, price_id, context)


@_not_found("Product not found")
def list_prices(product_id: str, *, app_id: str, services: Services, context: CallContext) -> list[Price]:
    """All active prices of a product, newest first.

    :raises NotFound: when Stripe says that there is no such product.
    :raises UpstreamError: also when there are more than `MAX_PRICES`.
    :raises ServiceError: as the contract's table of errors says.
    """
    require_possible_id(product_id)
    filters: PriceListParams = {"product": product_id, "active": True}
    prices = services.stripe.list(PRICES, app_id, filters, new_context=lambda: context)
    listed = list(islice(prices, MAX_PRICES + 1))
    if len(listed) > MAX_PRICES:
        too_many = f"{UPSTREAM} lists more than {MAX_PRICES} active prices of this product"
        raise UpstreamError(UPSTREAM, reason="the list is too long", sentence=too_many)
    return listed


@_not_found("Coupon not found")
def find_coupon(coupon_id: str, *, app_id: str, services: Services, context: CallContext) -> Coupon:
    """A coupon of the app's.

    :raises NotFound: when there is no such coupon.
    :raises ServiceError: as the contract's table of errors says.
    """
    return services.stripe.retrieve(COUPONS, app_id, coupon_id, context)


@answering_for_the_callers_key()
def _create(
    resource: Resource[T],
    app_id: str,
    params: Mapping[str, Any],
    *,
    idempotency_key: str | None,
    services: Services,
    context: CallContext,
) -> T:
    """Create an object, or return the one that has the id in the parameters."""
    key = stripe_key(resource.path.removeprefix("/v1/"), app_id, idempotency_key)
    try:
        return services.stripe.create(resource, app_id, params, idempotency_key=key, context=context)
    except ObjectExists:
        if "id" not in params:
            raise
        return services.stripe.retrieve(resource, app_id, params["id"], context)


def _product_params(body: Mapping[str, Any]) -> ProductCreateParams:
    params: ProductCreateParams = {"name": body["name"]}
    for name in _PRODUCT_FIELDS:
        if name in body:
            params[name] = body[name]
    return params


def _price_params(body: Mapping[str, Any]) -> PriceCreateParams:
    params: PriceCreateParams = {
        "product": body["product_id"],
        "unit_amount": body["unit_amount_in_cents"],
        "currency": body["currency"],
        "metadata": body.get("metadata", {}),
    }
    if "recurring" in body:
        params["recurring"] = body["recurring"]
    return params


def _coupon_params(body: Mapping[str, Any]) -> CouponCreateParams:
    params: CouponCreateParams = {}
    for name in _COUPON_FIELDS:
        if name in body:
            params[name] = body[name]
    # Stripe takes a currency only with an amount.
    if "amount_off_in_cents" in body:
        params |= {"amount_off": body["amount_off_in_cents"], "currency": body["currency"]}
    if "redeem_by" in body:
        params["redeem_by"] = int(body["redeem_by"].timestamp())
    return params
