"""Sessions of the page on which a customer minds his own methods. https://docs.stripe.com/api/customer_portal/sessions."""

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe.account import Account, random_id
from app.sandbox.stripe.errors import invalid, missing_parameter
from app.sandbox.stripe.parameters import chosen


def create(account: Account, parameters: JsonObject) -> JsonObject:
    """Open a session, whose page is served by the sandbox.

    :raises StripeError: when there is no such customer, or no URL to come back to
    """
    if "customer" not in parameters:
        raise missing_parameter("customer")
    customer = account.named("customer", parameters["customer"], param="customer")
    return_url = parameters.get("return_url")
    if return_url is not None and not return_url.lower().startswith(("http://", "https://")):
        raise invalid("Not a valid URL", param="return_url", code="url_invalid")
    identifier = random_id("bps_")
    return account.new(
        "billing_portal.session",
        id=identifier,
        customer=customer["id"],
        return_url=return_url,
        url=f"{account.caller.base_url}/portal/{identifier}",
        **chosen(parameters, "configuration", "locale"),
    )
