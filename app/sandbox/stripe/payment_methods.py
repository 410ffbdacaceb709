"""Payment methods: whose they are, and what becomes of a payment with them. https://docs.stripe.com/api/payment_methods."""

from collections.abc import Iterator

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe import cards
from app.sandbox.stripe.account import Account
from app.sandbox.stripe.cards import BEHAVIOURS, Behaviour
from app.sandbox.stripe.errors import StripeError, invalid, missing_parameter

SPENT_BEFORE = (
    "The provided PaymentMethod was previously used with a PaymentIntent without Customer attachment, shared with a "
    "connected account without Customer attachment, or was detached from a Customer. It may not be used again. To use "
    "a PaymentMethod multiple times, you must attach it to a Customer first."
)
UNATTACHABLE = (
    "This PaymentMethod was previously used without being attached to a Customer or was detached from a Customer, and "
    "may not be used again."
)


def published(account: Account, name: str) -> JsonObject | None:
    """Return a new method of a published name, as Stripe does each time that one is used; None for any other name."""
    if name == cards.LINK:
        return _make(account, "link", {"type": "link", "link": {"email": "customer@example.com"}})
    if name == cards.BANK_ACCOUNT:
        bank = {"bank_name": "STRIPE TEST BANK", "account_type": "checking", "last4": "6789"}
        return _make(account, "takesDays", {"type": "us_bank_account", "us_bank_account": bank})
    kind = cards.kind_of(name)
    return None if kind is None else _card(account, kind)


def new_card(account: Account) -> JsonObject:
    """The card of somebody who pays on a page."""
    return _card(account, "visa")


def _card(account: Account, kind: str) -> JsonObject:
    method = account.build("payment_method", type="card")
    method["card"] |= cards.card_of(kind)
    return _keep(account, kind, method)


def _make(account: Account, kind: str, fields: JsonObject) -> JsonObject:
    method = account.build("payment_method", **fields)
    del method["card"]
    return _keep(account, kind, method)


def _keep(account: Account, kind: str, method: JsonObject) -> JsonObject:
    account.keep(method)
    account.methods[method["id"]] = {"kind": kind, "spent": False}
    return method


def named(account: Account, name: str, *, param: str = "payment_method") -> JsonObject:
    """Return the method of that id, or a new one of that published name.

    :raises StripeError: a 400, when there is none
    """
    found = account.get("payment_method", name) or published(account, name)
    if found is None:
        raise invalid(f"No such PaymentMethod: '{name}'", param=param, code="resource_missing")
    return found


def behaviour(account: Account, method_id: str) -> Behaviour:
    kept = account.methods.get(method_id, {})
    return BEHAVIOURS.get(kept.get("kind", "visa"), Behaviour())


def behave(account: Account, method: JsonObject, kind: str) -> None:
    """Let payments with the method become, from now on, what they are with the test card of that kind.

    :raises StripeError: when there is no such kind
    """
    if kind not in {"visa", *BEHAVIOURS}:
        raise invalid(f"A method behaves as visa, {', '.join(BEHAVIOURS)}, not as {kind}.", param="as")
    account.methods[method["id"]]["kind"] = kind


def is_spent(account: Account, method: JsonObject) -> bool:
    """Whether it can't be used again: it was used, or let go of, without a customer."""
    return bool(account.methods[method["id"]]["spent"])


def spend(account: Account, method_id: str) -> None:
    """A payment has used the method: unless a customer holds it, it was the last."""
    method = account.get("payment_method", method_id)
    if method is not None and method["customer"] is None:
        account.methods[method_id]["spent"] = True


def of_customer(account: Account, customer_id: str) -> Iterator[JsonObject]:
    """The customer's methods, the one that was made last first."""
    return account.where("payment_method", customer=customer_id)


def attach(account: Account, method: JsonObject, parameters: JsonObject) -> None:
    """Give the method to a customer.

    :raises StripeError: a 402 when the card is refused, a 400 when it is somebody's or can't be used again
    """
    if "customer" not in parameters:
        raise missing_parameter("customer")
    customer = account.named("customer", parameters["customer"], param="customer")
    check_attachable(account, method)
    save(account, method, customer["id"])


def check_attachable(account: Account, method: JsonObject) -> None:
    """:raises StripeError: when the method can't be given to a customer"""
    if method["customer"] is not None:
        raise invalid("The payment method you provided has already been attached to a customer.")
    if is_spent(account, method):
        raise invalid(UNATTACHABLE)
    decline = behaviour(account, method["id"]).decline
    if decline is not None and not behaviour(account, method["id"]).can_be_saved:
        fields = {"code": decline.code, "decline_code": decline.decline_code}
        raise StripeError(402, "card_error", decline.message, executed=True, **fields)


def save(account: Account, method: JsonObject, customer_id: str) -> None:
    method["customer"] = customer_id
    account.emit("payment_method.attached", method)


def detach(account: Account, method: JsonObject, parameters: JsonObject) -> None:
    """Take the method from its customer, for good; it is no longer the default either.

    :raises StripeError: when it has none
    """
    if method["customer"] is None:
        raise invalid("The payment method you provided is not attached to a customer so detachment is impossible.")
    customer = account.objects["customer"][method["customer"]]
    release(account, method)
    settings = customer["invoice_settings"]
    if settings["default_payment_method"] == method["id"]:
        settings["default_payment_method"] = None
        previous = {"invoice_settings": {"default_payment_method": method["id"]}}
        account.emit("customer.updated", customer, previous=previous)


def release(account: Account, method: JsonObject) -> None:
    customer_id, method["customer"] = method["customer"], None
    account.methods[method["id"]]["spent"] = True
    account.emit("payment_method.detached", method, previous={"customer": customer_id})


def describe(method: JsonObject) -> str:
    """The method as a person reads it, e.g. "visa 4242"."""
    of_type = method[method["type"]]
    return f"{of_type.get('brand', method['type'])} {of_type.get('last4', '')}".strip().replace("_", " ")


def sentence_of_unattached(name: str) -> str:
    return (
        f"The customer does not have a payment method with the ID {name}. The payment method must be attached to the "
        "customer."
    )


def unattached(name: str, *, param: str) -> StripeError:
    return invalid(sentence_of_unattached(name), param=param, code="resource_missing")
