"""Texts that Stripe shows to a customer or writes to, as it checks them."""

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe.errors import invalid

MAX_SUFFIX_LENGTH = 22
FORBIDDEN_IN_SUFFIX = set("<>\\'\"*")


def check_email(parameters: JsonObject, name: str, *, within: str | None = None) -> None:
    """Check an address.

    :param within: the parameter that these are a part of
    :raises StripeError: when the parameter is given and is no e-mail address
    """
    email = parameters.get(name) or ""
    if email and ("@" not in email[1:-1] or " " in email):
        raise invalid(f"Invalid email address: {email}", param=_path(name, within), code="email_invalid")


def check_suffix(parameters: JsonObject, *, within: str | None = None) -> None:
    """Check what stands behind the account's name on a bank statement.

    https://docs.stripe.com/get-started/account/statement-descriptors#requirements

    :raises StripeError: when it is too long, or has a character that banks don't take
    """
    suffix = parameters.get("statement_descriptor_suffix") or ""
    param = _path("statement_descriptor_suffix", within)
    if len(suffix) > MAX_SUFFIX_LENGTH:
        message = f"The statement descriptor suffix must be at most {MAX_SUFFIX_LENGTH} characters."
        raise invalid(message, param=param)
    if FORBIDDEN_IN_SUFFIX & set(suffix):
        message = "The statement descriptor suffix can't contain any of the characters <, >, \\, ', \" and *."
        raise invalid(message, param=param)


def _path(name: str, within: str | None) -> str:
    return name if within is None else f"{within}[{name}]"
