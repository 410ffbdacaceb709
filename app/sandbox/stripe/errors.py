"""Stripe's errors, in Stripe's envelope: https://docs.stripe.com/api/errors."""

from typing import Any

from app.sandbox.json_object import JsonObject

# https://docs.stripe.com/rate-limits#object-lock-timeouts
LOCK_TIMEOUT: JsonObject = {
    "code": "lock_timeout",
    "message": "This object cannot be accessed right now because another request is accessing it.",
    "type": "invalid_request_error",
}


class StripeError(Exception):
    """A request that Stripe refuses.

    :param executed: whether the endpoint had begun executing, so that the refusal is kept for the idempotency key
    """

    def __init__(self, status: int, type_: str, message: str, *, executed: bool = False, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.executed = executed
        self.error: JsonObject = {**fields, "message": message, "type": type_}


def invalid(message: str, *, param: str | None = None, code: str | None = None, **fields: Any) -> StripeError:
    """A 400: Stripe calls the request invalid."""
    error = StripeError(400, "invalid_request_error", message, **fields)
    error.error |= {name: value for name, value in {"code": code, "param": param}.items() if value is not None}
    return error


def refused(message: str, **fields: Any) -> StripeError:
    """A 400 that the state of an object is the reason for: it was found while executing, so the key keeps it."""
    error = invalid(message, **fields)
    error.executed = True
    return error


def missing_parameter(param: str) -> StripeError:
    return invalid(f"Missing required param: {param}.", param=param, code="parameter_missing")


def no_such(resource: str, identifier: str, *, param: str, status: int = 404) -> StripeError:
    """The object that was named doesn't exist: 404 in the URL, 400 among the parameters."""
    message = f"No such {resource}: '{identifier}'"
    return StripeError(status, "invalid_request_error", message, code="resource_missing", param=param)


LIVE_KEYS = ("sk_live_", "rk_live_")


def unauthorized(key: str) -> StripeError:
    if not key:
        message = "You did not provide an API key. You need to provide your API key in the Authorization header."
    elif key.startswith(LIVE_KEYS):
        message = "This is a stand-in for Stripe. A live key must never be given to a stand-in: use one of test mode."
    else:
        message = f"Invalid API Key provided: {key[:8]}{'*' * max(len(key) - 12, 0)}{key[-4:] if len(key) > 12 else ''}"
    return StripeError(401, "invalid_request_error", message)


def envelope_for(status: int) -> JsonObject:
    """What Stripe's answer of that status says, for a fault that gives none itself."""
    known: dict[int, JsonObject] = {
        401: {"message": "Invalid API Key provided: sk_test_****", "type": "invalid_request_error"},
        402: {
            "code": "card_declined",
            "decline_code": "generic_decline",
            "message": "Your card was declined.",
            "type": "card_error",
        },
        403: {"message": "The provided key does not have the required permissions.", "type": "invalid_request_error"},
        409: LOCK_TIMEOUT,
        429: {
            "code": "rate_limit",
            "message": "Request rate limit exceeded.",
            "type": "invalid_request_error",
        },
    }
    if status >= 500:
        return {"error": {"message": "An unknown error occurred", "type": "api_error"}}
    return {"error": known.get(status, {"message": "The request is invalid.", "type": "invalid_request_error"})}
