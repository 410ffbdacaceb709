"""Recovery: payments that were left in the middle are claimed one by one and walked to their end.

Costs are exactly once as long as runs-service no longer executes a call twice its timeout after it was sent: the run
is read before a cost is added, and what was under way must show in it by then.
"""

import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Row, bindparam, case, false, func, null, or_, select, update

from app.database import Message
from app.errors import NoStripeKey, ServiceError, StripeRefusal, is_database_outage
from app.models import Payment, PaymentKind, PaymentStatus, Step, TrackingState
from app.services import Services
from app.services.events.receive import adopt_early_events
from app.services.operations.engine import STRIPE_IDEMPOTENCY_WINDOW, TASK_NAMES, record_taken, walk
from app.services.operations.leases import (
    HELD_COLUMNS,
    HOLDS_LEASE,
    LEASE,
    HeldPayment,
    LeaseLost,
    execute,
    held_payment,
    lease_of,
    reason_of,
)
from app.services.payments.run_tracking import COST_NAMES, ambiguity_pause, finish, settle
from app.services.upstreams.call_context import CallContext, Deadline
from app.services.upstreams.runs import RunsRefusal, RunStatus
from app.services.upstreams.stripe import IdempotencyMismatch, ReplayedFailure

log = logging.getLogger(__name__)

FIRST_BACKOFF = timedelta(seconds=5)
LONGEST_BACKOFF = timedelta(hours=1)
NO_PAUSE = timedelta()
# How far another's clock may be from our database's. To list too much of Stripe's objects costs nothing, but a run
# that started just now must not be taken for one that nobody knows.
STRIPE_CLOCK_SKEW = timedelta(seconds=60)
RUNS_CLOCK_SKEW = timedelta(seconds=5)


class RecoveryOutcome(StrEnum):
    """What recovery did with a payment."""

    ABANDONED = "abandoned"
    TAKEN = "taken"
    REJECTED = "rejected"
    SETTLED = "settled"
    PUT_OFF = "put off"
    STUCK = "stuck"


@dataclass(frozen=True)
class Recovered:
    """A payment that recovery looked at, and what it did."""

    payment_id: uuid.UUID
    outcome: RecoveryOutcome
    reason: str = ""


class _Stuck(Exception):
    """Nobody but a person can decide what became of a payment."""


class _RunInUse(Exception):
    """Others work on payments on the same run: nothing was sent."""


# Any number of workers claim at once, each another row; the new token fences the former holder off.
_CLAIM = (
    update(Payment)
    .where(
        Payment.id
        == select(Payment.id)
        .where(
            Payment.step != Step.FINISHED,
            Payment.lease_until <= bindparam("lapsed_before"),
            or_(bindparam("only_id").is_(None), Payment.id == bindparam("only_id")),
            or_(bindparam("at_once"), Payment.recover_at.is_(None), Payment.recover_at <= func.now()),
            # A holder that died may have sent a cost just before.
            or_(
                bindparam("at_once"), Payment.step != Step.TAKEN, Payment.lease_until <= func.now() - bindparam("pause")
            ),
        )
        .order_by(Payment.lease_until)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    .values(lease_token=bindparam("new_token"), lease_until=LEASE)
    .returning(*HELD_COLUMNS, Payment.recovery_tries)
)

# Stripe was never asked and nobody waits any more. Nothing is kept, so that a retry can start the row anew.
_ABANDON = Message(
    update(Payment)
    .where(HOLDS_LEASE, Payment.step == Step.ACCEPTED)
    .values(step=Step.TAKEN, status=PaymentStatus.REJECTED, updated_at=func.now())
    .returning(Payment.id)
)

# Stripe was asked and certainly has nothing.
_REJECT = Message(
    update(Payment)
    .where(HOLDS_LEASE, Payment.step == Step.ASKED)
    .values(step=Step.TAKEN, status=PaymentStatus.REJECTED, updated_at=func.now())
    .returning(Payment.id)
)

_ASK_ANEW = Message(
    update(Payment)
    .where(HOLDS_LEASE, Payment.step == Step.ASKED, Payment.asked_anew == false())
    .values(attempt=Payment.attempt + 1, asked_at=func.now(), asked_anew=True, updated_at=func.now())
    .returning(Payment.id)
)

_PUT_OFF = Message(
    update(Payment)
    .where(HOLDS_LEASE, Payment.step != Step.FINISHED)
    .values(
        # Nobody can tell yet whether a cost was added: what is under way must have ended before the run is read.
        lease_until=case((Payment.step == Step.TAKEN, func.now() + bindparam("pause")), else_=func.now()),
        recover_at=func.now() + bindparam("backoff"),
        recovery_tries=Payment.recovery_tries + 1,
        tracking_state=case((bindparam("is_stuck"), TrackingState.STUCK), else_=Payment.tracking_state),
        tracking_error=bindparam("new_tracking_error"),
        updated_at=func.now(),
    )
    .returning(Payment.id)
)

_EXTEND = Message(
    update(Payment).where(HOLDS_LEASE, Payment.step == Step.ASKED).values(lease_until=LEASE).returning(Payment.id)
)

# A payment that was stuck and walks on is tracked again.
_UNSTICK = Message(
    update(Payment)
    .where(HOLDS_LEASE, Payment.tracking_state == TrackingState.STUCK)
    .values(
        tracking_state=case(
            (Payment.run_id.is_(None) & Payment.org_id.is_(None), TrackingState.NONE), else_=TrackingState.PENDING
        ),
        tracking_error=null(),
    )
    .returning(Payment.id)
)


def command_context(command: str, services: Services) -> CallContext:
    """On whose behalf a command calls upstreams; it has the deadline that a request has."""
    deadline = Deadline.after(services.settings.request_deadline_seconds)
    return CallContext("COMMAND", command, uuid.uuid4().hex, deadline)


def recover_payments(
    services: Services, *, command: str, only_id: uuid.UUID | None = None, at_once: bool = False
) -> Iterator[Recovered]:
    """Walk every payment whose lease has lapsed to its end, each at most once.

    :param at_once: also those that were put off until later
    """
    # What is put off during the pass has a lease that ends after its beginning, and isn't claimed again.
    with services.database.connect() as connection:
        began_at = connection.execute(select(func.now())).scalar_one()
    while True:
        context = command_context(command, services)
        claim = {
            "only_id": only_id,
            "at_once": at_once,
            "lapsed_before": began_at,
            "pause": ambiguity_pause(services),
            "new_token": uuid.uuid4(),
            "lease": lease_of(services),
        }
        with services.database.connect() as connection:
            row = connection.execute(_CLAIM, claim).one_or_none()
        if row is None:
            return
        yield recover_payment(row, services, context)


def recover_payment(row: Row[Any], services: Services, context: CallContext) -> Recovered:
    """Walk one claimed payment to its end, or put it off."""
    fields = {name: value for name, value in row._mapping.items() if name != "recovery_tries"}
    payment = held_payment(fields)
    try:
        if execute(services, _UNSTICK, payment):
            log.info("payment %s is no longer stuck", payment.id)
        return Recovered(payment.id, _advance(payment, services, context))
    except (_Stuck, NoStripeKey) as error:
        _put_off(payment, row.recovery_tries, services, reason=str(error), pause=NO_PAUSE, is_stuck=True)
        return Recovered(payment.id, RecoveryOutcome.STUCK, str(error))
    except LeaseLost:
        return Recovered(payment.id, RecoveryOutcome.PUT_OFF, "another process has it")
    except _RunInUse:
        # Without a pause, during which those others would wait for this one.
        reason, pause = "other payments are using the run", NO_PAUSE
    except ServiceError as error:
        reason, pause = reason_of(error) or error.sentence, ambiguity_pause(services)
    except Exception as error:
        # One payment that we can't handle must not keep the others waiting.
        if is_database_outage(error):
            raise
        log.exception("payment %s can't be recovered", payment.id)
        reason, pause = f"unexpected {type(error).__name__}, see the log", ambiguity_pause(services)
    _put_off(payment, row.recovery_tries, services, reason=reason, pause=pause)
    return Recovered(payment.id, RecoveryOutcome.PUT_OFF, reason)


def _advance(payment: HeldPayment, services: Services, context: CallContext) -> RecoveryOutcome:
    match payment.step:
        case Step.ACCEPTED:
            return _reject(payment, _ABANDON, services, context, RecoveryOutcome.ABANDONED)
        case Step.ASKED:
            return _find_out(payment, services, context)
        case _:
            _settle_after_reading(payment, services, context)
            return RecoveryOutcome.SETTLED


def _reject(
    payment: HeldPayment, message: Message, services: Services, context: CallContext, outcome: RecoveryOutcome
) -> RecoveryOutcome:
    if not execute(services, message, payment):
        raise LeaseLost
    settle(replace(payment, step=Step.TAKEN, status=PaymentStatus.REJECTED), services, context)
    return outcome


def _find_out(payment: HeldPayment, services: Services, context: CallContext) -> RecoveryOutcome:
    """Ask Stripe again, with the same key and the same bytes; where that can't tell any more, look for the object."""
    asked_at = payment.asked_at or datetime.min.replace(tzinfo=UTC)
    if datetime.now(UTC) - asked_at > STRIPE_IDEMPOTENCY_WINDOW:
        return _look_for_object(payment, services, context, ask_anew=False)
    try:
        walk(payment, services, context)
    except StripeRefusal:
        return RecoveryOutcome.REJECTED
    except IdempotencyMismatch as error:
        raise _Stuck(f"Stripe {error.reason}") from error
    except ReplayedFailure:
        return _look_for_object(payment, services, context, ask_anew=not payment.asked_anew)
    return RecoveryOutcome.TAKEN


def _look_for_object(
    payment: HeldPayment, services: Services, context: CallContext, *, ask_anew: bool
) -> RecoveryOutcome:
    """List what Stripe made since the payment was asked for first, and match our metadata.

    A busy account's list takes longer than one lease: it is extended before each page.
    """

    def extend() -> CallContext:
        # The clock starts before the lease is written.
        extended = replace(command_context(context.path, services), request_id=context.request_id)
        if not execute(services, _EXTEND, payment, lease=lease_of(services)):
            raise LeaseLost
        return extended

    is_checkout = payment.kind is PaymentKind.CHECKOUT_SESSION
    find = services.stripe.find_checkout_session if is_checkout else services.stripe.find_payment_intent
    since = (payment.asked_at or datetime.now(UTC)) - STRIPE_CLOCK_SKEW
    made = find(payment.app_id, str(payment.id), created_after=since, new_context=extend)
    context = extend()
    if made is not None:
        taken, _ = record_taken(payment, made, services)
        _settle_after_reading(taken, services, context)
        return RecoveryOutcome.TAKEN
    if not ask_anew:
        return _reject(payment, _REJECT, services, context, RecoveryOutcome.REJECTED)
    if not execute(services, _ASK_ANEW, payment):
        raise LeaseLost
    anew = replace(payment, attempt=payment.attempt + 1, asked_at=datetime.now(UTC), asked_anew=True)
    return _find_out(anew, services, context)


def _settle_after_reading(payment: HeldPayment, services: Services, context: CallContext) -> None:
    """Settle what another process may have settled in part: the run is read, and only what is missing is added."""
    if payment.run_id is None or payment.status == PaymentStatus.REJECTED:
        settle(payment, services, context)
        return
    # Whatever becomes of the tracking, what came early is folded.
    adopt_early_events(payment.id, payment.stripe_ids, services=services)
    try:
        is_missing = _is_cost_missing(payment, payment.run_id, services, context)
    except RunsRefusal as error:
        finish(payment, services, TrackingState.FAILED, f"runs-service {error.reason} to reading the run")
        return
    settle(payment, services, context, cost_is_missing=is_missing)


def _is_cost_missing(payment: HeldPayment, run_id: str, services: Services, context: CallContext) -> bool:
    """Whether a payment's run lacks its cost.

    On a caller's run, which payments share, costs can't be told apart, only counted; and only while nobody works on
    another payment there, whose cost may come yet.

    :raises RunsRefusal: when there is no such run
    :raises _RunInUse: while another payment on the run is being worked on
    """
    cost_name = COST_NAMES[payment.kind]
    if payment.org_id is not None:
        return services.runs.get(run_id, context).costs[cost_name] == 0
    before = _count_on_shared_run(payment, services)
    costs = services.runs.get(run_id, context).costs[cost_name]
    if before.in_other_hands or _count_on_shared_run(payment, services) != before:
        raise _RunInUse
    return bool(costs < before.expected)


_past_stripe = (Payment.step.in_([Step.TAKEN, Step.FINISHED])) & (Payment.status != PaymentStatus.REJECTED)

# The payments on a caller's run: how many should have a cost there, and how many are being worked on by others.
_ON_SHARED_RUN = select(
    func.count().filter(_past_stripe, Payment.tracking_state != TrackingState.FAILED).label("expected"),
    func.count()
    .filter(Payment.step != Step.FINISHED, Payment.lease_until > func.now(), Payment.id != bindparam("payment_id"))
    .label("in_other_hands"),
).where(Payment.run_id == bindparam("run_id"), Payment.org_id.is_(None), Payment.kind == bindparam("kind"))


def _count_on_shared_run(payment: HeldPayment, services: Services) -> Any:
    which = {"run_id": payment.run_id, "kind": payment.kind, "payment_id": payment.id}
    with services.database.connect() as connection:
        return connection.execute(_ON_SHARED_RUN, which).one()


def _put_off(
    payment: HeldPayment, tries: int, services: Services, *, reason: str, pause: timedelta, is_stuck: bool = False
) -> None:
    backoff = min(FIRST_BACKOFF * 2 ** min(tries, 20), LONGEST_BACKOFF)
    execute(services, _PUT_OFF, payment, pause=pause, backoff=backoff, is_stuck=is_stuck, new_tracking_error=reason)


_ORPHAN_SEARCHES = (
    select(Payment.id, Payment.kind, Payment.app_id, Payment.org_id, Payment.run_search_from, Payment.run_search_until)
    .where(Payment.run_search_until <= func.now() - bindparam("lease"))
    .order_by(Payment.run_search_until)
    .limit(100)
)
_SEARCHED = (
    update(Payment)
    .where(Payment.id == bindparam("payment_id"), Payment.run_search_until == bindparam("searched_until"))
    .values(run_search_from=null(), run_search_until=null())
)
_KNOWN_RUNS = select(Payment.run_id).where(Payment.run_id.in_(bindparam("run_ids", expanding=True)))


def end_orphan_runs(services: Services, *, command: str) -> Iterator[str]:
    """Fail the runs that were made in the instant before a crash or a timeout, and that no payment knows.

    Only what started more than a lease ago is looked at, so that no run of a payment in progress is among it.
    """
    with services.database.connect() as connection:
        searches = connection.execute(_ORPHAN_SEARCHES, {"lease": lease_of(services) + RUNS_CLOCK_SKEW}).all()
    for search in searches:
        context = command_context(command, services)
        try:
            for run_id in _unknown_runs(search, services, context):
                services.runs.end(run_id, RunStatus.FAILED, context)
                yield run_id
        except ServiceError as error:
            log.warning("runs of payment %s are searched for again later: %s", search.id, reason_of(error))
            continue
        with services.database.connect() as connection:
            connection.execute(_SEARCHED, {"payment_id": search.id, "searched_until": search.run_search_until})


def _unknown_runs(search: Any, services: Services, context: CallContext) -> list[str]:
    runs = services.runs.list_running(
        org_id=search.org_id,
        task_name=TASK_NAMES[PaymentKind(search.kind)],
        started_after=search.run_search_from - RUNS_CLOCK_SKEW,
        started_before=search.run_search_until + RUNS_CLOCK_SKEW,
        context=context,
    )
    candidates = [run.id for run in runs if run.app_id in (None, search.app_id)]
    with services.database.connect() as connection:
        known = set(connection.execute(_KNOWN_RUNS, {"run_ids": candidates}).scalars())
    return [run_id for run_id in candidates if run_id not in known]
