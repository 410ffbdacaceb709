"""Charges: one attempt each to take a payment intent's money."""

from dataclasses import dataclass

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe.account import Account, random_id
from app.sandbox.stripe.errors import StripeError


@dataclass(frozen=True)
class Decline:
    """Why an issuer refuses. https://docs.stripe.com/declines/codes."""

    message: str = "Your card was declined."
    code: str = "card_declined"
    decline_code: str = "generic_decline"


GENERIC_DECLINE = Decline()
SHOWN_OF_CARDS = ("brand", "country", "exp_month", "exp_year", "fingerprint", "funding", "last4")


def attempt(account: Account, intent: JsonObject, *, status: str, captured: bool) -> JsonObject:
    """Make the charge of an attempt; it inherits its intent's metadata."""
    copied = {name: intent[name] for name in ("amount", "currency", "customer", "description", "payment_method")}
    charge = account.new(
        "charge",
        **copied,
        metadata=intent["metadata"],
        payment_intent=intent["id"],
        status=status,
        paid=status == "succeeded",
        captured=captured,
        amount_captured=intent["amount"] if captured else 0,
        receipt_email=intent["receipt_email"],
    )
    charge["payment_method_details"] = _details(account, charge)
    intent["latest_charge"] = charge["id"]
    return charge


def _details(account: Account, charge: JsonObject) -> JsonObject:
    """What of the method the charge shows, for as long as it is kept."""
    details: JsonObject = charge["payment_method_details"]
    method = account.get("payment_method", charge["payment_method"] or "")
    if method is None:
        return details
    kind = method["type"]
    if kind != "card":
        return {"type": kind, kind: method[kind]}
    return details | {"card": details["card"] | {name: method["card"][name] for name in SHOWN_OF_CARDS}}


def succeed(account: Account, charge: JsonObject, *, captured: bool) -> None:
    charge |= {
        "status": "succeeded",
        "paid": True,
        "captured": captured,
        "amount_captured": charge["amount"] if captured else 0,
        "outcome": _outcome("authorized", "approved_by_network", "Payment complete."),
        "receipt_url": f"{account.caller.base_url}/intent/{charge['payment_intent']}",
    }
    account.emit("charge.succeeded", charge)
    if captured:
        _settle(account, charge)


def capture(account: Account, charge: JsonObject, amount: int) -> None:
    """Take a part or all of what was authorized; the remainder is released."""
    charge |= {"captured": True, "amount_captured": amount}
    account.emit("charge.captured", charge)
    if amount < charge["amount"]:
        release(account, charge)
    _settle(account, charge)


def release(account: Account, charge: JsonObject) -> None:
    """Let go of what was authorized and is not captured: shown as a refund that moved no money.

    https://docs.stripe.com/payments/place-a-hold-on-a-payment-method#capture-funds
    """
    released = charge["amount"] - charge["amount_captured"]
    copied = {name: charge[name] for name in ("currency", "payment_intent", "payment_method")}
    refund = account.new(
        "refund", amount=released, balance_transaction=None, charge=charge["id"], status="succeeded", **copied
    )
    charge |= {"amount_refunded": released, "refunded": released == charge["amount"]}
    account.emit("refund.created", refund)
    account.emit("charge.refunded", charge)


def expire(account: Account, charge: JsonObject) -> None:
    """Too late for a capture: the card network releases what was authorized."""
    release(account, charge)
    account.emit("charge.expired", charge)


def fail(account: Account, charge: JsonObject, decline: Decline) -> None:
    charge |= {
        "status": "failed",
        "paid": False,
        "captured": False,
        "amount_captured": 0,
        "failure_code": decline.code,
        "failure_message": decline.message,
        "outcome": _outcome("issuer_declined", decline.decline_code, decline.message),
    }
    account.emit("charge.failed", charge)


def _settle(account: Account, charge: JsonObject) -> None:
    """Stripe books a charge a moment after it succeeded, hence the update."""
    charge["balance_transaction"] = random_id("txn_")
    account.emit("charge.updated", charge)


def _outcome(type_: str, reason: str, message: str) -> JsonObject:
    approved = type_ == "authorized"
    return {
        "advice_code": None if approved else "try_again_later",
        "network_advice_code": None,
        "network_decline_code": None if approved else "05",
        "network_status": "approved_by_network" if approved else "declined_by_network",
        "reason": None if approved else reason,
        "risk_level": "normal",
        "seller_message": message,
        "type": type_,
    }


def declined(charge: JsonObject, intent: JsonObject, decline: Decline) -> StripeError:
    """The 402 that whoever confirmed the intent hears."""
    return StripeError(
        402,
        "card_error",
        decline.message,
        executed=True,
        charge=charge["id"],
        code=decline.code,
        decline_code=decline.decline_code,
        payment_intent=intent,
        payment_method=intent["last_payment_error"]["payment_method"],
    )
