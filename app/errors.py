"""Our errors, each with its status and code, and the one handler that gives them the wire shape.

ServiceError                         500       internal_error
├── InvalidRequest                   400       invalid_request
├── UnknownFilter                    400       unknown_filter
├── NoStripeKey                      400       no_stripe_key
├── IdempotencyKeyRequired           400       idempotency_key_required
├── IdentityConflict                 400       identity_conflict
├── NothingToRefund                  400       nothing_to_refund
├── SeveralPaymentIntents            400       several_payment_intents
├── NoPaymentMethod                  400       no_payment_method
├── StripeRefusal                    400, 402  Stripe's
│   ├── CardDeclined                 402       Stripe's                     services.upstreams.stripe
│   ├── Declined                     402       Stripe's                     services.operations.kind
│   ├── NoSuchObject                 400       Stripe's                     services.upstreams.stripe
│   └── ObjectExists                 400       Stripe's                     services.upstreams.stripe
├── MissingSignature                 400       missing_signature            services.events.webhooks
├── InvalidSignature                 400       invalid_signature            services.events.webhooks
├── NotAnEvent                       400       not_a_stripe_event           services.events.stripe_event
├── MalformedRequest                 400       malformed_request
├── MissingApiKey                    401       missing_api_key
├── InvalidApiKey                    403       invalid_api_key
├── KeyOfAnotherApp                  403       key_of_another_app
├── ScopeMissing                     403       scope_missing
├── ServiceKeyRequired               403       service_key_required
├── NotFound                         404       not_found
├── IdempotencyKeyInUse              409       idempotency_key_in_use
├── PaymentNotReady                  409       payment_not_ready
├── CustomerExists                   409       customer_exists
├── RequestLineTooLong               414       request_line_too_long
├── UnknownExpectation               417       unknown_expectation
├── IdempotencyKeyReused             422       idempotency_key_reused
├── TooManyWrongKeys                 429       too_many_wrong_keys
├── StripeRateLimited                429       stripe_rate_limited
│   └── ObjectLocked                 429       stripe_rate_limited          services.upstreams.stripe
├── HeaderFieldsTooLarge             431       header_fields_too_large
├── CursorLost                       500       cursor_lost                  services.reconciliation.reconcile (internal)
├── AccountTaken                     500       account_taken                services.webhook_endpoints.lease (internal)
├── UnknownTransferCoding            501       unknown_transfer_coding
├── Overloaded                       503       overloaded
├── DatabaseUnavailable              503       database_unavailable
├── LeaseLost                        503       payment_handed_over          services.operations.operation
└── UpstreamError                    502       upstream_error
    ├── StripeKeyRefused             502       stripe_key_refused           services.upstreams.stripe
    ├── IdempotencyMismatch          502       stripe_idempotency_mismatch  services.upstreams.stripe
    ├── ReplayedFailure              502       upstream_error               services.upstreams.stripe
    ├── RunsRefusal                  502       runs_service_refused         services.upstreams.runs
    ├── UpstreamUnavailable          503       upstream_unavailable
    │   └── IdempotencyKeyExecuting  503       upstream_unavailable         services.upstreams.stripe
    └── UpstreamTimeout              504       upstream_timeout

An error is defined in the module that is named, or here. Stripe's: status and code are those that Stripe answered.
Internal: no caller is answered with it. docs/errors.md says when each code is answered, and what a caller does next.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import psycopg2
import psycopg2.errors
from flask import Flask, Response, current_app, g, jsonify, request
from psycopg2.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import NotFound as NotFoundOfHttp

log = logging.getLogger(__name__)

_SLASHES = re.compile(r"/{2,}")


# Of what a caller called fields of its own, as far as it is repeated.
MAX_NAMES_LENGTH = 200


class ServiceError(Exception):
    """The base of everything we answer on purpose. The sentence is for the caller: it never holds a secret."""

    status: int = 500
    code: str = "internal_error"
    retry_after_seconds: int | None = None
    details: Mapping[str, Any] | None = None
    # How a call to an upstream is counted that ended so.
    outcome: ClassVar[str] = "refused"
    # What the example in the OpenAPI document is made with.
    example: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class InvalidRequest(ServiceError):
    """A rule of the contract is broken; `details` says which, field by field."""

    status = 400
    code = "invalid_request"
    example: ClassVar = {"field_errors": {"lineItems": ["Missing data for required field."]}}

    def __init__(
        self, field_errors: Mapping[str, list[str]] | None = None, form_errors: list[str] | None = None
    ) -> None:
        super().__init__("Invalid request")
        self.details = {"fieldErrors": dict(field_errors or {}), "formErrors": form_errors or []}


class UnknownFilter(ServiceError):
    """A filter that we don't know: without it, a wider question would be answered than was asked."""

    status = 400
    code = "unknown_filter"
    example: ClassVar = {"names": ["organisation"]}

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"Unknown filter: {', '.join(names)[:MAX_NAMES_LENGTH]}")


class NoStripeKey(ServiceError):
    """key-service has no key for the app."""

    status = 400
    code = "no_stripe_key"
    example: ClassVar = {"app_id": "shop"}

    def __init__(self, app_id: str) -> None:
        super().__init__(f"No Stripe key configured for appId '{app_id}'")


class IdempotencyKeyRequired(ServiceError):
    """Without a key, a retry can't be told from a second request, which is just as legitimate."""

    status = 400
    code = "idempotency_key_required"

    def __init__(self) -> None:
        super().__init__("This request moves money: send an Idempotency-Key, so that a retry doesn't do it twice")


class IdentityConflict(ServiceError):
    """A header says that the caller is somebody else than the request says."""

    status = 400
    code = "identity_conflict"
    example: ClassVar = {"header": "X-Org-Id", "field": "orgId"}

    def __init__(self, header: str, field: str) -> None:
        super().__init__(f"The header {header} and {field} say different things")


class NothingToRefund(ServiceError):
    """Nothing was received for the payment."""

    status = 400
    code = "nothing_to_refund"

    def __init__(self) -> None:
        super().__init__("Nothing was received for this payment")


class SeveralPaymentIntents(ServiceError):
    """The payment was made by several payment intents, and the request says for none of them which."""

    status = 400
    code = "several_payment_intents"
    example: ClassVar = {"payment_intent_ids": ["pi_3a1b2", "pi_3c4d5"]}

    def __init__(self, payment_intent_ids: list[str]) -> None:
        super().__init__("Several payment intents of this payment have money left; name one as paymentIntentId")
        self.details = {"paymentIntentIds": payment_intent_ids}


class NoPaymentMethod(ServiceError):
    """The customer has saved nothing that can be charged without him."""

    status = 400
    code = "no_payment_method"

    def __init__(self) -> None:
        super().__init__("There is no saved card or Link that can be charged; have the customer save one")


class StripeRefusal(ServiceError):
    """Stripe refused the request for good; the message and the code are Stripe's."""

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class MalformedRequest(ServiceError):
    """What was sent is no HTTP request, or its chunks are broken."""

    status = 400
    code = "malformed_request"

    def __init__(self) -> None:
        super().__init__("The request is not readable as HTTP")


class MissingApiKey(ServiceError):
    """The caller sent no API key; `details` names the header, as the sentence is fixed."""

    status = 401
    code = "missing_api_key"

    def __init__(self) -> None:
        super().__init__("Missing API key")
        self.details = {"fieldErrors": {"X-API-Key": ["Send an API key in this header."]}, "formErrors": []}


class InvalidApiKey(ServiceError):
    """The caller's API key is none of ours."""

    status = 403
    code = "invalid_api_key"
    example: ClassVar = {"sentence": "Invalid API key"}


class KeyOfAnotherApp(ServiceError):
    """The request names an app that isn't the one of its key."""

    status = 403
    code = "key_of_another_app"

    def __init__(self) -> None:
        super().__init__("This key is for another app")


class ScopeMissing(ServiceError):
    """The key is good for less than the request needs; `details` says for what."""

    status = 403
    code = "scope_missing"
    example: ClassVar = {"scope": "money"}

    def __init__(self, scope: str) -> None:
        super().__init__(f"This key lacks the scope '{scope}'")
        self.details = {"scope": scope}


class ServiceKeyRequired(ServiceError):
    """Only the service's own key may ask that."""

    status = 403
    code = "service_key_required"

    def __init__(self) -> None:
        super().__init__("This needs the service's own key")


class NotFound(ServiceError):
    """There is no such thing."""

    status = 404
    code = "not_found"
    example: ClassVar = {"sentence": "Payment not found"}


class IdempotencyKeyInUse(ServiceError):
    """Another request with the same Idempotency-Key is being worked on."""

    status = 409
    code = "idempotency_key_in_use"
    retry_after_seconds = 1

    def __init__(self) -> None:
        super().__init__("A request with this Idempotency-Key is being worked on; retry in a moment")


class PaymentNotReady(ServiceError):
    """The payment has nothing at Stripe yet that the request could be about."""

    status = 409
    code = "payment_not_ready"

    def __init__(self) -> None:
        super().__init__("This payment is not ready for that: Stripe has nothing of it yet")


class CustomerExists(ServiceError):
    """The organisation that a customer is to be handed to has one of its own."""

    status = 409
    code = "customer_exists"

    def __init__(self) -> None:
        super().__init__("That organisation has a customer of its own; delete it first, or keep both")


class RequestLineTooLong(ServiceError):
    """The path and the query are longer than we read."""

    status = 414
    code = "request_line_too_long"

    def __init__(self) -> None:
        super().__init__("The request line is too long")


class UnknownExpectation(ServiceError):
    """The header `Expect` asks for something else than to continue."""

    status = 417
    code = "unknown_expectation"

    def __init__(self) -> None:
        super().__init__("The only expectation that is met is 100-continue")


class IdempotencyKeyReused(ServiceError):
    """The Idempotency-Key was used before, with another route or body."""

    status = 422
    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used before with another request")


class TooManyWrongKeys(ServiceError):
    """Of the caller's address came many wrong keys: another one is not looked at now."""

    status = 429
    code = "too_many_wrong_keys"
    example: ClassVar = {"retry_after_seconds": 2}

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__("Too many wrong keys came from this address; retry later")
        self.retry_after_seconds = retry_after_seconds


class StripeRateLimited(ServiceError):
    """Stripe is rate limiting the app; nothing was executed."""

    status = 429
    code = "stripe_rate_limited"
    retry_after_seconds = 1
    outcome = "unavailable"

    def __init__(self) -> None:
        super().__init__("Stripe is rate limiting this app; retry in a moment")


class HeaderFieldsTooLarge(ServiceError):
    """The header fields are more or longer than we read."""

    status = 431
    code = "header_fields_too_large"

    def __init__(self) -> None:
        super().__init__("The header fields are too many or too long")


class UnknownTransferCoding(ServiceError):
    """The body is sent in a coding that we don't know."""

    status = 501
    code = "unknown_transfer_coding"

    def __init__(self) -> None:
        super().__init__("The only transfer coding that is read is chunked")


class Overloaded(ServiceError):
    """More is being worked on than can be answered in time."""

    status = 503
    code = "overloaded"
    retry_after_seconds = 1

    def __init__(self) -> None:
        super().__init__("The service works on as much as it can at once; retry in a moment")


class DatabaseUnavailable(ServiceError):
    """PostgreSQL can't be reached, didn't answer in time, or takes no writes. `reason` says which, for logs."""

    status = 503
    code = "database_unavailable"
    retry_after_seconds = 2
    example: ClassVar = {"reason": "SQLSTATE 08006"}

    def __init__(self, *, reason: str) -> None:
        super().__init__("The database is unavailable; retry in a moment")
        self.reason = reason


class UpstreamError(ServiceError):
    """An upstream answered nonsense or refused us.

    `executed` is False where the call certainly had no effect, and None where nobody can tell.
    `reason` says what came back, in a few words of ours, for logs and for `tracking.error`.
    """

    status = 502
    code = "upstream_error"
    outcome = "error"
    example: ClassVar = {"upstream": "Stripe", "reason": "answered 500"}
    verb: ClassVar[str] = "gave no usable answer"

    def __init__(
        self, upstream: str, *, reason: str, executed: bool | None = None, sentence: str | None = None
    ) -> None:
        super().__init__(sentence or f"{upstream} {self.verb}")
        self.upstream = upstream
        self.reason = reason
        self.executed = executed

    def with_sentence(self, sentence: str) -> "UpstreamError":
        """The same failure, told the caller in other words."""
        return type(self)(self.upstream, reason=self.reason, executed=self.executed, sentence=sentence)


class UpstreamUnavailable(UpstreamError):
    """An upstream is down or overloaded."""

    status = 503
    code = "upstream_unavailable"
    retry_after_seconds = 2
    outcome = "unavailable"
    verb = "is unavailable"


class UpstreamTimeout(UpstreamError):
    """An upstream took too long."""

    status = 504
    code = "upstream_timeout"
    outcome = "timeout"
    verb = "took too long to answer"


def register_error_handlers(app: Flask) -> None:
    """Answer every error in the one shape of the contract."""
    app.register_error_handler(Exception, answer_error)


def answer_error(error: Exception) -> Response:
    """Turn any exception into the wire shape; what is not ours to tell becomes a plain 500."""
    if isinstance(error, HTTPException):
        return _answer_http_exception(error)
    known = _as_service_error(error)
    if known.status >= 500:
        log.error("%s", known.sentence, exc_info=error if known.status == 500 else None, extra=_log_fields(known))
    return _answer(known.status, known.sentence, known.code, known.details, known.retry_after_seconds)


def _as_service_error(error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    if is_database_outage(error):
        return DatabaseUnavailable(reason=_outage_reason(error))
    return ServiceError("Internal server error")


# The driver's own come through where SQLAlchemy hands a connection back that broke meanwhile. Operational are those of
# the classes 08, 40, 53, 55, 57 and 58. Class 25 mostly tells of bugs; three of it come from the server: it only reads,
# as a former primary or one beyond its quota does, or it ended a transaction that took too long.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
OUTAGES = (
    OperationalError,
    InterfaceError,
    PoolTimeoutError,
    psycopg2.OperationalError,
    psycopg2.InterfaceError,
    psycopg2.errors.ReadOnlySqlTransaction,
    psycopg2.errors.IdleInTransactionSessionTimeout,
    psycopg2.errors.lookup("25P04"),  # transaction_timeout
)


# What a use case that can go on without the database catches.
DATABASE_ERRORS = (SQLAlchemyError, psycopg2.Error)


def is_database_outage(error: Exception) -> bool:
    """Whether this says that the database is away, too slow or only reads, rather than that we misused it."""
    if isinstance(error, DBAPIError) and (error.connection_invalidated or isinstance(error.orig, OUTAGES)):
        return True
    return isinstance(error, OUTAGES)


def _outage_reason(error: Exception) -> str:
    """What kind of outage it is, for logs."""
    driver = error.orig if isinstance(error, DBAPIError) else error
    sqlstate = driver.pgcode if isinstance(driver, psycopg2.Error) else None
    return f"SQLSTATE {sqlstate}" if sqlstate else type(driver).__name__


# What another transaction holds up: a lock that doesn't come in time, or two that wait for each other.
LOCK_CONFLICTS = (LockNotAvailable, DeadlockDetected)


def is_lock_conflict(error: Exception) -> bool:
    """Whether this says that another transaction was in the way: the database is well, and other rows can be had."""
    return isinstance(error, DBAPIError) and isinstance(error.orig, LOCK_CONFLICTS)


def _log_fields(error: ServiceError) -> dict[str, object]:
    if isinstance(error, UpstreamError):
        return {"upstream": error.upstream, "reason": error.reason}
    return {"reason": error.reason} if isinstance(error, DatabaseUnavailable) else {}


# What a caller does next, where the name of the status alone doesn't say it.
_NEXT_STEPS = {
    413: "send a body of at most 1 MiB (1,048,576 bytes)",
    415: "send the body as JSON, with the header Content-Type: application/json",
}


def http_words(error: HTTPException, next_step: str | None = None) -> tuple[str, str]:
    """The sentence and the code of an error of HTTP's own; the name of its status says most of it."""
    next_step = next_step or _NEXT_STEPS.get(error.code or 500)
    sentence = f"{error.name}: {next_step}" if next_step else error.name
    return sentence, error.name.lower().replace(" ", "_")


def _answer_http_exception(error: HTTPException) -> Response:
    sentence, code = http_words(error, _right_path() if isinstance(error, NotFoundOfHttp) else None)
    response = _answer(error.code or 500, sentence, code, None, None)
    # A 405 has to keep its Allow header.
    response.headers.extend((k, v) for k, v in error.get_headers() if k not in ("Content-Type", "Content-Length"))
    return response


def _right_path() -> str | None:
    """Names the route that a path with a slash too many must mean, if there is one."""
    path = _SLASHES.sub("/", request.path).rstrip("/")
    if path == request.path or not current_app.create_url_adapter(request).allowed_methods(path):  # type: ignore[union-attr]
        return None
    return f"the path has a slash too many, use {path[:MAX_NAMES_LENGTH]}"


def _answer(
    status: int, sentence: str, code: str, details: Mapping[str, Any] | None, retry_after_seconds: int | None
) -> Response:
    g.error_code = code
    body = error_body(sentence, code, g.get("request_id", ""))
    if details is not None:
        body["details"] = details
    response = jsonify(body)
    response.status_code = status
    if retry_after_seconds is not None:
        response.headers["Retry-After"] = str(retry_after_seconds)
    return response


def error_body(sentence: str, code: str, request_id: str) -> dict[str, Any]:
    """The shape of every error."""
    return {"error": sentence, "code": code, "requestId": request_id}
