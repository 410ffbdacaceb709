"""The engine: it walks an operation from wherever it stands, for a request, a retry and the recovery worker alike.

step       statement     next step  who may
---------  ------------  ---------  -----------------------------------------------------------
(none)     kind.accept   accepted   a request with a key that no operation of the app has
accepted   ASK           asked      the holder, once what Stripe's answer needs is there
asked      TAKE_BACK     accepted   the holder of the first try, when it was certainly not executed
asked      TAKE          taken      the holder, with Stripe's answer, or a refusal for which Stripe made something
asked      REFUSE        taken      the holder, with any other refusal of Stripe's, which is kept
taken      FINISH        finished   the holder, once runs-service has been told
accepted   CONTINUE      accepted   a retry, once the lease has lapsed        (accept.py)
asked      CONTINUE      asked      the same, while Stripe remembers the idempotency key
finished   RESTART       accepted   a retry, where no answer was kept or its refusal passes: a new attempt
accepted   ABANDON       taken      recovery: Stripe was never asked          (recovery.py)
asked      ABANDON       taken      recovery: Stripe certainly has nothing
asked      ASK_ANEW      asked      recovery, once: Stripe keeps a failure for the first idempotency key

Each is one commit, made only by whoever holds the lease. So no step may assume that the one before it was made by the
same process. An operation that creates a payment has the payment's id; what these statements say of a payment by that
id says nothing for other kinds.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import orjson
from sqlalchemy import ColumnElement, UpdateBase, bindparam, case, func, null, or_, update

from app.database import Batch
from app.errors import (
    DATABASE_ERRORS,
    NoStripeKey,
    ServiceError,
    StripeRateLimited,
    StripeRefusal,
    UpstreamError,
    is_database_outage,
)
from app.logs import about
from app.metrics import count_operation
from app.models import Operation, Payment, PaymentStatus, Step, TrackingState
from app.services import Services
from app.services.events.receive import adopt_events_that_wait_for, store_answer_and_commit
from app.services.events.stripe_event import Event
from app.services.operations.kind import Declined, Kind, M
from app.services.operations.operation import (
    HOLDS_LEASE,
    HeldOperation,
    LeaseLost,
    advance,
    held_by,
    release,
)
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.keys import UPSTREAM as KEY_SERVICE

log = logging.getLogger(__name__)

# Stripe keeps idempotency keys for at least 24 hours; an hour is left for clocks and for the call itself.
# https://docs.stripe.com/api/idempotent_requests
STRIPE_IDEMPOTENCY_WINDOW = timedelta(hours=23)

# What Stripe will be asked with is frozen, and that it was asked can't be forgotten. A first holder knows all runs that
# were made for the operation, so that none has to be searched for.
ASK = Batch(
    update(Operation)
    .where(HOLDS_LEASE, Operation.step == Step.ACCEPTED)
    .values(step=Step.ASKED, run_id=bindparam("run_id"), stripe_params=bindparam("stripe_params"), asked_at=func.now())
    .returning(Operation.id)
)

TAKE_BACK = Batch(
    update(Operation)
    .where(HOLDS_LEASE, Operation.step == Step.ASKED)
    .values(step=Step.ACCEPTED, stripe_params=null(), asked_at=null())
    .returning(Operation.id)
)

# What becomes of Stripe's part is known: an operation that was stuck isn't any more, and is tracked again.
_was_stuck = Operation.tracking_state == TrackingState.STUCK
_has_no_run = Operation.run_id.is_(None) & Operation.request["org_id"].is_(None)
_UNSTUCK = {
    "tracking_state": case(
        (_was_stuck & _has_no_run, TrackingState.NONE),
        (_was_stuck, TrackingState.PENDING),
        else_=Operation.tracking_state,
    ),
    "tracking_error": case((_was_stuck, null()), else_=Operation.tracking_error),
}

# From here on, every retry is given this answer.
_keep_answer = (
    update(Operation)
    .where(HOLDS_LEASE, Operation.step == Step.ASKED)
    .values(step=Step.TAKEN, answer_status=bindparam("answer_status"), answer=bindparam("answer"), **_UNSTUCK)
)
TAKE = Batch(_keep_answer.returning(Operation.id))


def _rejected(step: ColumnElement[bool]) -> UpdateBase:
    """The payment of a creation that ends at a step; before the operation itself moves, which tells whether it did."""
    return (
        update(Payment)
        .where(Payment.id == Operation.id, HOLDS_LEASE, step)
        .values(
            status=PaymentStatus.REJECTED,
            run_id=func.coalesce(Operation.run_id, Payment.run_id),
            updated_at=func.now(),
        )
    )


REFUSE = Batch(_rejected(Operation.step == Step.ASKED), _keep_answer.returning(Operation.id))

# Nothing is kept, so that a retry can start anew. A run that was asked for may exist though no operation knows it.
_is_untaken = or_(Operation.step == Step.ACCEPTED, Operation.step == Step.ASKED)
ABANDON = Batch(
    _rejected(_is_untaken),
    update(Operation).where(HOLDS_LEASE, _is_untaken).values(step=Step.TAKEN, **_UNSTUCK).returning(Operation.id),
)

FINISH = Batch(
    update(Operation)
    .where(HOLDS_LEASE, Operation.step == Step.TAKEN)
    .values(
        step=Step.FINISHED,
        lease_until=null(),
        tracking_state=bindparam("tracking_state"),
        tracking_error=bindparam("tracking_error"),
    )
    .returning(Operation.id)
)


def walk(operation: HeldOperation, kind: Kind[M], services: Services, context: CallContext) -> dict[str, Any]:
    """Take an operation that Stripe has not answered as far as it goes; return what the caller is answered.

    What fails leaves it where it stands; whoever called ends the lease.

    :raises StripeRefusal: when Stripe refuses for good; that is kept as the answer.
    :raises ServiceError: when it can't go on now.
    """
    about(payment=operation.payment_id)
    is_first_ask = operation.step is Step.ACCEPTED
    asked = _ask(operation, kind, services, context) if is_first_ask else operation
    try:
        made = _ask_stripe(asked, kind, services, context)
    except Declined as declined:
        take_declined(asked, kind, declined, services, context)
        raise
    except StripeRefusal as refusal:
        complete_or_leave(_refuse(asked, refusal, services), kind, services, context)
        raise
    except (NoStripeKey, StripeRateLimited, UpstreamError) as error:
        # That this try wasn't executed says nothing about an earlier one.
        if is_first_ask and not may_be_executed(error):
            services.database.run(TAKE_BACK, **held_by(asked))
        raise
    return take(asked, kind, made, services, context)


def _ask(operation: HeldOperation, kind: Kind[M], services: Services, context: CallContext) -> HeldOperation:
    """Have everything ready, and freeze what Stripe will be asked with."""
    run_id = operation.run_id or kind.prepare(operation, services, context)
    ready = replace(operation, step=Step.ASKED, run_id=run_id)
    asked = replace(ready, stripe_params=orjson.dumps(kind.params(ready)))
    try:
        advance(services, ASK, operation, run_id=run_id, stripe_params=asked.stripe_params)
    except LeaseLost:
        if run_id is not None and run_id != operation.run_id:
            kind.unprepare(run_id, services, context)
        raise
    return asked


def _ask_stripe(operation: HeldOperation, kind: Kind[M], services: Services, context: CallContext) -> M:
    params = orjson.loads(operation.stripe_params or b"{}")
    try:
        return kind.ask(operation, params, services, context)
    except StripeRefusal:
        # An earlier try, or somebody else, may have brought the object where it should be.
        if kind.is_told_by_state and (made := kind.find(operation, services, lambda: context)) is not None:
            return made
        raise


def may_be_executed(error: ServiceError) -> bool:
    """Whether Stripe may have executed a request that ended so; without a key it was never asked."""
    return isinstance(error, UpstreamError) and error.executed is not False and error.upstream != KEY_SERVICE


def take(operation: HeldOperation, kind: Kind[M], made: M, services: Services, context: CallContext) -> dict[str, Any]:
    """Record what Stripe made, and tell runs-service; return what the caller is answered.

    :raises LeaseLost: when another process holds the operation by now.
    """
    answer, taken = kind.answer(operation, made), replace(operation, step=Step.TAKEN, answer_status=200)
    learned = _record(taken, kind.fact(operation, made), answer, services)
    count_operation(kind.name, "done")
    complete_or_leave(taken, kind, services, context, learned=learned)
    return answer if kind.secrets is None else {**answer, **kind.secrets.read(made)}


def take_declined(
    operation: HeldOperation, kind: Kind[M], declined: Declined, services: Services, context: CallContext
) -> None:
    """Record what Stripe made and declined, and tell runs-service; the refusal is kept as the answer.

    :raises LeaseLost: when another process holds the operation by now.
    """
    answer = {"error": declined.sentence, "code": declined.code, "details": declined.kept_details}
    taken = replace(operation, step=Step.TAKEN, answer_status=declined.status)
    learned = _record(taken, declined.fact, answer, services)
    count_operation(kind.name, "refused")
    complete_or_leave(taken, kind, services, context, learned=learned)


def _record(taken: HeldOperation, fact: Event, answer: Mapping[str, Any], services: Services) -> Sequence[str]:
    """Keep the answer and fold what Stripe made, as one; return the ids that the payment has learned."""
    with services.database.transaction() as transaction:
        if not transaction.run(TAKE, **held_by(taken), answer_status=taken.answer_status, answer=answer):
            raise LeaseLost
        return store_answer_and_commit(
            fact,
            app_id=taken.app_id,
            payment_id=taken.payment_id,
            run_id=taken.run_id,
            transaction=transaction,
        )


def _refuse(operation: HeldOperation, refusal: StripeRefusal, services: Services) -> HeldOperation:
    answer = {"error": refusal.sentence, "code": refusal.code}
    advance(services, REFUSE, operation, answer_status=refusal.status, answer=answer)
    count_operation(operation.kind, "refused")
    return replace(operation, step=Step.TAKEN, answer_status=refusal.status)


def complete_or_leave(
    operation: HeldOperation,
    kind: Kind[M],
    services: Services,
    context: CallContext,
    *,
    learned: Sequence[str] = (),
) -> None:
    """Complete now; what runs-service or the database doesn't take is left for recovery.

    Stripe's answer is recorded, so the caller hears that whatever happens here.
    """
    try:
        adopt_events_that_wait_for(learned, services=services)
        complete(operation, kind, services, context, may_be_done=False)
    except (ServiceError, *DATABASE_ERRORS) as error:
        expected = isinstance(error, ServiceError) or is_database_outage(error)
        log.warning("operation %s is left to be completed by recovery: %s", operation.id, error, exc_info=not expected)
        release(operation, services, pause=ambiguity_pause(services), error=error)


def complete(
    operation: HeldOperation, kind: Kind[M], services: Services, context: CallContext, *, may_be_done: bool
) -> None:
    """Tell runs-service what is left to tell, and finish.

    :param may_be_done: a former holder may have told a part of it
    :raises LeaseLost: when another process holds the operation by now.
    :raises ServiceError: when runs-service doesn't take it now.
    """
    tracking = kind.complete(operation, services, context, may_be_done)
    advance(services, FINISH, operation, tracking_state=tracking.state, tracking_error=tracking.error)


def ambiguity_pause(services: Services) -> timedelta:
    """How long a call to runs-service that timed out may still be executed: a run is read only after that."""
    return timedelta(seconds=2 * services.runs.timeout_seconds)
