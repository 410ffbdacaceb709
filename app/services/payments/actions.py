"""The kinds of operation that do something with a payment: refund, capture and cancel.

Whether it can be done is Stripe's to say: a payment's row may lag behind. Here is decided which object it is about.
"""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam
from stripe.params import PaymentIntentCancelParams, PaymentIntentCaptureParams, RefundCreateParams

from app.database import Batch
from app.errors import InvalidRequest, NotFound, NothingToRefund, PaymentNotReady, SeveralPaymentIntents
from app.models import Operation, OperationKind, Payment, PaymentKind, TrackingState
from app.services import Services
from app.services.events.fold import FACTS, projection_of
from app.services.events.projection import Projection
from app.services.events.stripe_event import Event, answer_event, type_of_state
from app.services.events.stripe_object import cents_of, currency_of, id_of, required, text_of
from app.services.operations.accept import ACCEPT, OperationRequest, perform
from app.services.operations.kind import Kind, NewContext, create_at, find_made
from app.services.operations.operation import HeldOperation
from app.services.payment_id import read_payment_id
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import Resource

_FIND = Batch(FACTS.where(Payment.id == bindparam("payment_id"), Payment.app_id == bindparam("app_id")))
_ACCEPT = Batch(ACCEPT.returning(Operation.id))


@dataclass(frozen=True, kw_only=True)
class Refund:
    """What we use of Stripe's refund, and the whole of it."""

    id: str
    amount_in_cents: int
    currency: str
    status: str
    stripe_object: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> "Refund":
        """:raises ValueError: when it is none."""
        return cls(
            id=required(id_of(answer["id"])),
            amount_in_cents=required(cents_of(answer["amount"])),
            currency=required(currency_of(answer["currency"])),
            status=required(text_of(answer["status"])),
            stripe_object=answer,
        )


@dataclass(frozen=True, kw_only=True)
class Target:
    """The intent or the session that is captured, canceled or expired, and the state it is in."""

    id: str
    status: str
    stripe_object: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> "Target":
        """:raises ValueError: when it is none."""
        return cls(id=required(id_of(answer["id"])), status=required(text_of(answer["status"])), stripe_object=answer)


REFUNDS = Resource("/v1/refunds", "refund", Refund.read)
INTENTS = Resource("/v1/payment_intents", "payment_intent", Target.read)
SESSIONS = Resource("/v1/checkout/sessions", "checkout.session", Target.read)


def act_on_payment(
    kind: Kind[Any],
    payment_id: str,
    body: Mapping[str, Any],
    *,
    idempotency_key: str | None,
    services: Services,
    context: CallContext,
) -> dict[str, Any]:
    """Have Stripe do something with a payment, or give the answer of the request that had the same Idempotency-Key.

    :raises NotFound: when the app has no such payment.
    :raises ServiceError: as `perform`, and as the contract says.
    """
    about = {**body, "payment_id": str(read_payment_id(payment_id))}
    request = OperationRequest(kind=kind, body=about, idempotency_key=idempotency_key)
    with services.upstream_limit.hold(request.app_id):
        return perform(request, services=services, context=context)


# Which object a request is about.


def _find_payment(body: Mapping[str, Any], services: Services) -> list[Any]:
    """A payment's row with each of its facts.

    :raises NotFound: when the app has no such payment.
    :raises PaymentNotReady: when Stripe has made nothing for it.
    """
    rows = services.database.run(_FIND, payment_id=uuid.UUID(body["payment_id"]), app_id=body["app_id"])
    if not rows:
        raise NotFound("Payment not found")
    if (rows[0].stripe_payment_intent_id or rows[0].stripe_checkout_session_id) is None:
        raise PaymentNotReady
    return rows


def _session_of(payment: Any, services: Services, context: CallContext) -> Target:
    """The payment's checkout session as Stripe shows it now: until we hear of its end, only Stripe knows its intent."""
    return services.stripe.retrieve(SESSIONS, payment.app_id, payment.stripe_checkout_session_id, context)


def _intent_of(payment: Any, services: Services, context: CallContext) -> str | None:
    known = payment.stripe_payment_intent_id
    return known or id_of(_session_of(payment, services, context).stripe_object.get("payment_intent"))


def _resolve_refund(body: Mapping[str, Any], services: Services, context: CallContext) -> Mapping[str, Any]:
    rows = _find_payment(body, services)
    projection = projection_of(rows)
    if projection is None:
        raise PaymentNotReady
    intent_id = _intent_to_refund(body.get("payment_intent_id"), projection) or _intent_of(rows[0], services, context)
    if intent_id is None or (projection.successes and not projection.state.amount_received_in_cents):
        raise NothingToRefund
    return {**body, "payment_intent_id": intent_id}


def _intent_to_refund(named: str | None, projection: Projection) -> str | None:
    """The intent that the caller names, or the only one that has money left; None where that isn't known."""
    if named is not None:
        if named not in projection.own_ids:
            raise InvalidRequest({"paymentIntentId": ["Is none of this payment's."]})
        return named
    left = _left_to_refund(projection)
    with_money = [intent_id for intent_id, cents in left.items() if cents > 0]
    if len(with_money) > 1:
        raise SeveralPaymentIntents(with_money)
    # Where all was given back, Stripe says so.
    return next(iter(with_money or left), None)


def _left_to_refund(projection: Projection) -> dict[str, int]:
    """What is left of what each intent has received."""
    left = {
        success.stripe_payment_intent_id: success.amount_in_cents or 0
        for success in projection.successes
        if success.stripe_payment_intent_id
    }
    for refund in projection.refunds:
        if refund.stripe_payment_intent_id in left and not refund.has_come_back:
            left[refund.stripe_payment_intent_id] -= refund.amount_in_cents
    return left


def _resolve_capture(body: Mapping[str, Any], services: Services, context: CallContext) -> Mapping[str, Any]:
    intent_id = _intent_of(_find_payment(body, services)[0], services, context)
    if intent_id is None:
        raise PaymentNotReady
    return {**body, "payment_intent_id": intent_id}


def _resolve_cancel(body: Mapping[str, Any], services: Services, context: CallContext) -> Mapping[str, Any]:
    """The intent of an open session can't be canceled: the session expires, and its intent with it."""
    payment = _find_payment(body, services)[0]
    if payment.kind != PaymentKind.CHECKOUT_SESSION:
        return {**body, "payment_intent_id": payment.stripe_payment_intent_id}
    session = _session_of(payment, services, context)
    intent_id = id_of(session.stripe_object.get("payment_intent"))
    if session.status == "complete" and intent_id is not None:
        return {**body, "payment_intent_id": intent_id}
    return {**body, "session_id": session.id}


# What Stripe is asked, and where its answer is found again.


def _refund_params(operation: HeldOperation) -> RefundCreateParams:
    """https://docs.stripe.com/api/refunds/create"""
    request = operation.request
    params: RefundCreateParams = {
        "payment_intent": request["payment_intent_id"],
        "metadata": {
            **request.get("metadata", {}),
            "paymentId": str(operation.payment_id),
            "appId": operation.app_id,
            "operationId": str(operation.id),
        },
    }
    if "amount_in_cents" in request:
        params["amount"] = request["amount_in_cents"]
    if "reason" in request:
        params["reason"] = request["reason"]
    return params


def _capture_params(operation: HeldOperation) -> PaymentIntentCaptureParams:
    """https://docs.stripe.com/api/payment_intents/capture"""
    request = operation.request
    return {"amount_to_capture": request["amount_in_cents"]} if "amount_in_cents" in request else {}


def _cancel_params(operation: HeldOperation) -> PaymentIntentCancelParams:
    """https://docs.stripe.com/api/payment_intents/cancel; a session expires without a reason."""
    request = operation.request
    return {"cancellation_reason": request["reason"]} if "reason" in request and "session_id" not in request else {}


def _target_of(operation: HeldOperation) -> tuple[Resource[Target], str]:
    request = operation.request
    if "session_id" in request:
        return SESSIONS, request["session_id"]
    return INTENTS, request["payment_intent_id"]


def _act(
    action: str, operation: HeldOperation, params: Mapping[str, Any], services: Services, context: CallContext
) -> Target:
    resource, target_id = _target_of(operation)
    return services.stripe.act(
        resource,
        operation.app_id,
        target_id,
        action,
        params,
        idempotency_key=operation.upstream_key,
        context=context,
    )


def _capture(operation: HeldOperation, params: Mapping[str, Any], services: Services, context: CallContext) -> Target:
    return _act("capture", operation, params, services, context)


def _cancel(operation: HeldOperation, params: Mapping[str, Any], services: Services, context: CallContext) -> Target:
    return _act("expire" if "session_id" in operation.request else "cancel", operation, params, services, context)


def _look_at_target(operation: HeldOperation, services: Services, new_context: NewContext) -> Target:
    resource, target_id = _target_of(operation)
    return services.stripe.retrieve(resource, operation.app_id, target_id, new_context())


_list_refunds = find_made(
    REFUNDS,
    mark="operationId",
    among=lambda operation: {"payment_intent": operation.request["payment_intent_id"]},
)


def _find_refund(operation: HeldOperation, services: Services, new_context: NewContext) -> Refund | None:
    made = _list_refunds(operation, services, new_context)
    if made is None:
        # That there is none is told only by the account that has the intent.
        _look_at_target(operation, services, new_context)
    return made


def _find_captured(operation: HeldOperation, services: Services, new_context: NewContext) -> Target | None:
    intent = _look_at_target(operation, services, new_context)
    wanted = operation.request.get("amount_in_cents")
    is_done = intent.status == "succeeded" and wanted in (None, intent.stripe_object.get("amount_received"))
    return intent if is_done else None


def _find_canceled(operation: HeldOperation, services: Services, new_context: NewContext) -> Target | None:
    target = _look_at_target(operation, services, new_context)
    return target if target.status in ("canceled", "expired") else None


# What becomes of the answer.


def _tell_refund(operation: HeldOperation, refund: Refund) -> Event:
    return answer_event(operation.upstream_key, "refund.created", refund.stripe_object)


def _tell_state(operation: HeldOperation, target: Target) -> Event:
    """The state that the object has come to now; one that no event tells of says nothing."""
    told = type_of_state(target.stripe_object) or f"{target.stripe_object['object']}.updated"
    return answer_event(operation.upstream_key, told, target.stripe_object, created=int(time.time()))


def _answer_refund(operation: HeldOperation, refund: Refund) -> dict[str, Any]:
    return {
        "success": True,
        "payment_id": str(operation.payment_id),
        "refund_id": refund.id,
        "amount_in_cents": refund.amount_in_cents,
        "currency": refund.currency,
        "status": refund.status,
    }


def _answer_capture(operation: HeldOperation, intent: Target) -> dict[str, Any]:
    return {
        "success": True,
        "payment_id": str(operation.payment_id),
        "status": intent.status,
        "amount_received_in_cents": cents_of(intent.stripe_object.get("amount_received")) or 0,
    }


def _answer_cancel(operation: HeldOperation, target: Target) -> dict[str, Any]:
    return {"success": True, "payment_id": str(operation.payment_id), "status": target.status}


# An action makes no run and no cost.


def _columns(operation_id: uuid.UUID, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"payment_id": uuid.UUID(body["payment_id"]), "run_id": None, "tracking_state": TrackingState.NONE}


REFUND: Kind[Refund] = Kind(
    name=OperationKind.REFUND,
    needs_key=lambda body: True,
    resolve=_resolve_refund,
    params=_refund_params,
    ask=create_at(REFUNDS),
    find=_find_refund,
    fact=_tell_refund,
    answer=_answer_refund,
    accept=_ACCEPT,
    columns=_columns,
)
CAPTURE: Kind[Target] = Kind(
    name=OperationKind.CAPTURE,
    resolve=_resolve_capture,
    params=_capture_params,
    ask=_capture,
    find=_find_captured,
    is_told_by_state=True,
    fact=_tell_state,
    answer=_answer_capture,
    accept=_ACCEPT,
    columns=_columns,
)
CANCEL: Kind[Target] = Kind(
    name=OperationKind.CANCEL,
    resolve=_resolve_cancel,
    params=_cancel_params,
    ask=_cancel,
    find=_find_canceled,
    is_told_by_state=True,
    fact=_tell_state,
    answer=_answer_cancel,
    accept=_ACCEPT,
    columns=_columns,
)
