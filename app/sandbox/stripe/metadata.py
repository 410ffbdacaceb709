"""Metadata that is added to an object's. https://docs.stripe.com/api/metadata."""

from app.sandbox.json_object import JsonObject


def merge(found: JsonObject, given: JsonObject | str) -> None:
    """Add the keys that are given; an empty value removes its key, and an empty string all of them."""
    merged = found["metadata"] | given if isinstance(given, dict) else {}
    found["metadata"] = {key: value for key, value in merged.items() if value != ""}
