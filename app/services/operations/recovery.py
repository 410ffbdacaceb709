"""Recovery: operations that were left in the middle are claimed one by one and walked to their end, side by side.

Costs are exactly once as long as runs-service no longer executes a call twice its timeout after it was sent: the run
is read before a cost is added, and what was under way must show in it by then.
"""

import logging
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any

from sqlalchemy import Boolean, Text, all_, any_, bindparam, case, func, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

from app.database import Batch
from app.errors import NoStripeKey, ServiceError, StripeRefusal, is_database_outage
from app.metrics import count_operation
from app.models import Operation, Step, TrackingState
from app.services import Services
from app.services.concurrency import InHand, Work, side_by_side
from app.services.events.receive import fold_again
from app.services.operations.accept import RUNS_TO_SEARCH
from app.services.operations.engine import (
    ABANDON,
    STRIPE_IDEMPOTENCY_WINDOW,
    ambiguity_pause,
    complete,
    take,
    take_declined,
    walk,
)
from app.services.operations.kind import Declined, Kind
from app.services.operations.operation import (
    HELD_COLUMNS,
    HOLDS_LEASE,
    LEASE,
    HeldOperation,
    LeaseLost,
    advance,
    held_by,
    held_operation,
    lease_of,
    reason_of,
    release,
)
from app.services.stopping import Stopping
from app.services.upstreams.call_context import CallContext, Deadline
from app.services.upstreams.stripe import IdempotencyMismatch, ReplayedFailure

log = logging.getLogger(__name__)

FIRST_BACKOFF = timedelta(seconds=5)
LONGEST_BACKOFF = timedelta(hours=1)
NO_PAUSE = timedelta()
# What is said of an app or an operation alone: where the database is away, nothing further can be claimed either.
DATABASE_TOO_SLOW = "the database did not do it in time"

Kinds = Mapping[str, Kind[Any]]


class RecoveryOutcome(StrEnum):
    """What recovery did with an operation."""

    ABANDONED = "abandoned"
    TAKEN = "taken"
    REJECTED = "rejected"
    SETTLED = "settled"
    PUT_OFF = "put off"
    STUCK = "stuck"


@dataclass(frozen=True)
class Recovered:
    """An operation that recovery looked at, and what it did."""

    operation_id: uuid.UUID
    outcome: RecoveryOutcome
    reason: str = ""


class RunInUse(Exception):
    """Others work on operations on the same run: nothing was sent."""


class _Stuck(Exception):
    """Nobody but a person can decide what became of an operation."""


_NOW = Batch(select(func.now().label("now")))

_is_due = Operation.recover_at.is_(None) | (Operation.recover_at <= func.now())
# A holder that died may have sent a cost just before.
_may_read_run = (Operation.step != Step.TAKEN) | (Operation.lease_until <= func.now() - bindparam("pause"))
_left = (
    Operation.lease_until <= func.coalesce(bindparam("lapsed_before", type_=TIMESTAMP(timezone=True)), func.now()),
    or_(bindparam("only_id").is_(None), Operation.id == bindparam("only_id")),
    or_(bindparam("at_once"), _is_due & _may_read_run),
)
# Any number of workers claim at once, each another row; the new token fences the former holder off. A run may have
# been made that nobody knows, where Stripe was not asked yet. An app that has its share in hand is passed
# over, and so is a run in hand: payments that share one would put each other off.
_next = (
    select(Operation.id)
    .where(
        *_left,
        # A newer version beside this one may have left kinds that only it knows.
        Operation.kind == any_(bindparam("kinds", type_=ARRAY(Text))),
        Operation.app_id != all_(bindparam("full_apps", type_=ARRAY(Text))),
        func.coalesce(Operation.run_id, "") != all_(bindparam("runs_in_hand", type_=ARRAY(Text))),
    )
    .order_by(Operation.lease_until)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_COUNT_LEFT = Batch(select(func.count().label("count")).select_from(Operation).where(*_left))
_may_have_made_run = Operation.step == Step.ACCEPTED
_CLAIM = Batch(
    update(Operation)
    .where(Operation.id == _next.scalar_subquery())
    .values(
        {
            name: case((_may_have_made_run, value), else_=getattr(Operation, name))
            for name, value in RUNS_TO_SEARCH.items()
        }
        | {"lease_token": bindparam("token"), "lease_until": LEASE}
    )
    .returning(*HELD_COLUMNS)
)

_ASK_ANEW = Batch(
    update(Operation)
    .where(HOLDS_LEASE, Operation.step == Step.ASKED, Operation.asked_anew.is_(False))
    .values(attempt=Operation.attempt + 1, asked_at=func.now(), asked_anew=True)
    .returning(Operation.id)
)

_is_stuck = bindparam("is_stuck", type_=Boolean)
_PUT_OFF = Batch(
    update(Operation)
    .where(HOLDS_LEASE, Operation.step != Step.FINISHED)
    .values(
        # Nobody can tell yet whether a cost was added: what is under way must have ended before the run is read.
        lease_until=case((Operation.step == Step.TAKEN, func.now() + bindparam("pause")), else_=func.now()),
        recover_at=func.now() + bindparam("backoff"),
        recovery_tries=Operation.recovery_tries + 1,
        tracking_state=case((_is_stuck, TrackingState.STUCK), else_=Operation.tracking_state),
        # What is stuck stays so, with the reason for that, while a try ends in an outage.
        tracking_error=case(
            (~_is_stuck & (Operation.tracking_state == TrackingState.STUCK), Operation.tracking_error),
            else_=bindparam("tracking_error", type_=Text),
        ),
    )
)

_EXTEND = Batch(
    update(Operation).where(HOLDS_LEASE, Operation.step == Step.ASKED).values(lease_until=LEASE).returning(Operation.id)
)


def command_context(command: str, services: Services) -> CallContext:
    """On whose behalf a command calls upstreams; it has the deadline that a request has.

    :raises Stopping: when the process was asked to end; asked for before each page, this ends a list between two.
    """
    services.stop.check()
    deadline = Deadline.after(services.settings.request_deadline_seconds)
    return CallContext("COMMAND", command, uuid.uuid4().hex, deadline)


def recover_operations(
    services: Services, kinds: Kinds, *, command: str, only_id: uuid.UUID | None = None, at_once: bool = False
) -> Iterator[Recovered]:
    """Walk operations whose lease has lapsed to their end, until none is left that is due.

    Those whose lease lapses meanwhile are among them: what takes long for one app must not keep another's waiting.

    :param at_once: also those that were put off until later; each one whose lease had lapsed at the beginning, once
    """
    # What is put off during the pass has a lease that ends after its beginning, and isn't claimed again.
    lapsed_before = services.database.run(_NOW)[0].now if at_once else None

    def claim(in_hand: InHand) -> Work[Recovered] | None:
        context = command_context(command, services)
        claimed = services.database.run(
            _CLAIM,
            only_id=only_id,
            kinds=list(kinds),
            at_once=at_once,
            lapsed_before=lapsed_before,
            full_apps=in_hand.apps,
            runs_in_hand=in_hand.alone_on,
            pause=ambiguity_pause(services),
            token=uuid.uuid4(),
            lease=lease_of(services),
        )
        if not claimed:
            return None
        operation = held_operation(claimed[0])
        do = partial(recover, operation, kinds[operation.kind], services, context)
        return Work(operation.app_id, do, alone_on=operation.run_id)

    yield from side_by_side(claim, stop=services.stop)


def count_left(services: Services, *, only_id: uuid.UUID | None = None) -> int:
    """How many operations there are whose lease has lapsed, also those that were put off until later."""
    values = {"only_id": only_id, "at_once": True, "lapsed_before": None, "pause": NO_PAUSE}
    return int(services.database.run(_COUNT_LEFT, **values)[0].count)


def recover(operation: HeldOperation, kind: Kind[Any], services: Services, context: CallContext) -> Recovered:
    """Walk one claimed operation to its end, or put it off."""
    try:
        outcome = _advance(operation, kind, services, context)
        if operation.tracking_state == TrackingState.STUCK:
            log.info("operation %s is no longer stuck", operation.id)
        return Recovered(operation.id, outcome)
    except (_Stuck, NoStripeKey) as error:
        _put_off(operation, services, reason=str(error), pause=NO_PAUSE, is_stuck=True)
        return Recovered(operation.id, RecoveryOutcome.STUCK, str(error))
    except LeaseLost:
        return Recovered(operation.id, RecoveryOutcome.PUT_OFF, "another process has it")
    except Stopping as stopping:
        release(operation, services)
        return Recovered(operation.id, RecoveryOutcome.PUT_OFF, str(stopping))
    except RunInUse:
        # Without a pause, during which those others would wait for this one.
        reason, pause = "other payments are using the run", NO_PAUSE
    except ServiceError as error:
        reason, pause = reason_of(error) or error.sentence, ambiguity_pause(services)
    except Exception as error:
        # One operation that we can't handle, or whose rows are locked, must not keep the others waiting.
        reason, pause = _explain(operation, error), ambiguity_pause(services)
    _put_off(operation, services, reason=reason, pause=pause)
    return Recovered(operation.id, RecoveryOutcome.PUT_OFF, reason)


def _explain(operation: HeldOperation, error: Exception) -> str:
    if is_database_outage(error):
        return DATABASE_TOO_SLOW
    log.error("operation %s can't be recovered", operation.id, exc_info=error)
    return f"unexpected {type(error).__name__}, see the log"


def _advance(operation: HeldOperation, kind: Kind[Any], services: Services, context: CallContext) -> RecoveryOutcome:
    match operation.step:
        case Step.ACCEPTED:
            return _abandon(operation, kind, services, context, RecoveryOutcome.ABANDONED)
        case Step.ASKED:
            return _find_out(operation, kind, services, context)
        case _:
            # Whatever becomes of the tracking, what came early is folded.
            fold_again(operation.payment_id, services=services)
            complete(operation, kind, services, context, may_be_done=True)
            return RecoveryOutcome.SETTLED


def _abandon(
    operation: HeldOperation, kind: Kind[Any], services: Services, context: CallContext, outcome: RecoveryOutcome
) -> RecoveryOutcome:
    advance(services, ABANDON, operation)
    count_operation(kind.name, "abandoned")
    complete(replace(operation, step=Step.TAKEN), kind, services, context, may_be_done=False)
    return outcome


def _find_out(operation: HeldOperation, kind: Kind[Any], services: Services, context: CallContext) -> RecoveryOutcome:
    """Ask Stripe again, with the same key and the same bytes; where that can't tell any more, look for the object."""
    asked_at = operation.asked_at or datetime.min.replace(tzinfo=UTC)
    if datetime.now(UTC) - asked_at > STRIPE_IDEMPOTENCY_WINDOW:
        return _look_for_object(operation, kind, services, context, ask_anew=False)
    try:
        walk(operation, kind, services, context)
    except Declined:
        return RecoveryOutcome.TAKEN
    except StripeRefusal:
        return RecoveryOutcome.REJECTED
    except IdempotencyMismatch as error:
        raise _Stuck(f"Stripe {error.reason}") from error
    except ReplayedFailure:
        return _look_for_object(operation, kind, services, context, ask_anew=not operation.asked_anew)
    return RecoveryOutcome.TAKEN


def _look_for_object(
    operation: HeldOperation, kind: Kind[Any], services: Services, context: CallContext, *, ask_anew: bool
) -> RecoveryOutcome:
    """Look for what Stripe has done.

    A busy account's list takes longer than one lease: it is extended before each page.
    """

    def extend() -> CallContext:
        # The clock starts before the lease is written.
        extended = replace(command_context(context.path, services), request_id=context.request_id)
        advance(services, _EXTEND, operation, lease=lease_of(services))
        return extended

    try:
        made = kind.find(operation, services, extend)
    except Declined as declined:
        take_declined(operation, kind, declined, services, extend())
        return RecoveryOutcome.TAKEN
    except StripeRefusal as refusal:
        # The account of the app's key has no such object: what was done with it elsewhere can't be seen.
        raise _Stuck(refusal.sentence) from refusal
    context = extend()
    if made is not None:
        take(operation, kind, made, services, context)
        return RecoveryOutcome.TAKEN
    if not ask_anew:
        return _abandon(operation, kind, services, context, RecoveryOutcome.REJECTED)
    advance(services, _ASK_ANEW, operation)
    anew = replace(operation, attempt=operation.attempt + 1, asked_at=datetime.now(UTC), asked_anew=True)
    return _find_out(anew, kind, services, context)


def _put_off(
    operation: HeldOperation, services: Services, *, reason: str, pause: timedelta, is_stuck: bool = False
) -> None:
    backoff = min(FIRST_BACKOFF * 2 ** min(operation.recovery_tries, 20), LONGEST_BACKOFF)
    services.database.run(
        _PUT_OFF,
        **held_by(operation),
        pause=pause,
        backoff=backoff,
        is_stuck=is_stuck,
        tracking_error=reason,
    )
