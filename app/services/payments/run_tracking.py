"""Settling: what came before Stripe's answer is folded, the cost is added to the run, and a run of ours is ended."""

import logging
from datetime import timedelta

from sqlalchemy import bindparam, func, update

from app.database import Message
from app.errors import DATABASE_ERRORS, ServiceError, is_database_outage
from app.models import Payment, PaymentKind, PaymentStatus, Step, TrackingState
from app.services import Services
from app.services.events.receive import adopt_early_events
from app.services.operations.leases import HOLDS_LEASE, HeldPayment, LeaseLost, execute, let_go
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.runs import RunsRefusal, RunStatus

log = logging.getLogger(__name__)

COST_NAMES = {
    PaymentKind.CHECKOUT_SESSION: "stripe-checkout-session",
    PaymentKind.PAYMENT_INTENT: "stripe-payment-intent",
}


_FINISH = Message(
    update(Payment)
    .where(HOLDS_LEASE, Payment.step == Step.TAKEN)
    .values(
        step=Step.FINISHED,
        tracking_state=bindparam("new_tracking_state"),
        tracking_error=bindparam("new_tracking_error"),
        updated_at=func.now(),
    )
    .returning(Payment.id)
)


def try_to_settle(payment: HeldPayment, services: Services, context: CallContext) -> None:
    """Settle now; what runs-service or the database doesn't take is left on the row for recovery.

    Stripe's answer is recorded, so the caller hears that whatever happens here.
    """
    try:
        settle(payment, services, context)
    except (ServiceError, *DATABASE_ERRORS) as error:
        expected = isinstance(error, ServiceError) or is_database_outage(error)
        log.warning("payment %s is left to be settled by recovery: %s", payment.id, error, exc_info=not expected)
        let_go(payment, services, pause=ambiguity_pause(services), error=error)


def ambiguity_pause(services: Services) -> timedelta:
    """How long a call that timed out may still be executed: a run is read only after that."""
    return timedelta(seconds=2 * services.runs.timeout_seconds)


def settle(payment: HeldPayment, services: Services, context: CallContext, *, cost_is_missing: bool = True) -> None:
    """Fold what came early, add the cost of what Stripe took, end the run if it is ours, and finish.

    :raises ServiceError: when runs-service doesn't take it now.
    """
    taken = payment.status != PaymentStatus.REJECTED
    refusals = []
    if taken:
        adopt_early_events(payment.id, payment.stripe_ids, services=services)
    if payment.run_id and taken and cost_is_missing:
        refusals.append(_add_cost(payment, payment.run_id, services, context))
    if payment.run_id and payment.org_id:
        refusals.append(_end_run(payment.run_id, services, context, taken=taken))
    error = "; ".join(filter(None, refusals)) or None
    state = TrackingState.FAILED if error else TrackingState.COMPLETE
    finish(payment, services, state if payment.run_id else TrackingState.NONE, error)


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


def finish(
    payment: HeldPayment, services: Services, tracking_state: TrackingState, tracking_error: str | None = None
) -> None:
    """Record that nothing is left to do.

    :raises LeaseLost: when another process holds the payment by now.
    """
    if not execute(services, _FINISH, payment, new_tracking_state=tracking_state, new_tracking_error=tracking_error):
        raise LeaseLost
