"""Setup intents: a customer leaves a payment method, and no money moves. https://docs.stripe.com/api/setup_intents."""

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe import payment_methods
from app.sandbox.stripe.account import Account, random_id
from app.sandbox.stripe.charges import Decline
from app.sandbox.stripe.parameters import chosen


def create(account: Account, customer_id: str, parameters: JsonObject) -> JsonObject:
    """Make the intent of a checkout session in setup mode."""
    identifier = random_id("seti_")
    intent = account.new(
        "setup_intent",
        id=identifier,
        client_secret=random_id(f"{identifier}_secret_"),
        customer=customer_id,
        **chosen(parameters, "description", "metadata"),
    )
    account.emit("setup_intent.created", intent)
    return intent


def confirm(account: Account, intent: JsonObject, name: str) -> bool:
    """The customer gives a method, by its published name; the value is whether it was taken."""
    method = payment_methods.named(account, name)
    behaviour = payment_methods.behaviour(account, method["id"])
    if behaviour.decline is not None and not behaviour.can_be_saved:
        _fail(account, intent, method, behaviour.decline)
        return False
    intent |= {"status": "succeeded", "payment_method": method["id"], "last_setup_error": None}
    account.emit("setup_intent.succeeded", intent)
    payment_methods.save(account, method, intent["customer"])
    return True


def _fail(account: Account, intent: JsonObject, method: JsonObject, decline: Decline) -> None:
    intent["last_setup_error"] = {
        "code": decline.code,
        "decline_code": decline.decline_code,
        "message": decline.message,
        "payment_method": method,
        "type": "card_error",
    }
    account.emit("setup_intent.setup_failed", intent)


def cancel(account: Account, intent: JsonObject) -> None:
    intent |= {"status": "canceled", "cancellation_reason": "abandoned"}
    account.emit("setup_intent.canceled", intent)
