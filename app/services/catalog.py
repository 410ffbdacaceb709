"""The catalog: products, prices and coupons. Stripe keeps them; the service keeps nothing of them."""

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from stripe.params import CouponCreateParams, PriceCreateParams, ProductCreateParams

from app.errors import IdempotencyKeyInUse, IdempotencyKeyReused, NotFound
from app.services import Services
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import (
    Coupon,
    IdempotencyKeyExecuting,
    IdempotencyMismatch,
    NoSuchObject,
    ObjectExists,
    Price,
    Product,
)

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


@contextmanager
def _answering_for_the_callers_key() -> Iterator[None]:
    """Tell in the caller's terms what Stripe says of the idempotency key, which was made from the caller's."""
    try:
        yield
    except IdempotencyMismatch:
        raise IdempotencyKeyReused from None
    except IdempotencyKeyExecuting:
        raise IdempotencyKeyInUse from None


@contextmanager
def _not_found(sentence: str) -> Iterator[None]:
    try:
        yield
    except NoSuchObject:
        raise NotFound(sentence) from None


@_answering_for_the_callers_key()
def create_product(
    body: Mapping[str, Any], *, idempotency_key: str | None, services: Services, context: CallContext
) -> Product:
    """Create a product, or return the one that has its id, as it is.

    :raises IdempotencyKeyReused, IdempotencyKeyInUse: when another request has, or had, the caller's key.
    :raises ServiceError: as the contract's table of errors says.
    """
    app_id, params = body["app_id"], _product_params(body)
    stripe_key = _stripe_key("products", app_id, idempotency_key)
    try:
        return services.stripe.create_product(app_id, params, idempotency_key=stripe_key, context=context)
    except ObjectExists:
        if "id" not in body:
            raise
        return services.stripe.retrieve_product(app_id, body["id"], context)


@_answering_for_the_callers_key()
def create_price(
    body: Mapping[str, Any], *, idempotency_key: str | None, services: Services, context: CallContext
) -> Price:
    """Create a price of a product.

    :raises IdempotencyKeyReused, IdempotencyKeyInUse: when another request has, or had, the caller's key.
    :raises ServiceError: as the contract's table of errors says.
    """
    app_id, params = body["app_id"], _price_params(body)
    stripe_key = _stripe_key("prices", app_id, idempotency_key)
    return services.stripe.create_price(app_id, params, idempotency_key=stripe_key, context=context)


@_answering_for_the_callers_key()
def create_coupon(
    body: Mapping[str, Any], *, idempotency_key: str | None, services: Services, context: CallContext
) -> Coupon:
    """Create a coupon, or return the one that has its id, as it is.

    :raises IdempotencyKeyReused, IdempotencyKeyInUse: when another request has, or had, the caller's key.
    :raises ServiceError: as the contract's table of errors says.
    """
    app_id, params = body["app_id"], _coupon_params(body)
    stripe_key = _stripe_key("coupons", app_id, idempotency_key)
    try:
        return services.stripe.create_coupon(app_id, params, idempotency_key=stripe_key, context=context)
    except ObjectExists:
        if "id" not in body:
            raise
        return services.stripe.retrieve_coupon(app_id, body["id"], context)


@_not_found("Product not found")
def find_product(product_id: str, *, app_id: str, services: Services, context: CallContext) -> Product:
    """A product of the app's.

    :raises NotFound: when there is no such product.
    :raises ServiceError: as the contract's table of errors says.
    """
    return services.stripe.retrieve_product(app_id, product_id, context)


@_not_found("Price not found")
def find_price(price_id: str, *, app_id: str, services: Services, context: CallContext) -> Price:
    """A price of the app's.

    :raises NotFound: when there is no such price.
    :raises ServiceError: as the contract's table of errors says.
    """
    return services.stripe.retrieve_price(app_id, price_id, context)


@_not_found("Product not found")
def list_prices(product_id: str, *, app_id: str, services: Services, context: CallContext) -> list[Price]:
    """All active prices of a product, newest first.

    :raises NotFound: when Stripe says that there is no such product.
    :raises ServiceError: as the contract's table of errors says.
    """
    return services.stripe.list_active_prices(app_id, product_id, context)


@_not_found("Coupon not found")
def find_coupon(coupon_id: str, *, app_id: str, services: Services, context: CallContext) -> Coupon:
    """A coupon of the app's.

    :raises NotFound: when there is no such coupon.
    :raises ServiceError: as the contract's table of errors says.
    """
    return services.stripe.retrieve_coupon(app_id, coupon_id, context)


def _stripe_key(resource: str, app_id: str, idempotency_key: str | None) -> str:
    """The idempotency key for Stripe: the caller's, scoped to what is made and to the app, or a fresh one.

    Several apps may have one Stripe account. None of the parts can hold a line end, so that no two scopes meet; the
    hash keeps within the 255 characters that Stripe takes. https://docs.stripe.com/api/idempotent_requests
    """
    if idempotency_key is None:
        return str(uuid.uuid4())
    scoped = "\n".join((resource, app_id, idempotency_key))
    return f"catalog-{hashlib.sha256(scoped.encode()).hexdigest()}"


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
