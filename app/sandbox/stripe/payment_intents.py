"""Payment intents and how they move from one status to the next. https://docs.stripe.com/payments/paymentintents/lifecycle."""

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe import charges, metadata, payment_methods
from app.sandbox.stripe.account import Account, random_id
from app.sandbox.stripe.charges import GENERIC_DECLINE, Decline
from app.sandbox.stripe.errors import StripeError, refused
from app.sandbox.stripe.money import checked_amount, checked_charge, checked_currency

UNPAID = ("requires_payment_method", "requires_confirmation", "requires_action")
CANCELABLE = ("requires_payment_method", "requires_capture", "requires_confirmation", "requires_action", "processing")
UPDATED = ("customer", "description", "receipt_email", "setup_future_usage", "statement_descriptor_suffix")
# How long most card networks hold an authorization.
# https://docs.stripe.com/payments/place-a-hold-on-a-payment-method#auth-capture-limitations
AUTHORIZED_SECONDS = 7 * 24 * 3600
COPIED = (
    "capture_method",
    "confirmation_method",
    "customer",
    "description",
    "receipt_email",
    "setup_future_usage",
    "shipping",
    "statement_descriptor",
    "statement_descriptor_suffix",
    "transfer_group",
)


def create(account: Account, parameters: JsonObject) -> JsonObject:
    """Create an intent, which waits for a payment method."""
    return keep(account, build(account, parameters))


def build(account: Account, parameters: JsonObject) -> JsonObject:
    """Make an intent without keeping it, as another part of the request may still be refused."""
    identifier = random_id("pi_")
    currency = checked_currency(parameters["currency"])
    intent = account.build(
        "payment_intent",
        id=identifier,
        amount=checked_charge(parameters["amount"], currency, param="amount"),
        currency=currency,
        client_secret=random_id(f"{identifier}_secret_"),
        metadata=parameters.get("metadata"),
        **{name: parameters[name] for name in COPIED if name in parameters},
    )
    methods = parameters.get("automatic_payment_methods")
    if methods is not None:
        intent["automatic_payment_methods"] = {"allow_redirects": "always", **methods} if methods["enabled"] else None
    if "allowed_payment_method_types" in parameters:
        intent |= {"payment_method_types": parameters["allowed_payment_method_types"]}
        intent["automatic_payment_methods"] = None
    return intent


def keep(account: Account, intent: JsonObject) -> JsonObject:
    account.keep(intent)
    account.emit("payment_intent.created", intent)
    return intent


def update(account: Account, intent: JsonObject, parameters: JsonObject) -> None:
    """Change metadata and texts; an empty one is unset."""
    if "metadata" in parameters:
        metadata.merge(intent, parameters["metadata"])
    for name in UPDATED:
        if name in parameters:
            intent[name] = parameters[name] or None


def pay(account: Account, intent: JsonObject) -> None:
    """The customer's money arrives, or is held when the intent is to be captured by hand."""
    if intent["capture_method"] == "manual":
        authorize(account, intent)
        return
    _take_method(account, intent)
    charge = _pending_charge(account, intent) or charges.attempt(account, intent, status="succeeded", captured=True)
    _leave(intent, "succeeded")
    charges.succeed(account, charge, captured=True)
    intent["amount_received"] = intent["amount"]
    account.emit("payment_intent.succeeded", intent)


def authorize(account: Account, intent: JsonObject) -> None:
    _take_method(account, intent)
    charge = charges.attempt(account, intent, status="succeeded", captured=False)
    _leave(intent, "requires_capture")
    intent["amount_capturable"] = intent["amount"]
    charges.succeed(account, charge, captured=False)
    account.emit("payment_intent.amount_capturable_updated", intent)


def capture(account: Account, intent: JsonObject, amount: int | None = None) -> None:
    """Take what was authorized, or `amount` of it.

    :raises StripeError: when nothing is authorized, or less than that
    """
    if _has_expired(account, intent):
        message = f"Charge {intent['latest_charge']} has expired and can no longer be captured."
        raise refused(message, code="charge_expired_for_capture", payment_intent=intent)
    if intent["status"] != "requires_capture":
        raise unexpected(
            intent,
            f"This PaymentIntent could not be captured because it has a status of {intent['status']}. "
            "Only a PaymentIntent with one of the following statuses may be captured: requires_capture.",
        )
    taken = intent["amount_capturable"]
    if amount is not None:
        taken = checked_amount(amount, intent["currency"], param="amount_to_capture")
    if taken > intent["amount_capturable"]:
        message = (
            f"The requested capture amount is greater than the capturable amount of {intent['amount_capturable']}."
        )
        raise refused(message, param="amount_to_capture", code="amount_too_large")
    _leave(intent, "succeeded")
    intent |= {"amount_received": taken, "amount_capturable": 0}
    charges.capture(account, account.objects["charge"][intent["latest_charge"]], taken)
    account.emit("payment_intent.succeeded", intent)


def decline(account: Account, intent: JsonObject, reason: Decline = GENERIC_DECLINE) -> JsonObject:
    """The attempt fails; the intent waits for another payment method."""
    charge = _pending_charge(account, intent) or charges.attempt(account, intent, status="failed", captured=False)
    charges.fail(account, charge, reason)
    intent["last_payment_error"] = {
        "charge": charge["id"],
        "code": reason.code,
        "decline_code": reason.decline_code,
        "message": reason.message,
        "payment_method": account.get("payment_method", intent["payment_method"] or ""),
        "type": "card_error",
    }
    intent |= {"status": "requires_payment_method", "payment_method": None, "next_action": None, "processing": None}
    account.emit("payment_intent.payment_failed", intent)
    return charge


def require_action(account: Account, intent: JsonObject, *, return_url: str | None = None) -> None:
    """The customer has to authenticate, on the sandbox's page of the intent."""
    url = f"{account.caller.base_url}/intent/{intent['id']}"
    intent |= {
        "status": "requires_action",
        "next_action": {"redirect_to_url": {"return_url": return_url, "url": url}, "type": "redirect_to_url"},
    }
    account.emit("payment_intent.requires_action", intent)


def process(account: Account, intent: JsonObject) -> None:
    """The customer pays by a method that takes days."""
    _take_method(account, intent)
    charge = charges.attempt(account, intent, status="pending", captured=False)
    _leave(intent, "processing")
    account.emit("charge.pending", charge)
    account.emit("payment_intent.processing", intent)


def cancel(account: Account, intent: JsonObject, reason: str | None = None) -> None:
    """End the intent; what was authorized is given back.

    :raises StripeError: when it has ended already
    """
    if intent["status"] not in CANCELABLE:
        raise unexpected(
            intent,
            f"You cannot cancel this PaymentIntent because it has a status of {intent['status']}. Only a PaymentIntent "
            f"with one of the following statuses may be canceled: {', '.join(CANCELABLE)}.",
        )
    if intent["status"] == "requires_capture":
        charges.release(account, account.objects["charge"][intent["latest_charge"]])
    _end(account, intent, reason)


def expire_if_due(account: Account, intent: JsonObject) -> None:
    """End an intent whose authorization nobody has captured in time."""
    if intent["status"] == "requires_capture":
        charge = account.objects["charge"][intent["latest_charge"]]
        if charge["created"] + AUTHORIZED_SECONDS <= account.clock.now():
            expire(account, intent)


def expire(account: Account, intent: JsonObject) -> None:
    """What was authorized is released, as nobody has captured it."""
    charges.expire(account, account.objects["charge"][intent["latest_charge"]])
    _end(account, intent, "automatic")


def _has_expired(account: Account, intent: JsonObject) -> bool:
    charge = account.get("charge", intent["latest_charge"] or "")
    was_held = charge is not None and charge["paid"] and not charge["captured"]
    return was_held and (intent["status"], intent["cancellation_reason"]) == ("canceled", "automatic")


def _end(account: Account, intent: JsonObject, reason: str | None) -> None:
    _leave(intent, "canceled")
    intent |= {"amount_capturable": 0, "canceled_at": account.clock.now(), "cancellation_reason": reason}
    account.emit("payment_intent.canceled", intent)


def _leave(intent: JsonObject, status: str) -> None:
    """Move on to the status, without what the former one had left to do."""
    intent |= {"status": status, "next_action": None, "processing": None}
    if status != "canceled":
        intent["last_payment_error"] = None


def _take_method(account: Account, intent: JsonObject) -> None:
    """The money comes by the intent's method, a new card where there is none; the customer keeps it if so agreed."""
    if intent["payment_method"] is None:
        intent["payment_method"] = payment_methods.new_card(account)["id"]
    method = account.get("payment_method", intent["payment_method"])
    holder = account.get("customer", intent["customer"] or "")
    is_agreed = intent["setup_future_usage"] is not None and holder is not None and "deleted" not in holder
    if is_agreed and method is not None and method["customer"] is None:
        payment_methods.save(account, method, intent["customer"])
    payment_methods.spend(account, intent["payment_method"])


def _pending_charge(account: Account, intent: JsonObject) -> JsonObject | None:
    if intent["status"] != "processing":
        return None
    return account.objects["charge"][intent["latest_charge"]]


def unexpected(intent: JsonObject, message: str) -> StripeError:
    return refused(message, code="payment_intent_unexpected_state", payment_intent=intent)
