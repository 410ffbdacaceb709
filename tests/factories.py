"""Small factories for what tests send."""

from typing import Any


def checkout(**changes: Any) -> dict[str, Any]:
    """A valid checkout; a change to `...` leaves the field out."""
    body = {
        "appId": "shop",
        "orgId": "org_1",
        "lineItems": [{"priceId": "price_sandbox", "quantity": 2}],
        "successUrl": "http://localhost:3000/ok?session={CHECKOUT_SESSION_ID}",
        "cancelUrl": "http://localhost:3000/cart",
    }
    return _changed(body, changes)


def intent(**changes: Any) -> dict[str, Any]:
    """A valid payment intent; a change to `...` leaves the field out."""
    return _changed({"appId": "shop", "orgId": "org_1", "amountInCents": 2000}, changes)


def _changed(body: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (body | changes).items() if value is not ...}
