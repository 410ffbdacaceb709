"""JSON objects as the sandbox keeps and sends them."""

from typing import Any

import orjson

JsonObject = dict[str, Any]


def snapshot(value: JsonObject) -> JsonObject:
    """Return a deep copy, so that what happens to the object later doesn't change it."""
    copied: JsonObject = orjson.loads(orjson.dumps(value))
    return copied
