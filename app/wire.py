"""How names are written on the wire."""

from functools import cache


@cache
def camel_case(name: str) -> str:
    """`amount_in_cents` becomes `amountInCents`; a name without underscores stays as it is."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
