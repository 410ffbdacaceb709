"""Stripe's published test payment methods, and what a payment with each leads to. https://docs.stripe.com/testing."""

from dataclasses import dataclass

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe.charges import GENERIC_DECLINE, Decline

PREFIX = "pm_card_"
# The stand-in's own name, since Stripe publishes none for a Link account.
LINK = "pm_link"
BANK_ACCOUNT = "pm_usBankAccount_success"
AUTHENTICATION_REQUIRED = Decline(
    "Your card was declined. This transaction requires authentication.",
    "authentication_required",
    "authentication_required",
)
# An Indian card can be charged without its holder only under a mandate, which the stand-in knows nothing of.
# https://docs.stripe.com/india-recurring-payments
NO_MANDATE = Decline("Your card does not support this type of purchase.", decline_code="transaction_not_allowed")


@dataclass(frozen=True)
class Behaviour:
    """What a payment with a method leads to; without any of these, it succeeds.

    :param decline: it is refused, whether the customer is there or not
    :param absent: it is refused while the customer isn't there
    :param asks: the bank asks the customer, while he is there
    :param can_be_saved: whether it can be attached to a customer
    :param takes_days: whether it is processing at first
    """

    decline: Decline | None = None
    absent: Decline | None = None
    asks: bool = False
    can_be_saved: bool = True
    takes_days: bool = False


def _declined(message: str = GENERIC_DECLINE.message, code: str = "card_declined", decline_code: str = "") -> Behaviour:
    return Behaviour(decline=Decline(message, code, decline_code or code), can_be_saved=False)


ASKS = Behaviour(absent=AUTHENTICATION_REQUIRED, asks=True)
DECLINES = {
    "chargeDeclined": _declined(decline_code="generic_decline"),
    "chargeDeclinedInsufficientFunds": _declined(
        "Your card has insufficient funds.", decline_code="insufficient_funds"
    ),
    "chargeDeclinedLostCard": _declined(decline_code="lost_card"),
    "chargeDeclinedStolenCard": _declined(decline_code="stolen_card"),
    "chargeDeclinedExpiredCard": _declined("Your card has expired.", "expired_card"),
    "chargeDeclinedIncorrectCvc": _declined("Your card's security code is incorrect.", "incorrect_cvc"),
    "chargeDeclinedProcessingError": _declined(
        "An error occurred while processing your card. Try again in a little bit.", "processing_error"
    ),
    # The one that can be saved, and is declined whenever it is charged.
    "chargeCustomerFail": Behaviour(decline=GENERIC_DECLINE),
}
ACTIONS = {"authenticationRequired": ASKS, "threeDSecureRequired": ASKS, "threeDSecure2Required": ASKS}
BEHAVIOURS = {
    **DECLINES,
    **ACTIONS,
    "in": Behaviour(absent=NO_MANDATE),
    "takesDays": Behaviour(takes_days=True),
}
# Brand, last four digits, country and funding.
BRANDS = {
    "visa": ("visa", "4242", "US", "credit"),
    "visa_debit": ("visa", "5556", "US", "debit"),
    "mastercard": ("mastercard", "4444", "US", "credit"),
    "amex": ("amex", "8431", "US", "credit"),
    "discover": ("discover", "9424", "US", "credit"),
    "in": ("visa", "0123", "IN", "credit"),
}
LAST_DIGITS = {
    "chargeDeclined": "0002",
    "chargeDeclinedInsufficientFunds": "9995",
    "chargeDeclinedLostCard": "9987",
    "chargeDeclinedStolenCard": "9979",
    "chargeDeclinedExpiredCard": "0069",
    "chargeDeclinedIncorrectCvc": "0127",
    "chargeDeclinedProcessingError": "0119",
    "chargeCustomerFail": "0341",
    "authenticationRequired": "3184",
    "threeDSecureRequired": "3063",
    "threeDSecure2Required": "3220",
}


def kind_of(name: str) -> str | None:
    """Return the kind that `pm_card_<kind>` or `pm_card_visa_<kind>` names; None when Stripe has published none."""
    kind = name.removeprefix(PREFIX)
    if name.startswith(PREFIX) and kind not in BRANDS:
        kind = kind.removeprefix("visa_")
    return kind if name.startswith(PREFIX) and kind in {*BRANDS, *LAST_DIGITS} else None


def card_of(kind: str) -> JsonObject:
    """The fields of a card of that kind that differ from another's."""
    brand, last4, country, funding = BRANDS.get(kind, BRANDS["visa"])
    return {
        "brand": brand,
        "display_brand": brand,
        "country": country,
        "fingerprint": f"sandbox{kind[:9]:0<9}",
        "funding": funding,
        "last4": LAST_DIGITS.get(kind, last4),
        "networks": {"available": [brand], "preferred": None},
    }
