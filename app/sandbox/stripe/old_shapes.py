"""Objects as events of API versions before 2025-03-31 show them.

https://docs.stripe.com/changelog/basil/2025-03-31/deprecate-subscription-current-period-start-and-end
https://docs.stripe.com/changelog/basil/2025-03-31/adds-new-parent-field-to-invoicing-objects
"""

from typing import TYPE_CHECKING, Any

from app.sandbox.json_object import JsonObject

if TYPE_CHECKING:
    from app.sandbox.stripe.account import Account

VERSION = "2024-06-20"
PERIOD = ("current_period_start", "current_period_end")


def data_of(account: "Account", data: JsonObject) -> JsonObject:
    """The data of an event: its object, and what that was before."""
    shown = data["object"]
    match shown["object"]:
        case "subscription":
            return {name: _subscription(each) for name, each in data.items()}
        case "invoice":
            return data | {"object": _invoice(account, shown)}
        case "payment_intent" | "charge":
            return data | {"object": shown | {"invoice": _invoice_of(account, shown)}}
    return data


def _subscription(shown: JsonObject) -> JsonObject:
    """The period is the subscription's own, and its items have none."""
    if "items" not in shown:
        return shown
    items = shown["items"]["data"]
    bare = [{name: value for name, value in item.items() if name not in PERIOD} for item in items]
    period = {name: items[0][name] for name in PERIOD}
    return shown | {"items": shown["items"] | {"data": bare}} | period


def _invoice(account: "Account", shown: JsonObject) -> JsonObject:
    """The invoice names its subscription, its intent and that one's charge itself."""
    parent = shown.get("parent") or {}
    details = parent.get("subscription_details") or {}
    paying = next(account.where("invoice_payment", invoice=shown["id"]), None)
    intent_id = paying and paying["payment"]["payment_intent"]
    intent: Any = account.get("payment_intent", intent_id or "") or {}
    old = {name: value for name, value in shown.items() if name != "parent"}
    return old | {
        "subscription": details.get("subscription"),
        "subscription_details": {"metadata": details.get("metadata")},
        "payment_intent": intent_id,
        "charge": intent.get("latest_charge"),
    }


def _invoice_of(account: "Account", shown: JsonObject) -> str | None:
    intent_id = shown["id"] if shown["object"] == "payment_intent" else shown["payment_intent"]
    payment = {"payment_intent": intent_id, "type": "payment_intent"}
    return next((paying["invoice"] for paying in account.where("invoice_payment", payment=payment)), None)
