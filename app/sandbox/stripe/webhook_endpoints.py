"""Webhook endpoints of an account. https://docs.stripe.com/api/webhook_endpoints"""

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe.account import Account, random_id
from app.sandbox.stripe.errors import invalid

RESOURCE = "webhook_endpoint"
MAX_ENDPOINTS = 16
ALL_EVENTS = "*"


def create(account: Account, given: JsonObject) -> JsonObject:
    """Make an endpoint; the answer alone shows its secret.

    :raises StripeError: when the account has as many as it may have
    """
    if len(account.objects[RESOURCE]) >= MAX_ENDPOINTS:
        raise invalid(f"You have reached the maximum of {MAX_ENDPOINTS} test webhook endpoints.")
    fields = {"url": given["url"], "enabled_events": given["enabled_events"], "metadata": given.get("metadata")}
    made = account.new(
        RESOURCE, **fields, api_version=given.get("api_version"), description=given.get("description"), status="enabled"
    )
    secret = account.endpoint_secrets[made["id"]] = random_id("whsec_", 32)
    return made | {"secret": secret}


def update(account: Account, endpoint: JsonObject, given: JsonObject) -> None:
    """Change what can be changed; an empty value takes a key of the metadata away."""
    for name in ("url", "enabled_events", "description"):
        if name in given:
            endpoint[name] = given[name]
    if "disabled" in given:
        endpoint["status"] = "disabled" if given["disabled"] else "enabled"
    merged = endpoint["metadata"] | (given.get("metadata") or {})
    endpoint["metadata"] = {key: value for key, value in merged.items() if value != ""}


def delete(account: Account, endpoint: JsonObject) -> JsonObject:
    """Take an endpoint away."""
    del account.objects[RESOURCE][endpoint["id"]], account.endpoint_secrets[endpoint["id"]]
    return {"id": endpoint["id"], "object": RESOURCE, "deleted": True}


def takes(endpoint: JsonObject, event_type: str) -> bool:
    """Whether an endpoint is sent events of a type."""
    return endpoint["status"] == "enabled" and not {event_type, ALL_EVENTS}.isdisjoint(endpoint["enabled_events"])
