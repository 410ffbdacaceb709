"""Orphan runs: made in the instant before a crash or a timeout, so that no operation knows them."""

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from sqlalchemy import Text, any_, bindparam, func, null, select, union_all, update
from sqlalchemy.dialects.postgresql import ARRAY

from app.database import Batch
from app.errors import ServiceError
from app.models import Operation, Payment, PaymentKind
from app.services import Services
from app.services.operations.operation import lease_of, reason_of
from app.services.operations.recovery import command_context
from app.services.payments.run_tracking import TASK_NAMES
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.runs import RunStatus

log = logging.getLogger(__name__)

# How far the clock of runs-service may be from our database's: a run that started just now must not be taken for one
# that nobody knows.
RUNS_CLOCK_SKEW = timedelta(seconds=5)
BATCH = 100

_SEARCHES = Batch(
    select(
        Operation.id,
        Operation.kind,
        Operation.app_id,
        Operation.request["org_id"].astext.label("org_id"),
        Operation.run_search_from,
        Operation.run_search_until,
    )
    .where(Operation.run_search_until <= func.now() - bindparam("lease"))
    .order_by(Operation.run_search_until)
    .limit(BATCH)
)
_SEARCHED = Batch(
    update(Operation)
    .where(Operation.id == bindparam("operation_id"), Operation.run_search_until == bindparam("searched_until"))
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


def end_orphan_runs(services: Services, *, command: str) -> Iterator[str]:
    """Fail the runs that no operation knows; yield their ids.

    Only what started more than a lease ago is looked at, so that no run of an operation in progress is among it.
    """
    for search in services.database.run(_SEARCHES, lease=lease_of(services) + RUNS_CLOCK_SKEW):
        context = command_context(command, services)
        try:
            for run_id in _unknown_runs(search, services, context):
                services.runs.end(run_id, RunStatus.FAILED, context)
                yield run_id
        except ServiceError as error:
            log.warning("runs of operation %s are searched for again later: %s", search.id, reason_of(error))
            continue
        services.database.run(_SEARCHED, operation_id=search.id, searched_until=search.run_search_until)


def _unknown_runs(search: Any, services: Services, context: CallContext) -> list[str]:
    runs = services.runs.list_running(
        org_id=search.org_id,
        task_name=TASK_NAMES[PaymentKind(search.kind)],
        started_after=search.run_search_from - RUNS_CLOCK_SKEW,
        started_before=search.run_search_until + RUNS_CLOCK_SKEW,
        context=context,
    )
    candidates = [run.id for run in runs if run.app_id in (None, search.app_id)]
    known = {row.run_id for row in services.database.run(_KNOWN_RUNS, run_ids=candidates)}
    return [run_id for run_id in candidates if run_id not in known]
