"""What is sold, and what it costs."""

from collections.abc import Callable
from typing import Any, TypeVar

from app.request_context import call_context, services
from app.schemas.base import AppQuerySchema
from app.schemas.catalog import (
    CouponCreatedSchema,
    CouponCreateSchema,
    CouponSchema,
    PriceCreatedSchema,
    PriceCreateSchema,
    PriceListSchema,
    PriceSchema,
    ProductCreatedSchema,
    ProductCreateSchema,
    ProductSchema,
)
from app.schemas.payments import IdempotencyKeySchema
from app.services import catalog
from app.web import STRIPE_CODES, Blueprint

T = TypeVar("T")

blp = Blueprint("catalog", __name__, description="What is sold, and what it costs.")

CREATE_ERRORS = (400, 401, 402, 403, 409, 413, 415, 422, 429, 502, 503, 504, *STRIPE_CODES)
SHOW_ERRORS = (400, 401, 403, 404, 429, 502, 503, 504, *STRIPE_CODES)


@blp.route("/products/create", methods=["POST"])
@blp.arguments(ProductCreateSchema)
@blp.arguments(IdempotencyKeySchema, location="headers")
@blp.response(200, ProductCreatedSchema)
@blp.errors(*CREATE_ERRORS)
def create_product(body: dict[str, Any], headers: dict[str, str]) -> Any:
    """Create a product, or show the one that has its id.

    Stripe remembers an Idempotency-Key for a day.
    """
    return _ask(body["app_id"], catalog.create_product, body, idempotency_key=headers.get("idempotency_key"))


@blp.route("/products/<product_id>")
@blp.arguments(AppQuerySchema, location="query")
@blp.response(200, ProductSchema)
@blp.errors(*SHOW_ERRORS)
def get_product(query: dict[str, str], product_id: str) -> Any:
    """Show a product."""
    return _ask(query["app_id"], catalog.find_product, product_id, **query)


@blp.route("/prices/create", methods=["POST"])
@blp.arguments(PriceCreateSchema)
@blp.arguments(IdempotencyKeySchema, location="headers")
@blp.response(200, PriceCreatedSchema)
@blp.errors(*CREATE_ERRORS)
def create_price(body: dict[str, Any], headers: dict[str, str]) -> Any:
    """Create a price of a product.

    Stripe remembers an Idempotency-Key for a day.
    """
    return _ask(body["app_id"], catalog.create_price, body, idempotency_key=headers.get("idempotency_key"))


@blp.route("/prices/<price_id>")
@blp.arguments(AppQuerySchema, location="query")
@blp.response(200, PriceSchema)
@blp.errors(*SHOW_ERRORS)
def get_price(query: dict[str, str], price_id: str) -> Any:
    """Show a price."""
    return _ask(query["app_id"], catalog.find_price, price_id, **query)


@blp.route("/prices/by-product/<product_id>")
@blp.arguments(AppQuerySchema, location="query")
@blp.response(200, PriceListSchema)
@blp.errors(*SHOW_ERRORS)
def list_prices_by_product(query: dict[str, str], product_id: str) -> Any:
    """List all active prices of a product."""
    return {"prices": _ask(query["app_id"], catalog.list_prices, product_id, **query)}


@blp.route("/coupons/create", methods=["POST"])
@blp.arguments(CouponCreateSchema)
@blp.arguments(IdempotencyKeySchema, location="headers")
@blp.response(200, CouponCreatedSchema)
@blp.errors(*CREATE_ERRORS)
def create_coupon(body: dict[str, Any], headers: dict[str, str]) -> Any:
    """Create a coupon, or show the one that has its id.

    Stripe remembers an Idempotency-Key for a day.
    """
    return _ask(body["app_id"], catalog.create_coupon, body, idempotency_key=headers.get("idempotency_key"))


@blp.route("/coupons/<coupon_id>")
@blp.arguments(AppQuerySchema, location="query")
@blp.response(200, CouponSchema)
@blp.errors(*SHOW_ERRORS)
def get_coupon(query: dict[str, str], coupon_id: str) -> Any:
    """Show a coupon."""
    return _ask(query["app_id"], catalog.find_coupon, coupon_id, **query)


def _ask(place_for: str, use_case: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Every route here waits for Stripe, so it takes one of its app's places for that."""
    with services().upstream_limit.hold(place_for):
        return use_case(*arguments, **options, services=services(), context=call_context())
