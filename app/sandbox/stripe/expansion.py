"""Expansion of ids into objects. https://docs.stripe.com/api/expanding_objects."""

from typing import Any

from app.sandbox.json_object import JsonObject, snapshot
from app.sandbox.stripe.account import Account
from app.sandbox.stripe.errors import StripeError, invalid
from app.sandbox.stripe.lists import envelope


def expand(account: Account, answer: JsonObject, paths: list[str]) -> JsonObject:
    """Return the answer with what the dotted paths name in the place of its id.

    :raises StripeError: when a path names nothing that can be expanded
    """
    expanded = snapshot(answer)
    for path in paths:
        _expand(account, expanded, path.split("."), path)
    return expanded


def _expand(account: Account, place: Any, steps: list[str], path: str) -> None:
    step, *others = steps
    if isinstance(place, list):
        for element in place:
            _expand(account, element, steps, path)
        return
    if place.get("object") == "checkout.session" and step == "line_items":
        items = account.checkouts[place["id"]]["line_items"]
        place[step] = envelope(items, url=f"/v1/checkout/sessions/{place['id']}/line_items")
    elif place.get("object") == "invoice" and step == "payments":
        payments = list(account.where("invoice_payment", invoice=place["id"]))
        place[step] = envelope(snapshot({"data": payments})["data"], url=f"/v1/invoice_payments?invoice={place['id']}")
    if step not in place:
        raise _not_expandable(path)
    place[step] = _expanded(account, place[step], path)
    if others and place[step] is not None:
        _expand(account, place[step], others, path)


def _expanded(account: Account, value: Any, path: str) -> Any:
    """The object that an id stands for; what is an object already stays as it is."""
    if isinstance(value, list):
        return [_expanded(account, each, path) for each in value]
    if value is None or isinstance(value, dict):
        return value
    named = account.anything(value) if isinstance(value, str) else None
    if named is None:
        raise _not_expandable(path)
    return snapshot(named)


def _not_expandable(path: str) -> StripeError:
    return invalid(f"This property cannot be expanded ({path}).", param="expand")
