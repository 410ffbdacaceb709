"""Stripe's lists: filters, pages and the envelope. https://docs.stripe.com/api/pagination."""

from collections.abc import Iterable
from typing import Any

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe.errors import invalid, no_such

DEFAULT_LIMIT, MAX_LIMIT = 10, 100
PAGING = {"limit", "starting_after", "ending_before", "expand"}
COMPARISONS = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}


def page(objects: list[JsonObject], parameters: JsonObject, *, url: str) -> JsonObject:
    """Return the page that the parameters ask for of objects that are given newest first."""
    filters = {name: value for name, value in parameters.items() if name not in PAGING}
    matching = [candidate for candidate in objects if _matches(candidate, filters)]
    limit = _limit(parameters)
    if "ending_before" in parameters:
        end = _position(matching, parameters["ending_before"], "ending_before")
        start = max(end - limit, 0)
        return envelope(matching[start:end], url=url, has_more=start > 0)
    start = 0
    if "starting_after" in parameters:
        start = _position(matching, parameters["starting_after"], "starting_after") + 1
    return envelope(matching[start : start + limit], url=url, has_more=len(matching) > start + limit)


def envelope(data: list[JsonObject], *, url: str, has_more: bool = False) -> JsonObject:
    return {"object": "list", "data": data, "has_more": has_more, "url": url}


def _limit(parameters: JsonObject) -> int:
    limit: int = parameters.get("limit", DEFAULT_LIMIT)
    if limit < 1:
        raise invalid("This value must be greater than or equal to 1.", param="limit", code="parameter_invalid_integer")
    if limit > MAX_LIMIT:
        message = f"This value must be less than or equal to {MAX_LIMIT}."
        raise invalid(message, param="limit", code="parameter_invalid_integer")
    return limit


def _position(objects: Iterable[JsonObject], identifier: str, param: str) -> int:
    for position, candidate in enumerate(objects):
        if candidate["id"] == identifier:
            return position
    raise no_such("object", identifier, param=param, status=400)


def _matches(candidate: Any, filters: JsonObject) -> bool:
    return all(_fits(candidate.get(name), wanted) for name, wanted in filters.items())


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict) and wanted.keys() <= COMPARISONS.keys():
        return all(COMPARISONS[name](value, bound) for name, bound in wanted.items())
    if isinstance(wanted, dict):
        return isinstance(value, dict) and _matches(value, wanted)
    if isinstance(wanted, list):
        return value in wanted
    return bool(value == wanted)
