"""Stripe's form encoding: `a[b][0][c]=d` is `{"a": {"b": {"0": {"c": "d"}}}}` before its types are known."""

import re
from collections.abc import Iterable
from typing import Any

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe.errors import invalid

NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
MAX_DEPTH = 10


def decode(pairs: Iterable[tuple[str, str]]) -> JsonObject:
    """Nest the parameters; `a[]` counts up, as do lists that are written `a[0]`, `a[1]`.

    :raises StripeError: when a name can't be read or is used in two ways
    """
    nested: JsonObject = {}
    for name, value in pairs:
        _put(nested, _steps(name), value, name)
    return nested


def _steps(name: str) -> list[str]:
    match = NAME.fullmatch(name)
    if match is None:
        raise invalid(f"Invalid parameter name: {name}", param=name)
    steps = [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])]
    if len(steps) > MAX_DEPTH:
        raise invalid(f"Parameter nested too deeply: {steps[0]}", param=steps[0])
    return steps


def _put(nested: JsonObject, steps: list[str], value: str, name: str) -> None:
    place: Any = nested
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        key = step or str(len(place))
        if following is None:
            if isinstance(place.get(key), dict):
                raise invalid(f"Invalid object: {name}", param=name)
            place[key] = value
            return
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise invalid(f"Invalid object: {name}", param=name)
