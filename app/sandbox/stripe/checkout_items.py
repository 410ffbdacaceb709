"""What a checkout session is for: its lines, their prices and the discounts."""

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe import catalog
from app.sandbox.stripe.account import Account
from app.sandbox.stripe.catalog import PricedProduct
from app.sandbox.stripe.errors import invalid

MAX_QUANTITY = 999_999


def read(account: Account, parameters: JsonObject) -> tuple[list[PricedProduct], list[JsonObject]]:
    """Return the prices of the lines, of which new ones aren't kept yet, and the lines.

    :raises StripeError: when a line has no price, or they don't go together
    """
    priced = [_price(account, item, f"line_items[{at}]") for at, item in enumerate(parameters["line_items"])]
    _check_prices([each.price for each in priced], parameters["mode"])
    has_trial = "trial_period_days" in parameters.get("subscription_data", {})
    items = [
        _line_item(account, item, each, is_free=has_trial and each.price["recurring"] is not None)
        for item, each in zip(parameters["line_items"], priced, strict=True)
    ]
    return priced, items


def amounts(account: Account, items: list[JsonObject], discounts: list[JsonObject]) -> tuple[int, int]:
    """What the items cost, and what the discounts take off it."""
    subtotal = sum(item["amount_subtotal"] for item in items)
    return subtotal, sum(catalog.reduction(account.objects["coupon"][given["coupon"]], subtotal) for given in discounts)


def _price(account: Account, item: JsonObject, path: str) -> PricedProduct:
    if ("price" in item) == ("price_data" in item):
        raise invalid("You must specify either `price` or `price_data` for each line item.", param=path)
    if item.get("quantity") is None:
        raise invalid(f"Quantity is required. Add `quantity` to `{path}`", param=f"{path}[quantity]")
    if not 1 <= item["quantity"] <= MAX_QUANTITY:
        message = f"This value must be between 1 and {MAX_QUANTITY}."
        raise invalid(message, param=f"{path}[quantity]", code="parameter_invalid_integer")
    if "price_data" in item:
        return catalog.build_price(account, item["price_data"], path=f"{path}[price_data]")
    price = account.named("price", item["price"], param=f"{path}[price]")
    if not price["active"]:
        message = "The price specified is inactive. This field only accepts active prices."
        raise invalid(message, param=f"{path}[price]")
    return PricedProduct(price, account.objects["product"][price["product"]], new=())


def _check_prices(prices: list[JsonObject], mode: str) -> None:
    recurring = [price["recurring"] for price in prices if price["recurring"]]
    if len({price["currency"] for price in prices}) > 1:
        raise invalid("All line items must have the same currency.", param="line_items")
    if mode == "payment" and recurring:
        raise invalid(
            "You specified `payment` mode but passed a recurring price. Either switch to `subscription` mode or use "
            "only one-time prices.",
            param="line_items",
        )
    if mode == "subscription" and not recurring:
        message = "You must provide at least one recurring price in `subscription` mode when using prices."
        raise invalid(message, param="line_items")
    if len({(terms["interval"], terms["interval_count"]) for terms in recurring}) > 1:
        raise invalid("All recurring prices must have the same billing interval.", param="line_items")


def _line_item(account: Account, item: JsonObject, priced: PricedProduct, *, is_free: bool) -> JsonObject:
    """:param is_free: whether a trial comes before the first payment for it"""
    amount = 0 if is_free else priced.price["unit_amount"] * item["quantity"]
    return account.build(
        "item",
        price=priced.price,
        quantity=item["quantity"],
        currency=priced.price["currency"],
        description=priced.product["name"],
        amount_subtotal=amount,
        amount_total=amount,
    )


def read_discount(account: Account, given: JsonObject, currency: str) -> JsonObject:
    if len(given) != 1:
        raise invalid("You must specify either `coupon` or `promotion_code` for each discount.", param="discounts")
    code_id = given.get("promotion_code")
    if code_id is not None:
        code = account.named("promotion_code", code_id, param="discounts[0][promotion_code]")
        if not code["active"]:
            raise invalid("This promotion code is not active.", param="discounts[0][promotion_code]")
        given = {"coupon": code["promotion"]["coupon"]}
    coupon = account.named("coupon", given["coupon"], param="discounts[0][coupon]")
    catalog.refresh_coupon(account, coupon)
    if not coupon["valid"]:
        message = f"Coupon {coupon['id']} is expired and cannot be applied."
        raise invalid(message, param="discounts[0][coupon]", code="coupon_expired")
    if coupon["currency"] not in {None, currency}:
        raise invalid(f"The coupon's currency must be {currency}.", param="discounts[0][coupon]")
    return {"coupon": coupon["id"], "promotion_code": code_id}


def spread(reduction: int, items: list[JsonObject]) -> None:
    """Take the reduction off the items in turn, so that their totals add up to the session's."""
    for item in items:
        taken = min(reduction, item["amount_subtotal"])
        item |= {"amount_discount": taken, "amount_total": item["amount_subtotal"] - taken}
        reduction -= taken
