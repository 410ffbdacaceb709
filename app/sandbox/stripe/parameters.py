"""Checks a request's parameters against those of Stripe's own SDK, and gives them their types.

The SDK's `TypedDict`s are generated from Stripe's API definition, so what they don't name, Stripe doesn't take.
"""

import types
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from stripe import RequestOptions

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe.errors import invalid, missing_parameter

# The SDK imports these names for type checkers only.
UNIMPORTED_NAMES = {"StripeContext": object, "Mapping": Mapping}
MAX_METADATA_KEYS, MAX_METADATA_KEY_LENGTH, MAX_METADATA_VALUE_LENGTH = 50, 40, 500
LARGEST_INTEGER = 2**63 - 1


def check(nested: JsonObject, shape: type) -> JsonObject:
    """Return the parameters with the types that `shape` says.

    :raises StripeError: for unknown and missing parameters, and for values that don't fit
    """
    return _object(nested, shape, "")


def chosen(parameters: JsonObject, *names: str) -> JsonObject:
    """The named parameters; an empty one counts as not given."""
    return {name: parameters[name] for name in names if name in parameters and parameters[name] != ""}


@cache
def _fields(shape: type) -> dict[str, Any]:
    options = RequestOptions.__annotations__
    hints = get_type_hints(shape, localns=UNIMPORTED_NAMES)
    return {name: hint for name, hint in hints.items() if name not in options}


def _object(given: Any, shape: Any, path: str) -> JsonObject:
    if not isinstance(given, dict):
        raise invalid("Invalid object", param=path)
    fields = _fields(shape)
    unknown = [_name(path, name) for name in given if name not in fields]
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        message = f"Received unknown parameter{plural}: {', '.join(unknown)}"
        raise invalid(message, param=unknown[0], code="parameter_unknown")
    for name in sorted(shape.__required_keys__):
        if name not in given:
            raise missing_parameter(_name(path, name))
    return {name: _value(value, fields[name], _name(path, name)) for name, value in given.items()}


def _name(path: str, name: str) -> str:
    return f"{path}[{name}]" if path else name


def _value(given: Any, hint: Any, path: str) -> Any:
    choices = _choices(hint)
    literals = [value for choice in choices if get_origin(choice) is Literal for value in get_args(choice)]
    if given == "" and not ("" in literals or _is_mapping(choices)):
        raise invalid(
            f"You passed an empty string for '{path}'. We assume empty values are an attempt to unset a parameter; "
            f"however '{path}' cannot be unset. You should remove '{path}' from your request or supply a non-empty "
            "value.",
            param=path,
            code="parameter_invalid_empty",
        )
    if given == "" or given in literals:
        return given
    return _typed(given, choices, [value for value in literals if value], path)


def _choices(hint: Any) -> list[Any]:
    if get_origin(hint) in {Union, types.UnionType}:
        return [choice for member in get_args(hint) for choice in _choices(member)]
    return [hint]


def _is_shape(choice: Any) -> bool:
    """Whether it is a `TypedDict`; `typing.is_typeddict` doesn't know those of `typing_extensions`."""
    return hasattr(choice, "__required_keys__")


def _is_mapping(choices: list[Any]) -> bool:
    return any(get_origin(choice) is dict for choice in choices)


def _typed(given: Any, choices: list[Any], literals: list[str], path: str) -> Any:
    if isinstance(given, dict):
        return _nested(given, choices, path)
    scalars = [choice for choice in choices if choice in SCALARS]
    if scalars and scalars != [str]:
        return SCALARS[scalars[0]](given, path)
    if literals:
        raise invalid(f"Invalid {path}: must be one of {_listed(literals)}", param=path)
    if scalars:
        return given
    if any(get_origin(choice) is list for choice in choices):
        raise invalid("Invalid array", param=path)
    raise invalid("Invalid object", param=path)


def _nested(given: JsonObject, choices: list[Any], path: str) -> Any:
    for choice in choices:
        if _is_shape(choice):
            return _object(given, choice, path)
        if get_origin(choice) is list:
            return _list(given, get_args(choice)[0], path)
        if get_origin(choice) is dict:
            return _mapping(given, get_args(choice)[1], path)
    raise invalid(f"Invalid string: {given}", param=path)


def _list(given: JsonObject, hint: Any, path: str) -> list[Any]:
    if not all(key.isascii() and key.isdigit() for key in given):
        raise invalid("Invalid array", param=path)
    return [_value(given[key], hint, _name(path, key)) for key in sorted(given, key=int)]


def _mapping(given: JsonObject, hint: Any, path: str) -> JsonObject:
    if hint is str:
        _check_metadata(given, path)
        return given
    return {name: _value(value, hint, _name(path, name)) for name, value in given.items()}


def _check_metadata(given: JsonObject, path: str) -> None:
    if len(given) > MAX_METADATA_KEYS:
        raise invalid(f"Metadata can have at most {MAX_METADATA_KEYS} keys, but you passed {len(given)}.", param=path)
    for key, value in given.items():
        if not isinstance(value, str):
            raise invalid("Invalid string: metadata values must be strings", param=_name(path, key))
        if len(key) > MAX_METADATA_KEY_LENGTH:
            raise invalid(_too_long("keys", "key", MAX_METADATA_KEY_LENGTH, key), param=path)
        if len(value) > MAX_METADATA_VALUE_LENGTH:
            raise invalid(_too_long("values", "value", MAX_METADATA_VALUE_LENGTH, value), param=path)


def _too_long(plural: str, singular: str, limit: int, text: str) -> str:
    return (
        f"Metadata {plural} can have up to {limit} characters, but you passed in a {singular} that is "
        f"{len(text)} characters. Invalid {singular}: {text}"
    )


def _listed(literals: list[str]) -> str:
    return literals[0] if len(literals) == 1 else f"{', '.join(literals[:-1])}, or {literals[-1]}"


def _integer(given: str, path: str) -> int:
    digits = given.removeprefix("-")
    if digits.isascii() and digits.isdigit() and abs(int(digits[:20])) <= LARGEST_INTEGER:
        return int(given)
    raise invalid(f"Invalid integer: {given}", param=path, code="parameter_invalid_integer")


def _boolean(given: str, path: str) -> bool:
    if given in {"true", "false"}:
        return given == "true"
    raise invalid(f"Invalid boolean: {given}", param=path)


def _decimal(given: str, path: str) -> str:
    try:
        if Decimal(given).is_finite():
            return given
    except InvalidOperation:
        raise invalid(f"Invalid decimal: {given}", param=path) from None
    raise invalid(f"Invalid decimal: {given}", param=path)


def _float(given: str, path: str) -> float:
    return float(_decimal(given, path))


def _string(given: str, path: str) -> str:
    return given


SCALARS = {int: _integer, bool: _boolean, float: _float, Decimal: _decimal, str: _string}
