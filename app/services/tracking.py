"""Settling: what came before Stripe's answer is folded, the cost is added to the run, and a run of ours is ended."""

import logging
from datetime import timedelta

from sqlalchemy import bindparam, func, update
from sqlalchemy.exc import SQLAlchemyError

from app.errors import ServiceError, is_database_outage
from app.models import Payment, PaymentKind, Step, TrackingState
from app.services import Services
from app.services.events import adopt_early_events
from app.services.http import CallContext
from app.services.leases import HOLDS_LEASE, HeldPayment, LeaseLost, execute, let_go
from app.services.runs_client import RunsRefusal, RunStatus

log = logging.getLogger(__name__)

COST_NAMES = {
    PaymentKind.CHECKOUT_SESSION: "stripe-checkout-session",
    PaymentKind.PAYMENT_INTENT: "stripe-payment-intent",
}


_FINISH = (
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


def try_to_settle(payment: HeldPayment, services: Services, context: CallContext, *, taken: bool) -> None:
    """Settle now; what runs-service or the database doesn't take is left on the row for recovery.

    Stripe's answer is recorded, so the caller hears that whatever happens here.
    """
    try:
        if taken:
            adopt_early_events(payment.id, services=services)
        settle(payment, services, context, taken=taken)
    except (ServiceError, SQLAlchemyError) as error:
        expected = isinstance(error, ServiceError) or is_database_outage(error)
        log.warning("payment %s is left to be settled by recovery: %s", payment.id, error, exc_info=not expected)
        # Nobody can tell yet whether a cost was added: what is under way must have ended before the run is read.
        pause = timedelta(seconds=2 * services.runs.timeout_seconds)
        let_go(payment, services, pause=pause, error=error)


def settle(payment: HeldPayment, services: Services, context: CallContext, *, taken: bool) -> None:
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
    if not execute(services, _FINISH, payment, new_tracking_state=tracking_state, new_tracking_error=tracking_error):
        raise LeaseLost
