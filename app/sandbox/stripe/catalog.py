"""Products, prices, coupons and promotion codes."""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe.account import Account, random_id
from app.sandbox.stripe.errors import StripeError, invalid, missing_parameter
from app.sandbox.stripe.money import checked_amount, checked_currency
from app.sandbox.stripe.parameters import chosen

LONGEST_REDEMPTION_SECONDS = 5 * 366 * 24 * 3600
RECURRING = {"interval_count": 1, "meter": None, "trial_period_days": None, "usage_type": "licensed"}
PRODUCT_FIELDS = ("active", "description", "images", "name", "shippable", "statement_descriptor", "unit_label", "url")


def create_product(account: Account, parameters: JsonObject) -> JsonObject:
    _refuse_existing(account, "product", parameters.get("id"))
    product = account.new("product", **chosen(parameters, "id", "metadata", *PRODUCT_FIELDS))
    account.emit("product.created", product)
    return product


@dataclass(frozen=True)
class PricedProduct:
    """A price and its product, of which `new` are still to be kept."""

    price: JsonObject
    product: JsonObject
    new: tuple[JsonObject, ...]


def create_price(account: Account, parameters: JsonObject) -> JsonObject:
    """Create a price of an existing product, or of one that `product_data` describes."""
    priced = build_price(account, parameters)
    keep(account, priced)
    return priced.price


def build_price(account: Account, parameters: JsonObject, *, path: str = "") -> PricedProduct:
    """Make a price without keeping it, as another part of the request may still be refused.

    :param path: the name of the parameter that holds these, when they are a part of another request
    """
    if ("product" in parameters) == ("product_data" in parameters):
        raise invalid(
            "You must specify either `product` or `product_data` when creating a price.", param=path or "product"
        )
    currency = checked_currency(parameters["currency"], param=_at(path, "currency"))
    amount = _unit_amount(parameters, currency, path)
    product = _product_of(account, parameters, path)
    recurring = parameters.get("recurring")
    price = account.build(
        "price",
        currency=currency,
        product=product["id"],
        unit_amount=amount,
        unit_amount_decimal=str(amount),
        type="recurring" if recurring else "one_time",
        recurring=RECURRING | recurring if recurring else None,
        **chosen(parameters, "active", "lookup_key", "metadata", "nickname", "tax_behavior"),
    )
    return PricedProduct(price, product, (product, price) if "product_data" in parameters else (price,))


def keep(account: Account, priced: PricedProduct) -> None:
    for made in priced.new:
        account.keep(made)
        account.emit(f"{made['object']}.created", made)


def _unit_amount(parameters: JsonObject, currency: str, path: str) -> int:
    if "unit_amount" in parameters:
        return checked_amount(parameters["unit_amount"], currency, param=_at(path, "unit_amount"), least=0)
    decimal = parameters.get("unit_amount_decimal")
    if decimal is None:
        raise missing_parameter(_at(path, "unit_amount"))
    if not decimal.isdigit():
        raise invalid("The sandbox has whole amounts only.", param=_at(path, "unit_amount_decimal"))
    return checked_amount(int(decimal), currency, param=_at(path, "unit_amount_decimal"), least=0)


def _product_of(account: Account, parameters: JsonObject, path: str) -> JsonObject:
    if "product_data" in parameters:
        return account.build("product", **chosen(parameters["product_data"], "metadata", *PRODUCT_FIELDS))
    return account.named("product", parameters["product"], param=_at(path, "product"))


def create_coupon(account: Account, parameters: JsonObject) -> JsonObject:
    _check_coupon(account, parameters)
    given = chosen(
        parameters,
        "id",
        "amount_off",
        "duration_in_months",
        "max_redemptions",
        "metadata",
        "name",
        "percent_off",
        "redeem_by",
    )
    currency = checked_currency(parameters["currency"]) if "amount_off" in parameters else None
    coupon = account.new("coupon", currency=currency, duration=parameters.get("duration", "once"), **given)
    account.emit("coupon.created", coupon)
    return coupon


def _check_coupon(account: Account, parameters: JsonObject) -> None:
    if ("percent_off" in parameters) == ("amount_off" in parameters):
        raise invalid("Must provide exactly one of percent_off or amount_off.", param="percent_off")
    if "amount_off" in parameters:
        if "currency" not in parameters:
            raise invalid("You must pass currency when passing amount_off", param="currency", code="parameter_missing")
        checked_amount(parameters["amount_off"], checked_currency(parameters["currency"]), param="amount_off")
    elif not 0 < parameters["percent_off"] <= 100:
        raise invalid("Invalid percent_off: must be greater than 0 and at most 100.", param="percent_off")
    if ("duration_in_months" in parameters) != (parameters.get("duration") == "repeating"):
        message = "duration_in_months is required when duration is repeating, and must not be passed otherwise."
        raise invalid(message, param="duration_in_months")
    for name in ("duration_in_months", "max_redemptions"):
        if parameters.get(name, 1) < 1:
            message = "This value must be greater than or equal to 1."
            raise invalid(message, param=name, code="parameter_invalid_integer")
    if "redeem_by" in parameters:
        _check_redeem_by(parameters["redeem_by"], now=account.clock.now())
    _refuse_existing(account, "coupon", parameters.get("id"))


def _check_redeem_by(moment: int, *, now: int) -> None:
    """https://docs.stripe.com/api/coupons/create#create_coupon-redeem_by"""
    if moment <= now:
        raise invalid("Invalid timestamp: redeem_by must be in the future.", param="redeem_by")
    if moment > now + LONGEST_REDEMPTION_SECONDS:
        raise invalid("Invalid timestamp: redeem_by can be at most 5 years in the future.", param="redeem_by")


def refresh_coupon(account: Account, coupon: JsonObject) -> None:
    """Let a coupon's `valid` say whether it can be redeemed now."""
    exhausted = coupon["max_redemptions"] is not None and coupon["times_redeemed"] >= coupon["max_redemptions"]
    overdue = coupon["redeem_by"] is not None and coupon["redeem_by"] <= account.clock.now()
    coupon["valid"] = not exhausted and not overdue


def reduction(coupon: JsonObject, subtotal: int) -> int:
    """What the coupon takes off an amount, both in the currency's smallest unit."""
    if coupon["percent_off"] is None:
        return min(int(coupon["amount_off"]), subtotal)
    exact = Decimal(subtotal) * Decimal(str(coupon["percent_off"])) / 100
    return int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def redeem(account: Account, discount: JsonObject) -> None:
    """Count a use of the coupon, and of the promotion code that it came by."""
    used = [account.objects["coupon"][discount["coupon"]]]
    if discount["promotion_code"] is not None:
        used.append(account.objects["promotion_code"][discount["promotion_code"]])
    for redeemed in used:
        redeemed["times_redeemed"] += 1
    refresh_coupon(account, used[0])


def create_promotion_code(account: Account, parameters: JsonObject) -> JsonObject:
    promotion = parameters.get("promotion")
    if promotion is None:
        raise missing_parameter("promotion")
    if "coupon" not in promotion:
        raise missing_parameter("promotion[coupon]")
    coupon = account.named("coupon", promotion["coupon"], param="promotion[coupon]")
    code = account.new(
        "promotion_code",
        promotion={"coupon": coupon["id"], "type": "coupon"},
        **{"code": random_id("", 8).upper()}
        | chosen(parameters, "active", "code", "expires_at", "max_redemptions", "metadata"),
    )
    account.emit("promotion_code.created", code)
    return code


def _refuse_existing(account: Account, resource: str, identifier: str | None) -> None:
    if identifier is not None and account.get(resource, identifier) is not None:
        message = f"{resource.title()} already exists."
        raise StripeError(400, "invalid_request_error", message, code="resource_already_exists", param="id")


def _at(path: str, name: str) -> str:
    return f"{path}[{name}]" if path else name
