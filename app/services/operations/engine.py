"""The steps of a payment: accepted -> asked -> taken -> finished, each one commit made only by the lease's holder.

A payment can be left at any step, by an outage or by a crash, and be walked further from there by whoever holds the
lease next. So no step may assume that the one before it was made by the same process.
"""

import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, case, func, null, update

from app.database import Message
from app.errors import NoStripeKey, ServiceError, StripeRateLimited, StripeRefusal, UpstreamError
from app.logs import about
from app.models import Payment, PaymentKind, PaymentStatus, Step, known_status
from app.services import Services
from app.services.operations.leases import HOLDS_LEASE, HeldPayment, LeaseLost, execute
from app.services.payments.run_tracking import try_to_settle
from app.services.payments.stripe_params import checkout_session_params, payment_intent_params, payment_metadata
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.keys import UPSTREAM as KEY_SERVICE
from app.services.upstreams.runs import NewRun, RunStatus
from app.services.upstreams.stripe import CheckoutSession, PaymentIntent

# Stripe keeps idempotency keys for at least 24 hours; an hour is left for clocks and for the call itself.
# https://docs.stripe.com/api/idempotent_requests
STRIPE_IDEMPOTENCY_WINDOW = timedelta(hours=23)

TASK_NAMES = {
    PaymentKind.CHECKOUT_SESSION: "create-checkout-session",
    PaymentKind.PAYMENT_INTENT: "create-payment-intent",
}

# Before Stripe is asked: what it will be asked for is frozen, and that it was asked can't be forgotten.
# A first holder knows all runs that were made for the payment, so that none has to be searched for.
_ASK = Message(
    update(Payment)
    .where(HOLDS_LEASE, Payment.step == Step.ACCEPTED)
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
_TAKE_BACK = Message(
    update(Payment)
    .where(HOLDS_LEASE, Payment.step == Step.ASKED)
    .values(step=Step.ACCEPTED, stripe_params=null(), asked_at=null(), updated_at=func.now())
    .returning(Payment.id)
)

# Stripe's answer: from here on, every retry is given it.
_TAKE = Message(
    update(Payment)
    .where(HOLDS_LEASE, Payment.step == Step.ASKED)
    .values(
        step=Step.TAKEN,
        answer_status=bindparam("new_answer_status"),
        answer=bindparam("new_answer"),
        created_as=bindparam("new_created_as"),
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


def walk(payment: HeldPayment, services: Services, context: CallContext) -> dict[str, Any]:
    """Take a payment as far as it goes. What fails leaves it where it stands; the caller ends the lease.

    :raises StripeRefusal: when Stripe refuses for good; that is kept as the payment's answer.
    :raises ServiceError: when it can't go on now.
    """
    about(payment=payment.id)
    try:
        payment, is_first_ask = _ask(payment, services, context)
        taken, answer = _take(payment, services, context, is_first_ask=is_first_ask)
    except StripeRefusal:
        try_to_settle(replace(payment, step=Step.TAKEN, status=PaymentStatus.REJECTED), services, context)
        raise
    try_to_settle(taken, services, context)
    return answer


def _ask(payment: HeldPayment, services: Services, context: CallContext) -> tuple[HeldPayment, bool]:
    """Make the run and freeze Stripe's parameters; also tell whether Stripe was never asked before."""
    if payment.step is not Step.ACCEPTED:
        return payment, False
    run_id, is_new_run = payment.run_id, False
    if run_id is None and payment.org_id is not None:
        run_id, is_new_run = _create_run(payment, services, context), True
    asked = replace(payment, step=Step.ASKED, run_id=run_id, stripe_params=_stripe_params(payment, run_id))
    if not execute(
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
    """Have Stripe make the object, record it, and return the answer for the caller."""
    try:
        made = _have_stripe_make(payment, services, context)
    except StripeRefusal as refusal:
        _record_refusal(payment, refusal, services)
        raise
    except (NoStripeKey, StripeRateLimited, UpstreamError) as error:
        # That this try wasn't executed says nothing about an earlier one.
        if is_first_ask and not _may_be_executed(error):
            execute(services, _TAKE_BACK, payment)
        raise
    return record_taken(payment, made, services)


def _may_be_executed(error: ServiceError) -> bool:
    """Whether Stripe may have executed a request that ended so; without a key it was never asked."""
    return isinstance(error, UpstreamError) and error.executed is not False and error.upstream != KEY_SERVICE


def record_taken(
    payment: HeldPayment, made: CheckoutSession | PaymentIntent, services: Services
) -> tuple[HeldPayment, dict[str, Any]]:
    """Record what Stripe made; return the payment as it stands then, and the answer for the caller.

    :raises LeaseLost: when another process holds the payment by now.
    """
    if isinstance(made, CheckoutSession):
        record, answer = _record_of_session(payment, made)
    else:
        record, answer = _record_of_intent(payment, made)
    if not execute(services, _TAKE, payment, **record):
        raise LeaseLost
    taken = replace(
        payment,
        step=Step.TAKEN,
        stripe_payment_intent_id=record["intent_id"],
        stripe_checkout_session_id=record["session_id"],
    )
    return taken, answer


def _have_stripe_make(
    payment: HeldPayment, services: Services, context: CallContext
) -> CheckoutSession | PaymentIntent:
    params: Any = payment.stripe_params
    is_checkout = payment.kind is PaymentKind.CHECKOUT_SESSION
    create = services.stripe.create_checkout_session if is_checkout else services.stripe.create_payment_intent
    return create(payment.app_id, params, idempotency_key=payment.upstream_key, context=context)


def _created_as(
    *,
    status: str,
    amount: int | None,
    currency: str | None,
    intent_id: str | None,
    session_id: str | None,
    subscription_id: str | None,
    customer_id: str | None,
) -> dict[str, Any]:
    """What the creation said, in the names of `Creation`: the fold begins there, and never with its own results."""
    return {
        "status": status,
        "amount_in_cents": amount,
        "currency": currency,
        "payment_intent_id": intent_id,
        "checkout_session_id": session_id,
        "subscription_id": subscription_id,
        "customer_id": customer_id,
    }


def _record_of_session(payment: HeldPayment, session: CheckoutSession) -> tuple[dict[str, Any], dict[str, Any]]:
    answer = {"success": True, "payment_id": str(payment.id), "session_id": session.id, "url": session.url}
    record = {
        "new_answer_status": 200,
        "new_answer": answer,
        "new_created_as": _created_as(
            status=PaymentStatus.CHECKOUT_CREATED,
            amount=session.amount_total,
            currency=session.currency,
            intent_id=session.payment_intent_id,
            session_id=session.id,
            subscription_id=session.subscription_id,
            customer_id=session.customer_id or payment.request.get("customer_id"),
        ),
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
        "new_created_as": _created_as(
            status=known_status(intent.status),
            amount=intent.amount,
            currency=intent.currency,
            intent_id=intent.id,
            session_id=None,
            subscription_id=None,
            customer_id=intent.customer_id,
        ),
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
    if not execute(
        services,
        _TAKE,
        payment,
        new_answer_status=refusal.status,
        new_answer=answer,
        new_created_as=None,
        new_status=PaymentStatus.REJECTED,
        **nothing,
    ):
        raise LeaseLost
