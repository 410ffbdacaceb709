"""Creating a payment: accepted -> asked -> taken -> finished, each step one commit made only by the lease's holder.

A payment can be left at any step, by an outage or by a crash, and be taken further from there by whoever holds the
lease next. So no step may assume that the one before it was made by the same process.
"""

import hashlib
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Row, bindparam, case, func, null, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql import Executable

from app.errors import (
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    ServiceError,
    StripeRateLimited,
    StripeRefusal,
    UpstreamError,
)
from app.models import Payment, PaymentKind, PaymentStatus, Step, TrackingState, known_status
from app.services import Services
from app.services.http import CallContext
from app.services.runs_client import NewRun, RunsRefusal, RunStatus
from app.services.stripe_client import CheckoutSession, PaymentIntent
from app.services.stripe_params import checkout_session_params, payment_intent_params, payment_metadata

log = logging.getLogger(__name__)

TASK_NAMES = {
    PaymentKind.CHECKOUT_SESSION: "create-checkout-session",
    PaymentKind.PAYMENT_INTENT: "create-payment-intent",
}
COST_NAMES = {
    PaymentKind.CHECKOUT_SESSION: "stripe-checkout-session",
    PaymentKind.PAYMENT_INTENT: "stripe-payment-intent",
}

# Stripe keeps idempotency keys for at least 24 hours; an hour is left for clocks and for the call itself.
# https://docs.stripe.com/api/idempotent_requests
STRIPE_IDEMPOTENCY_WINDOW = timedelta(hours=23)


class LeaseLost(ServiceError):
    """The payment took longer than its lease, and another process has it now."""

    status = 503
    code = "payment_handed_over"
    retry_after_seconds = 1

    def __init__(self) -> None:
        super().__init__("This payment took too long and was handed over to another process; retry in a moment")


@dataclass(frozen=True, kw_only=True)
class PaymentRequest:
    """A validated request to create a payment, with the names and the defaults of its schema."""

    kind: PaymentKind
    body: Mapping[str, Any]
    idempotency_key: str | None

    @property
    def app_id(self) -> str:
        return str(self.body["app_id"])

    @property
    def digest(self) -> bytes:
        """Tells one request from another: a hash of the route and of the validated body."""
        return hashlib.sha256(
            self.kind.encode() + b"\n" + orjson.dumps(self.body, option=orjson.OPT_SORT_KEYS)
        ).digest()


@dataclass(frozen=True, kw_only=True)
class HeldPayment:
    """A payment whose lease we hold, as far as walking it needs.

    `first_hand` says that nobody held it before us, so that no call of a former holder can be under way.
    """

    id: uuid.UUID
    kind: PaymentKind
    request: Mapping[str, Any]
    step: Step
    attempt: int
    lease_token: uuid.UUID
    org_id: str | None
    run_id: str | None
    stripe_params: Mapping[str, Any] | None = None
    first_hand: bool = False

    @property
    def app_id(self) -> str:
        return str(self.request["app_id"])

    @property
    def upstream_key(self) -> str:
        """The idempotency key of this attempt, at Stripe and at runs-service."""
        return f"{self.id}:{self.attempt}"


_KNOWN_COLUMNS = (
    Payment.id,
    Payment.app_id,
    Payment.kind,
    Payment.request_hash,
    Payment.answer_status,
    Payment.answer,
    Payment.stripe_payment_intent_id,
)
_HELD_COLUMNS = (
    Payment.id,
    Payment.kind,
    Payment.request,
    Payment.step,
    Payment.attempt,
    Payment.lease_token,
    Payment.org_id,
    Payment.run_id,
    Payment.stripe_params,
)
_LEASE = func.now() + bindparam("lease")
_HOLDS_LEASE = (Payment.id == bindparam("payment_id")) & (Payment.lease_token == bindparam("token"))

_FIND_BY_KEY = select(*_KNOWN_COLUMNS).where(
    Payment.app_id == bindparam("app_id"), Payment.idempotency_key == bindparam("idempotency_key")
)

# One row for an app's Idempotency-Key, whoever comes first; it is born leased, so that nobody else works on it.
_ACCEPT = (
    insert(Payment)
    .values(
        id=bindparam("payment_id"),
        step=Step.ACCEPTED,
        lease_token=bindparam("token"),
        lease_until=_LEASE,
        run_search_from=case((bindparam("makes_run"), func.now()), else_=null()),
        run_search_until=case((bindparam("makes_run"), _LEASE), else_=null()),
        **{
            name: bindparam(name)
            for name in (
                "kind", "app_id", "idempotency_key", "request_hash", "request", "org_id", "run_id", "parent_run_id",
                "brand_id", "campaign_id", "stripe_customer_id", "amount_in_cents", "currency", "description",
                "payment_metadata", "tracking_state",
            )
        },
    )
    .on_conflict_do_nothing(
        index_elements=[Payment.app_id, Payment.idempotency_key],
        index_where=Payment.idempotency_key.is_not(None),
    )
    .returning(Payment.id)
)  # fmt: skip


def _unless_restarted(value: Any, otherwise: Any) -> ColumnElement[Any]:
    return case((Payment.step == Step.FINISHED, value), else_=otherwise)


# A retry takes over a payment that its holder let go of or died with, where it stands. One that was abandoned
# before Stripe took it, and so has no answer to give again, starts anew in the same row under a new attempt.
_TAKE_OVER = (
    update(Payment)
    .where(
        Payment.id == bindparam("payment_id"),
        Payment.answer.is_(None),
        or_(
            (Payment.step == Step.ACCEPTED) & (Payment.lease_until <= func.now()),
            (Payment.step == Step.ASKED)
            & (Payment.lease_until <= func.now())
            & (Payment.asked_at > func.now() - STRIPE_IDEMPOTENCY_WINDOW),
            (Payment.step == Step.FINISHED) & (Payment.status == PaymentStatus.REJECTED),
        ),
    )
    .values(
        step=_unless_restarted(Step.ACCEPTED, Payment.step),
        attempt=_unless_restarted(Payment.attempt + 1, Payment.attempt),
        status=PaymentStatus.CREATING,
        run_id=_unless_restarted(case((Payment.org_id.is_(None), Payment.run_id)), Payment.run_id),
        stripe_params=_unless_restarted(null(), Payment.stripe_params),
        asked_at=_unless_restarted(null(), Payment.asked_at),
        tracking_state=_unless_restarted(
            case(
                (Payment.run_id.is_(None) & Payment.org_id.is_(None), TrackingState.NONE), else_=TrackingState.PENDING
            ),
            Payment.tracking_state,
        ),
        tracking_error=_unless_restarted(null(), Payment.tracking_error),
        lease_token=bindparam("token"),
        lease_until=_LEASE,
        run_search_from=case((Payment.org_id.is_not(None), func.coalesce(Payment.run_search_from, func.now()))),
        run_search_until=case((Payment.org_id.is_not(None), _LEASE)),
        updated_at=func.now(),
    )
    .returning(*_HELD_COLUMNS)
)

# Before Stripe is asked: what it will be asked for is frozen, and that it was asked can't be forgotten.
# A first holder knows all runs that were made for the payment, so that none has to be searched for.
_ASK = (
    update(Payment)
    .where(_HOLDS_LEASE, Payment.step == Step.ACCEPTED)
    .values(
        step=Step.ASKED,
        run_id=bindparam("new_run_id"),
        stripe_params=bindparam("new_params"),
        asked_at=func.now(),
        run_search_from=case((bindparam("first_hand"), null()), else_=Payment.run_search_from),
        run_search_until=case((bindparam("first_hand"), null()), else_=Payment.run_search_until),
        updated_at=func.now(),
    )
    .returning(Payment.id)
)

# Stripe certainly executed nothing: the payment stands as before the ask.
_TAKE_BACK = (
    update(Payment)
    .where(_HOLDS_LEASE, Payment.step == Step.ASKED)
    .values(step=Step.ACCEPTED, stripe_params=null(), asked_at=null(), updated_at=func.now())
    .returning(Payment.id)
)

# Stripe's answer: from here on, every retry is given it.
_TAKE = (
    update(Payment)
    .where(_HOLDS_LEASE, Payment.step == Step.ASKED)
    .values(
        step=Step.TAKEN,
        answer_status=bindparam("new_answer_status"),
        answer=bindparam("new_answer"),
        status=bindparam("new_status"),
        stripe_payment_intent_id=bindparam("intent_id"),
        stripe_checkout_session_id=bindparam("session_id"),
        stripe_subscription_id=bindparam("subscription_id"),
        stripe_customer_id=func.coalesce(bindparam("customer_id"), Payment.stripe_customer_id),
        amount_in_cents=func.coalesce(bindparam("new_amount"), Payment.amount_in_cents),
        currency=func.coalesce(bindparam("new_currency"), Payment.currency),
        updated_at=func.now(),
    )
    .returning(Payment.id)
)

_FINISH = (
    update(Payment)
    .where(_HOLDS_LEASE, Payment.step == Step.TAKEN)
    .values(
        step=Step.FINISHED,
        tracking_state=bindparam("new_tracking_state"),
        tracking_error=bindparam("new_tracking_error"),
        updated_at=func.now(),
    )
    .returning(Payment.id)
)

_LET_GO = (
    update(Payment)
    .where(_HOLDS_LEASE, Payment.step != Step.FINISHED)
    .values(lease_until=func.now() + bindparam("pause"), tracking_error=bindparam("new_tracking_error"))
    .returning(Payment.id)
)


def create_payment(request: PaymentRequest, *, services: Services, context: CallContext) -> dict[str, Any]:
    """Create a payment, or give the answer of the request that had the same Idempotency-Key.

    :raises IdempotencyKeyInUse: while that request is being worked on.
    :raises IdempotencyKeyReused: when that was another request.
    :raises ServiceError: as the contract's table of errors says.
    """
    known = _find_by_key(request, services)
    if known is None:
        services.stripe.require_key(request.app_id, context)
        if accepted := _accept(request, services):
            return _walk(accepted, services, context)
        known = _find_by_key(request, services)
        if known is None:
            raise IdempotencyKeyInUse
    return _answer_again(known, request, services, context)


def _find_by_key(request: PaymentRequest, services: Services) -> Row[Any] | None:
    if request.idempotency_key is None:
        return None
    with services.database.connect() as connection:
        return connection.execute(
            _FIND_BY_KEY, {"app_id": request.app_id, "idempotency_key": request.idempotency_key}
        ).one_or_none()


def _accept(request: PaymentRequest, services: Services) -> HeldPayment | None:
    body = request.body
    org_id, caller_run_id = body.get("org_id"), body.get("run_id")
    # Without an organisation there is no run of our own: the cost goes onto the caller's.
    run_id = None if org_id else caller_run_id
    held = HeldPayment(
        id=uuid.uuid4(),
        kind=request.kind,
        request=body,
        step=Step.ACCEPTED,
        attempt=1,
        lease_token=uuid.uuid4(),
        org_id=org_id,
        run_id=run_id,
        first_hand=True,
    )
    accepted = _execute(
        services,
        _ACCEPT,
        held,
        lease=_lease(services),
        makes_run=org_id is not None,
        kind=request.kind,
        app_id=request.app_id,
        idempotency_key=request.idempotency_key,
        request_hash=request.digest,
        request=body,
        org_id=org_id,
        run_id=run_id,
        parent_run_id=caller_run_id,
        brand_id=body.get("brand_id"),
        campaign_id=body.get("campaign_id"),
        stripe_customer_id=body.get("customer_id"),
        amount_in_cents=body.get("amount_in_cents"),
        currency=body.get("currency"),
        description=body.get("description"),
        payment_metadata=body.get("metadata", {}),
        tracking_state=TrackingState.PENDING if org_id or run_id else TrackingState.NONE,
    )
    return held if accepted else None


def _answer_again(known: Row[Any], request: PaymentRequest, services: Services, context: CallContext) -> dict[str, Any]:
    if known.request_hash != request.digest:
        raise IdempotencyKeyReused
    if known.answer is not None:
        return _replay(known, services, context)
    token = uuid.uuid4()
    with services.database.connect() as connection:
        row = connection.execute(
            _TAKE_OVER, {"payment_id": known.id, "token": token, "lease": _lease(services)}
        ).one_or_none()
    if row is None:
        raise IdempotencyKeyInUse
    return _walk(_held(row), services, context)


def _held(row: Row[Any]) -> HeldPayment:
    return HeldPayment(**{**row._mapping, "kind": PaymentKind(row.kind), "step": Step(row.step)})


def _replay(known: Row[Any], services: Services, context: CallContext) -> dict[str, Any]:
    """The kept answer. The client secret isn't kept anywhere but at Stripe, so it is fetched from there."""
    if known.answer_status != 200:
        raise StripeRefusal(known.answer["error"], status=known.answer_status, code=known.answer["code"])
    if known.kind == PaymentKind.CHECKOUT_SESSION:
        return dict(known.answer)
    intent = services.stripe.retrieve_payment_intent(known.app_id, known.stripe_payment_intent_id, context)
    return {**known.answer, "client_secret": intent.client_secret}


def _walk(payment: HeldPayment, services: Services, context: CallContext) -> dict[str, Any]:
    """Take a payment as far as it goes. What fails leaves it where it stands, for a retry or for recovery."""
    try:
        payment, is_first_ask = _ask(payment, services, context)
        payment, answer = _take(payment, services, context, is_first_ask=is_first_ask)
    except StripeRefusal:
        _try_to_settle(replace(payment, step=Step.TAKEN), services, context, taken=False)
        raise
    except ServiceError:
        _let_go(payment, services)
        raise
    _try_to_settle(payment, services, context, taken=True)
    return answer


def _ask(payment: HeldPayment, services: Services, context: CallContext) -> tuple[HeldPayment, bool]:
    """Make the run and freeze Stripe's parameters; also tell whether Stripe was never asked before."""
    if payment.step is not Step.ACCEPTED:
        return payment, False
    run_id, is_new_run = payment.run_id, False
    if run_id is None and payment.org_id is not None:
        run_id, is_new_run = _create_run(payment, services, context), True
    asked = replace(payment, step=Step.ASKED, run_id=run_id, stripe_params=_stripe_params(payment, run_id))
    if not _execute(
        services,
        _ASK,
        payment,
        new_run_id=run_id,
        new_params=asked.stripe_params,
        first_hand=payment.first_hand,
    ):
        if is_new_run and run_id is not None:
            services.runs.end(run_id, RunStatus.FAILED, context)
        raise LeaseLost
    return asked, True


def _create_run(payment: HeldPayment, services: Services, context: CallContext) -> str:
    request = payment.request
    return services.runs.create(
        NewRun(
            org_id=request["org_id"],
            app_id=payment.app_id,
            task_name=TASK_NAMES[payment.kind],
            idempotency_key=payment.upstream_key,
            parent_run_id=_as_uuid(request.get("run_id")),
            brand_id=request.get("brand_id"),
            campaign_id=request.get("campaign_id"),
        ),
        context,
    )


def _as_uuid(run_id: str | None) -> str | None:
    """The caller's run, when it can be one: runs-service knows its runs by UUID, and refuses any other parent."""
    try:
        return run_id and str(uuid.UUID(run_id))
    except ValueError:
        return None


def _stripe_params(payment: HeldPayment, run_id: str | None) -> dict[str, Any]:
    metadata = payment_metadata(
        payment.request.get("metadata", {}),
        payment_id=str(payment.id),
        app_id=payment.app_id,
        run_id=run_id,
        org_id=payment.org_id,
    )
    if payment.kind is PaymentKind.CHECKOUT_SESSION:
        return {**checkout_session_params(payment.request, metadata)}
    return {**payment_intent_params(payment.request, metadata)}


def _take(
    payment: HeldPayment, services: Services, context: CallContext, *, is_first_ask: bool
) -> tuple[HeldPayment, dict[str, Any]]:
    """Have Stripe make the object, and record its answer."""
    try:
        record, answer = _have_stripe_make(payment, services, context)
    except StripeRefusal as refusal:
        _record_refusal(payment, refusal, services)
        raise
    except (StripeRateLimited, UpstreamError) as error:
        # That this try wasn't executed says nothing about an earlier one.
        if is_first_ask and (isinstance(error, StripeRateLimited) or error.executed is False):
            _execute(services, _TAKE_BACK, payment)
        raise
    if not _execute(services, _TAKE, payment, **record):
        raise LeaseLost
    return replace(payment, step=Step.TAKEN), answer


def _have_stripe_make(
    payment: HeldPayment, services: Services, context: CallContext
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ask Stripe; return what to record and what to answer."""
    params: Any = payment.stripe_params
    if payment.kind is PaymentKind.CHECKOUT_SESSION:
        session = services.stripe.create_checkout_session(
            payment.app_id, params, idempotency_key=payment.upstream_key, context=context
        )
        return _record_of_session(payment, session)
    intent = services.stripe.create_payment_intent(
        payment.app_id, params, idempotency_key=payment.upstream_key, context=context
    )
    return _record_of_intent(payment, intent)


def _record_of_session(payment: HeldPayment, session: CheckoutSession) -> tuple[dict[str, Any], dict[str, Any]]:
    answer = {"success": True, "payment_id": str(payment.id), "session_id": session.id, "url": session.url}
    record = {
        "new_answer_status": 200,
        "new_answer": answer,
        "new_status": PaymentStatus.CHECKOUT_CREATED,
        "intent_id": session.payment_intent_id,
        "session_id": session.id,
        "subscription_id": session.subscription_id,
        "customer_id": session.customer_id,
        "new_amount": session.amount_total,
        "new_currency": session.currency,
    }
    return record, answer


def _record_of_intent(payment: HeldPayment, intent: PaymentIntent) -> tuple[dict[str, Any], dict[str, Any]]:
    answer = {
        "success": True,
        "payment_id": str(payment.id),
        "payment_intent_id": intent.id,
        "status": intent.status,
    }
    record = {
        "new_answer_status": 200,
        "new_answer": answer,
        "new_status": known_status(intent.status),
        "intent_id": intent.id,
        "session_id": None,
        "subscription_id": None,
        "customer_id": intent.customer_id,
        "new_amount": intent.amount,
        "new_currency": intent.currency,
    }
    return record, {**answer, "client_secret": intent.client_secret}


def _record_refusal(payment: HeldPayment, refusal: StripeRefusal, services: Services) -> None:
    answer = {"error": refusal.sentence, "code": refusal.code}
    nothing = dict.fromkeys(("intent_id", "session_id", "subscription_id", "customer_id", "new_amount", "new_currency"))
    if not _execute(
        services,
        _TAKE,
        payment,
        new_answer_status=refusal.status,
        new_answer=answer,
        new_status=PaymentStatus.REJECTED,
        **nothing,
    ):
        raise LeaseLost


def _try_to_settle(payment: HeldPayment, services: Services, context: CallContext, *, taken: bool) -> None:
    """Settle now; what runs-service or the database doesn't take is left on the row for recovery.

    Stripe's answer is recorded, so the caller hears that whatever happens here.
    """
    try:
        _settle(payment, services, context, taken=taken)
    except (ServiceError, SQLAlchemyError) as error:
        log.warning("payment %s is left to be settled by recovery: %s", payment.id, error)
        # Nobody can tell yet whether a cost was added: what is under way must have ended before the run is read.
        pause = timedelta(seconds=2 * services.runs.timeout_seconds)
        _let_go(payment, services, pause=pause, error=error)


def _settle(payment: HeldPayment, services: Services, context: CallContext, *, taken: bool) -> None:
    """Add the cost of what Stripe took, end the run if it is ours, and finish."""
    if payment.run_id is None:
        _finish(payment, services, TrackingState.NONE)
        return
    refusals = []
    if taken:
        refusals.append(_add_cost(payment, payment.run_id, services, context))
    if payment.org_id is not None:
        refusals.append(_end_run(payment.run_id, services, context, taken=taken))
    error = "; ".join(filter(None, refusals)) or None
    _finish(payment, services, TrackingState.FAILED if error else TrackingState.COMPLETE, error)


def _add_cost(payment: HeldPayment, run_id: str, services: Services, context: CallContext) -> str | None:
    """Add the cost; say why when runs-service will never take it."""
    cost_name = COST_NAMES[payment.kind]
    try:
        services.runs.add_cost(run_id, cost_name, idempotency_key=payment.upstream_key, context=context)
    except RunsRefusal as error:
        return f"runs-service {error.reason} to the cost {cost_name}"
    return None


def _end_run(run_id: str, services: Services, context: CallContext, *, taken: bool) -> str | None:
    """End our own run; say why when runs-service will never take that."""
    try:
        services.runs.end(run_id, RunStatus.COMPLETED if taken else RunStatus.FAILED, context)
    except RunsRefusal as error:
        return f"runs-service {error.reason} to ending the run"
    return None


def _finish(
    payment: HeldPayment, services: Services, tracking_state: TrackingState, tracking_error: str | None = None
) -> None:
    if not _execute(services, _FINISH, payment, new_tracking_state=tracking_state, new_tracking_error=tracking_error):
        raise LeaseLost


def _let_go(
    payment: HeldPayment, services: Services, *, pause: timedelta = timedelta(0), error: Exception | None = None
) -> None:
    """End the lease early, so that a retry need not wait for it; if that fails, it lapses by itself."""
    reason = f"{error.upstream} {error.reason}" if isinstance(error, UpstreamError) else None
    try:
        _execute(services, _LET_GO, payment, pause=pause, new_tracking_error=reason)
    except SQLAlchemyError:
        log.warning("the lease of payment %s could not be ended; it lapses by itself", payment.id)


def _execute(services: Services, statement: Executable, payment: HeldPayment, **values: Any) -> bool:
    """Run one statement on a payment that we hold, as a transaction of its own; False when we don't hold it."""
    with services.database.connect() as connection:
        result = connection.execute(statement, {"payment_id": payment.id, "token": payment.lease_token, **values})
        return result.one_or_none() is not None


def _lease(services: Services) -> timedelta:
    return timedelta(seconds=services.settings.payment_lease_seconds)
