"""One untouched example of every object that the sandbox knows."""

from pathlib import Path
from typing import Any

import orjson

from app.sandbox.json_object import JsonObject, snapshot


def _load() -> dict[str, JsonObject]:
    """Read Stripe's OpenAPI fixtures, fixtures3.json, in which all that a fresh object doesn't have yet is null."""
    loaded: dict[str, JsonObject] = orjson.loads((Path(__file__).parent.parent / "fixtures.json").read_bytes())
    return loaded


_FIXTURES = _load()


def fresh(resource: str, **fields: Any) -> JsonObject:
    """Return a new object of the resource with the given fields."""
    return snapshot(_FIXTURES[resource]) | fields
