"""Customers, of which nothing is unique. https://docs.stripe.com/api/customers."""

from app.sandbox.json_object import JsonObject, snapshot
from app.sandbox.stripe import metadata, payment_methods, texts
from app.sandbox.stripe.account import Account
from app.sandbox.stripe.parameters import chosen

FIELDS = (
    "address",
    "balance",
    "description",
    "email",
    "name",
    "phone",
    "preferred_locales",
    "shipping",
    "tax_exempt",
)
SETTINGS = ("custom_fields", "footer")
DEFAULT_METHOD = "invoice_settings[default_payment_method]"
ENDED_SUBSCRIPTIONS = ("canceled", "incomplete_expired")


def create(account: Account, parameters: JsonObject) -> JsonObject:
    """Make a customer, who may bring a payment method.

    :raises StripeError: when the e-mail isn't one, or the card is refused
    """
    texts.check_email(parameters, "email")
    method = None
    default = parameters.get("invoice_settings", {}).get("default_payment_method")
    if default is not None and default != parameters.get("payment_method"):
        raise payment_methods.unattached(default, param=DEFAULT_METHOD)
    if "payment_method" in parameters:
        method = payment_methods.named(account, parameters["payment_method"])
        payment_methods.check_attachable(account, method)
    customer = account.new("customer", **chosen(parameters, "metadata", *FIELDS))
    settings = chosen(parameters.get("invoice_settings", {}), *SETTINGS)
    customer["invoice_settings"] |= settings | {"default_payment_method": default and method and method["id"]}
    account.emit("customer.created", customer)
    if method is not None:
        payment_methods.save(account, method, customer["id"])
    return customer


def update(account: Account, customer: JsonObject, parameters: JsonObject) -> None:
    """Change what is given; an empty value unsets it.

    :raises StripeError: when the e-mail isn't one, or the default method isn't the customer's
    """
    texts.check_email(parameters, "email")
    settings = dict(parameters.get("invoice_settings", {}))
    default = settings.get("default_payment_method")
    if default and (account.get("payment_method", default) or {}).get("customer") != customer["id"]:
        raise payment_methods.unattached(default, param=DEFAULT_METHOD)
    before = snapshot(customer)
    for name in set(FIELDS) & set(parameters):
        customer[name] = parameters[name] if parameters[name] != "" else None
    customer["invoice_settings"] |= {
        name: settings[name] or None for name in (*SETTINGS, "default_payment_method") if name in settings
    }
    if "metadata" in parameters:
        metadata.merge(customer, parameters["metadata"])
    previous = {name: value for name, value in before.items() if value != customer[name]}
    if previous:
        account.emit("customer.updated", customer, previous=previous)


def delete(account: Account, customer: JsonObject) -> JsonObject:
    """End the customer's subscriptions, let go of the saved methods, and leave only the id."""
    for subscription in list(account.where("subscription", customer=customer["id"])):
        if subscription["status"] not in ENDED_SUBSCRIPTIONS:
            now = account.clock.now()
            subscription |= {"status": "canceled", "canceled_at": now, "ended_at": now}
            account.emit("customer.subscription.deleted", subscription)
    for method in list(payment_methods.of_customer(account, customer["id"])):
        payment_methods.release(account, method)
    account.emit("customer.deleted", customer)
    deleted = {"id": customer["id"], "object": "customer", "deleted": True}
    account.keep(deleted)
    return deleted
