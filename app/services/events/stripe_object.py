"""Stripe's JSON: what a field says, as a value of ours, or None where it says nothing that we can use."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

# https://docs.stripe.com/upgrades#what-changes-does-stripe-consider-to-be-backward-compatible
MAX_ID_LENGTH = 255
CURRENCY_LENGTH = 3
# Below this, every program reads a whole number in JSON exactly. https://www.rfc-editor.org/rfc/rfc8259#section-6
CENTS_LIMIT = 2**53
RENEWAL_PREFIX = "renewal:"


def required(value: T | None) -> T:
    """What was read, where an object without it isn't the object that we asked for.

    :raises ValueError: when it is None.
    """
    if value is None:
        raise ValueError("not readable")
    return value


def optional(read: Callable[[Any], T | None], value: object) -> T | None:
    """What was read, where Stripe may leave the field null or out.

    :raises ValueError: when the field holds something else than `read` can read.
    """
    return None if value is None else required(read(value))


def text_of(value: object) -> str | None:
    """The value if it is a string that says something and that PostgreSQL can store."""
    return value if isinstance(value, str) and value and _is_storable(value) else None


def id_of(reference: object) -> str | None:
    """The id of what a field refers to, whether it holds the id or the expanded object."""
    found = text_of(reference.get("id") if isinstance(reference, Mapping) else reference)
    return found if found and len(found) <= MAX_ID_LENGTH else None


def currency_of(value: object) -> str | None:
    """The value if it can be a currency's code: Stripe writes those in three small letters."""
    currency = text_of(value)
    return currency if currency and len(currency) == CURRENCY_LENGTH else None


def cents_of(value: object) -> int | None:
    """The value if it is an amount: a whole number of the currency's smallest unit."""
    # True is an int.
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value < CENTS_LIMIT else None


def dig(value: object, *path: str) -> object:
    """What lies at a path of keys, or None where the path ends early."""
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def is_first_invoice(invoice: Mapping[str, Any]) -> bool:
    """Whether this is the invoice that a subscription begins with.

    https://docs.stripe.com/api/invoices/object#invoice_object-billing_reason
    """
    return invoice.get("billing_reason") == "subscription_create"


def subscription_of(invoice: Mapping[str, Any]) -> str | None:
    """The id of an invoice's subscription, from where newer API versions hold it or where older ones did.

    https://docs.stripe.com/changelog/basil/2025-03-31/adds-new-parent-field-to-invoicing-objects
    """
    newer = dig(invoice, "parent", "subscription_details", "subscription")
    return id_of(newer) or id_of(invoice.get("subscription"))


def renewal_of(invoice: Mapping[str, Any]) -> str | None:
    """The subscription that an invoice renews, or is a later one of; None for the first one, and where nothing is due.

    What a customer's credit pays in full is due nothing. https://docs.stripe.com/api/invoices/object
    """
    if is_first_invoice(invoice) or invoice.get("amount_due") == 0:
        return None
    return subscription_of(invoice)


def renewal_reference(subscription_id: str) -> str:
    """By what a renewal waits for the payment that its subscription began with: it isn't that payment's own."""
    return f"{RENEWAL_PREFIX}{subscription_id}"


def references(stripe_object: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids by which a payment may know an object: first its own, then those of what it belongs to.

    The order depends on nothing but the object, so that one that mentions two payments always goes to the same one.
    An object of a kind that says nothing of a payment gives none.
    """
    owners = _owners(stripe_object)
    found = () if owners is None else (stripe_object.get("id"), *owners)
    return tuple(dict.fromkeys(found_id for reference in found if (found_id := id_of(reference))))


def _owners(stripe_object: Mapping[str, Any]) -> tuple[object, ...] | None:
    """What an object belongs to, as its fields refer to it; None where its kind says nothing of a payment."""
    of = stripe_object.get
    match of("object"):
        case "payment_intent":
            return (of("invoice"),)
        case "checkout.session":
            return of("payment_intent"), of("subscription"), of("invoice")
        case "charge":
            return (of("payment_intent"),)
        case "refund" | "dispute":
            return of("charge"), of("payment_intent")
        case "invoice" if is_first_invoice(stripe_object):
            return of("payment_intent"), subscription_of(stripe_object)
        case "invoice":
            # A renewal isn't the first payment's, so it must not be found by the subscription.
            renewed = renewal_of(stripe_object)
            return of("payment_intent"), renewed and renewal_reference(renewed)
        case "subscription":
            return ()
        case "invoice_payment":
            return of("invoice"), dig(of("payment"), "payment_intent")
    return None


def _is_storable(text: str) -> bool:
    """PostgreSQL takes no NUL, and UTF-8 has no bytes for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text
