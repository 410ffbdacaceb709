"""Payment intents as the API makes, changes and confirms them. https://docs.stripe.com/api/payment_intents/confirm."""

from typing import Any

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe import charges, payment_intents, payment_methods, texts
from app.sandbox.stripe.account import Account
from app.sandbox.stripe.errors import StripeError, invalid
from app.sandbox.stripe.payment_intents import UNPAID

ONLY_CONFIRMING = ("off_session", "return_url", "error_on_requires_action")


def create(account: Account, given: JsonObject) -> JsonObject:
    """Create an intent, and confirm it when that is asked for.

    :raises StripeError: a 402, with the intent, when the method is declined; a 400 when nothing was made
    """
    _check(account, given)
    if not given.get("confirm"):
        for name in (name for name in ONLY_CONFIRMING if name in given):
            raise invalid(f"The `{name}` parameter can only be used with `confirm` set to `true`.", param=name)
    method = _method(account, given)
    wanted = payment_intents.build(account, given)
    if method is not None:
        _check_method(account, method, wanted, absent=_is_absent(given))
    if given.get("confirm"):
        _check_return(wanted, given)
    intent = payment_intents.keep(account, wanted)
    if method is not None:
        _use(intent, method)
    if given.get("confirm"):
        confirm(account, intent, {name: value for name, value in given.items() if name != "payment_method"})
    return intent


def update(account: Account, intent: JsonObject, given: JsonObject) -> None:
    _check(account, given)
    method = _method(account, given)
    if method is not None:
        _check_method(account, method, intent | {"customer": given.get("customer", intent["customer"])}, shown=intent)
    payment_intents.update(account, intent, given)
    if method is not None:
        _use(intent, method)


def confirm(account: Account, intent: JsonObject, given: JsonObject) -> None:
    """Try to take the money with the method that is given, or that the intent has.

    :raises StripeError: a 402 when the method is declined, a 400 when there is nothing to confirm
    """
    if intent["status"] not in UNPAID:
        message = f"You cannot confirm this PaymentIntent because it has a status of {intent['status']}."
        raise payment_intents.unexpected(intent, message)
    method = _method(account, given) or account.get("payment_method", intent["payment_method"] or "")
    if method is None:
        message = "You cannot confirm this PaymentIntent because it's missing a payment method."
        raise payment_intents.unexpected(intent, message)
    _check_method(account, method, intent, absent=_is_absent(given), shown=intent)
    _check_return(intent, given)
    intent["setup_future_usage"] = given.get("setup_future_usage") or intent["setup_future_usage"]
    _use(intent, method)
    attempt(account, intent, absent=_is_absent(given), return_url=given.get("return_url"))


def attempt(account: Account, intent: JsonObject, *, absent: bool, return_url: str | None = None) -> None:
    """Let happen what a payment with the intent's method leads to.

    :param absent: whether the customer isn't there to answer his bank
    :raises StripeError: a 402, with the intent, when the method is declined
    """
    behaviour = payment_methods.behaviour(account, intent["payment_method"])
    decline = behaviour.decline or (behaviour.absent if absent else None)
    if decline is not None:
        charge = payment_intents.decline(account, intent, decline)
        raise charges.declined(charge, intent, decline)
    if behaviour.asks:
        payment_intents.require_action(account, intent, return_url=return_url)
    elif behaviour.takes_days:
        payment_intents.process(account, intent)
    else:
        payment_intents.pay(account, intent)


def _is_absent(given: JsonObject) -> bool:
    return bool(given.get("off_session") or given.get("error_on_requires_action"))


def _check(account: Account, given: JsonObject) -> None:
    texts.check_email(given, "receipt_email")
    texts.check_suffix(given)
    if given.get("customer"):
        account.named("customer", given["customer"], param="customer")


def _method(account: Account, given: JsonObject) -> JsonObject | None:
    return payment_methods.named(account, given["payment_method"]) if "payment_method" in given else None


def _check_method(
    account: Account,
    method: JsonObject,
    intent: JsonObject,
    *,
    absent: bool = False,
    shown: JsonObject | None = None,
) -> None:
    """Check that the intent's customer may pay with the method.

    :param shown: the intent that a refusal shows, once there is one
    :raises StripeError: when it is somebody else's or nobody's, can't be used again, or is of another type
    """
    message = _objection(account, method, intent, absent=absent)
    if message is not None:
        fields: dict[str, Any] = {} if shown is None else {"payment_intent": shown}
        raise invalid(message, param="payment_method", **fields)


def _objection(account: Account, method: JsonObject, intent: JsonObject, *, absent: bool) -> str | None:
    owner, customer = method["customer"], intent["customer"]
    if payment_methods.is_spent(account, method):
        return payment_methods.SPENT_BEFORE
    if owner is not None and customer is None:
        return (
            f"The `payment_method` parameter supplied {method['id']} belongs to the Customer {owner}. Please include "
            "the Customer in the `customer` parameter on the PaymentIntent."
        )
    if owner not in {None, customer}:
        return (
            f"The PaymentMethod {method['id']} does not belong to the Customer you supplied {customer}. Please use "
            "this PaymentMethod with the Customer that it belongs to instead."
        )
    if owner is None and customer is not None and absent:
        return payment_methods.sentence_of_unattached(method["id"])
    if method["type"] not in intent["payment_method_types"]:
        return (
            f"The PaymentMethod provided ({method['type']}) is not allowed for this PaymentIntent. Please attach a "
            f"PaymentMethod of a type that it allows: {', '.join(intent['payment_method_types'])}."
        )
    return None


def _check_return(intent: JsonObject, given: JsonObject) -> None:
    automatic = intent["automatic_payment_methods"]
    if automatic is not None and automatic["allow_redirects"] != "never" and "return_url" not in given:
        raise _no_return_url()


def _no_return_url() -> StripeError:
    return invalid(
        "This PaymentIntent is configured to accept payment methods enabled in your Dashboard. Because some of these "
        "payment methods might redirect your customer off of your page, you must provide a `return_url`. If you don't "
        "want to accept redirect-based payment methods, set `automatic_payment_methods[enabled]` to `true` and "
        "`automatic_payment_methods[allow_redirects]` to `never` when creating Setup Intents and Payment Intents.",
        param="return_url",
    )


def _use(intent: JsonObject, method: JsonObject) -> None:
    intent["payment_method"] = method["id"]
    if intent["status"] == "requires_payment_method":
        intent["status"] = "requires_confirmation"
