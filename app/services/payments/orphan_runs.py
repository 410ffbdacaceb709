"""Orphan runs: made in the instant before a crash or a timeout, so that no operation knows them."""

import logging
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import Text, all_, any_, bindparam, func, null, select, union_all, update
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

from app.database import Batch
from app.errors import ServiceError
from app.models import Operation, Payment, PaymentKind
from app.services import Services
from app.services.concurrency import InHand, Work, side_by_side
from app.services.operations.operation import lease_of, reason_of
from app.services.operations.recovery import command_context
from app.services.payments.run_tracking import TASK_NAMES, parent_run_of
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.runs import RunStatus

log = logging.getLogger(__name__)

# How far the clock of runs-service may be from our database's: a run that started just now must not be taken for one
# that nobody knows.
RUNS_CLOCK_SKEW = timedelta(seconds=5)

_NOW = Batch(select(func.now().label("now")))
# An app that has its share in hand is passed over, and so is an organisation in hand: its runs are listed together.
_org_id = Operation.request["org_id"].astext
_due = (
    select(Operation.id, Operation.run_search_until)
    .where(
        Operation.run_search_until
        <= func.coalesce(bindparam("before", type_=TIMESTAMP(timezone=True)), func.now()) - bindparam("lease"),
        Operation.app_id != all_(bindparam("full_apps", type_=ARRAY(Text))),
        _org_id != all_(bindparam("orgs_in_hand", type_=ARRAY(Text))),
    )
    .order_by(Operation.run_search_until)
    .limit(1)
    .with_for_update(skip_locked=True)
    # In a join that is planned as a loop, a subquery would be run again for each row, and lock another one each time.
    .cte("due")
    .prefix_with("MATERIALIZED")
)
# To search until later than that is as right, and a lease from now it is due again: so nobody else takes the search
# up meanwhile, and one that fails is made again.
_CLAIM = Batch(
    update(Operation)
    .where(Operation.id == _due.c.id)
    .values(run_search_until=func.now())
    .returning(
        Operation.id,
        Operation.kind,
        Operation.app_id,
        Operation.request,
        Operation.run_search_from,
        _due.c.run_search_until,
        Operation.run_search_until.label("claimed_at"),
    )
)
_SEARCHED = Batch(
    update(Operation)
    .where(Operation.id == bindparam("operation_id"), Operation.run_search_until == bindparam("claimed_at"))
    .values(run_search_from=null(), run_search_until=null())
)
_run_ids: Any = bindparam("run_ids", type_=ARRAY(Text))
# A payment knows its run once Stripe has answered, an operation in progress from the ask on.
_KNOWN_RUNS = Batch(
    union_all(
        select(Payment.run_id).where(Payment.run_id == any_(_run_ids)),
        select(Operation.run_id).where(Operation.lease_until.is_not(None), Operation.run_id == any_(_run_ids)),
    )
)


def end_orphan_runs(services: Services, *, command: str, once: bool = True) -> Iterator[str]:
    """Fail the runs that no operation knows; yield their ids.

    Only what started more than a lease ago is looked at, so that no run of an operation in progress is among it.

    :param once: only what is due at the beginning, each search once; else also what becomes due meanwhile
    """
    lease = lease_of(services) + RUNS_CLOCK_SKEW
    before = services.database.run(_NOW)[0].now if once else None

    def claim(in_hand: InHand) -> Work[list[str]] | None:
        context = command_context(command, services)
        claimed = services.database.run(
            _CLAIM, before=before, lease=lease, full_apps=in_hand.apps, orgs_in_hand=in_hand.alone_on
        )
        if not claimed:
            return None
        (search,) = claimed
        return Work(search.app_id, partial(_search, search, services, context), alone_on=search.request["org_id"])

    for ended in side_by_side(claim, stop=services.stop):
        yield from ended


def _search(search: Any, services: Services, context: CallContext) -> list[str]:
    """End the runs of one operation that it doesn't know; return their ids, also where not all could be ended."""
    ended = []
    try:
        for run_id in _unknown_runs(search, services, context):
            services.runs.end(run_id, RunStatus.FAILED, context)
            ended.append(run_id)
    except ServiceError as error:
        log.warning("runs of operation %s are searched for again later: %s", search.id, reason_of(error))
    else:
        services.database.run(_SEARCHED, operation_id=search.id, claimed_at=search.claimed_at)
    return ended


def _unknown_runs(search: Any, services: Services, context: CallContext) -> list[str]:
    # No field of a run says whose it is but those that it was made with: the fewer others fit, the better.
    runs = services.runs.list_running(
        org_id=search.request["org_id"],
        task_name=TASK_NAMES[PaymentKind(search.kind)],
        parent_run_id=parent_run_of(search.request),
        started_after=search.run_search_from - RUNS_CLOCK_SKEW,
        started_before=search.run_search_until + RUNS_CLOCK_SKEW,
        context=context,
    )
    candidates = [run.id for run in runs if run.app_id in (None, search.app_id)]
    known = {row.run_id for row in services.database.run(_KNOWN_RUNS, run_ids=candidates)}
    return [run_id for run_id in candidates if run_id not in known]
