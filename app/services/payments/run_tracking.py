"""Tracking in runs-service: a payment's run is created before Stripe is asked, given its cost, and ended."""

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, func, select

from app.database import Batch
from app.errors import InvalidRequest, ServiceError, UpstreamError
from app.models import Operation, Payment, PaymentKind, TrackingState
from app.services import Services
from app.services.operations.kind import Tracking
from app.services.operations.operation import HeldOperation
from app.services.operations.recovery import RunInUse
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.runs import NewRun, RunsRefusal, RunStatus

TASK_NAMES = {
    PaymentKind.CHECKOUT_SESSION: "create-checkout-session",
    PaymentKind.PAYMENT_INTENT: "create-payment-intent",
}
COST_NAMES = {
    PaymentKind.CHECKOUT_SESSION: "stripe-checkout-session",
    PaymentKind.PAYMENT_INTENT: "stripe-payment-intent",
}

# The payments on a caller's run: how many should have a cost there, and how many are being worked on by others.
_has_cost = (Operation.answer_status == 200) & (Operation.tracking_state != TrackingState.FAILED)
_is_in_other_hands = (Operation.lease_until > func.now()) & (Operation.id != bindparam("operation_id"))
_ON_SHARED_RUN = Batch(
    select(
        func.count().filter(_has_cost).label("expected"),
        func.count().filter(_is_in_other_hands).label("in_other_hands"),
    )
    .select_from(Payment)
    .join(Operation, Operation.id == Payment.id)
    .where(Payment.run_id == bindparam("run_id"), Payment.org_id.is_(None), Payment.kind == bindparam("kind"))
)


def create_run(operation: HeldOperation, services: Services, context: CallContext) -> str | None:
    """Create a run of the payment's own where it is for an organisation: a child of the caller's.

    :raises InvalidRequest: when runs-service knows no such run of the caller's.
    :raises UpstreamError: when runs-service doesn't answer as it should.
    """
    request = operation.request
    if request.get("org_id") is None:
        return None
    new = NewRun(
        org_id=request["org_id"],
        app_id=operation.app_id,
        task_name=TASK_NAMES[PaymentKind(operation.kind)],
        idempotency_key=operation.upstream_key,
        parent_run_id=parent_run_of(request),
        brand_id=request.get("brand_id"),
        campaign_id=request.get("campaign_id"),
    )
    try:
        return services.runs.create(new, context)
    except UpstreamError as error:
        # The refusal itself doesn't say what of it is refused.
        if error.executed is False and new.parent_run_id and _is_unknown(new.parent_run_id, services, context):
            raise InvalidRequest({"runId": ["runs-service knows no such run."]}) from error
        raise


def _is_unknown(run_id: str, services: Services, context: CallContext) -> bool:
    """Whether runs-service says that there is no such run; where it says nothing, nobody can tell."""
    try:
        services.runs.get(run_id, context)
    except RunsRefusal:
        return True
    except ServiceError:
        pass
    return False


def end_run_made_for_nothing(run_id: str, services: Services, context: CallContext) -> None:
    """Fail a run that was made by a process which had lost the operation meanwhile."""
    services.runs.end(run_id, RunStatus.FAILED, context)


def report_to_run(operation: HeldOperation, services: Services, context: CallContext, may_be_done: bool) -> Tracking:
    """Add the cost of what Stripe took, and end the run if it is ours.

    :param may_be_done: a former holder may have added the cost: the run is read first
    :raises RunInUse: while another payment on the caller's run is being worked on
    :raises ServiceError: when runs-service doesn't take it now.
    """
    run_id = operation.run_id
    if run_id is None:
        return Tracking(TrackingState.NONE)
    refusals = []
    if operation.has_succeeded:
        refusals.append(_add_missing_cost(operation, run_id, services, context, may_be_done))
    if operation.request.get("org_id"):
        refusals.append(_end_run(operation, run_id, services, context))
    error = "; ".join(filter(None, refusals)) or None
    return Tracking(TrackingState.FAILED if error else TrackingState.COMPLETE, error)


def _add_missing_cost(
    operation: HeldOperation, run_id: str, services: Services, context: CallContext, may_be_done: bool
) -> str | None:
    """Add the cost where it is missing; say why when runs-service will never take it."""
    cost_name = COST_NAMES[PaymentKind(operation.kind)]
    try:
        if may_be_done and not _is_cost_missing(operation, run_id, cost_name, services, context):
            return None
    except RunsRefusal as error:
        return f"runs-service {error.reason} to reading the run"
    try:
        services.runs.add_cost(run_id, cost_name, idempotency_key=operation.upstream_key, context=context)
    except RunsRefusal as error:
        return f"runs-service {error.reason} to the cost {cost_name}"
    return None


def _end_run(operation: HeldOperation, run_id: str, services: Services, context: CallContext) -> str | None:
    """End our own run; say why when runs-service will never take that."""
    status = RunStatus.COMPLETED if operation.has_succeeded else RunStatus.FAILED
    try:
        services.runs.end(run_id, status, context)
    except RunsRefusal as error:
        return f"runs-service {error.reason} to ending the run"
    return None


def _is_cost_missing(
    operation: HeldOperation, run_id: str, cost_name: str, services: Services, context: CallContext
) -> bool:
    """Whether a payment's run lacks its cost.

    On a caller's run, which payments share, costs can't be told apart, only counted; and only while nobody works on
    another payment there, whose cost may come yet.
    """
    if operation.request.get("org_id") is not None:
        return services.runs.get(run_id, context).costs[cost_name] == 0
    before = _count_on_shared_run(operation, run_id, services)
    costs = services.runs.get(run_id, context).costs[cost_name]
    if before.in_other_hands or _count_on_shared_run(operation, run_id, services) != before:
        raise RunInUse
    return bool(costs < before.expected)


def _count_on_shared_run(operation: HeldOperation, run_id: str, services: Services) -> Any:
    (counts,) = services.database.run(_ON_SHARED_RUN, run_id=run_id, kind=operation.kind, operation_id=operation.id)
    return counts


def parent_run_of(request: Mapping[str, Any]) -> str | None:
    """The caller's run, when it can be one: runs-service knows its runs by UUID, and refuses any other parent."""
    run_id = request.get("run_id")
    try:
        return run_id and str(uuid.UUID(run_id))
    except ValueError:
        return None
