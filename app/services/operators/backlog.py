"""The backlog: what is left to do, asked of the database in two small statements."""

import logging

from sqlalchemy import func, select

from app.database import Batch
from app.errors import DATABASE_ERRORS
from app.metrics import Backlog
from app.models import EventCursor, Operation, Step, TrackingState
from app.services import Services

log = logging.getLogger(__name__)

# Prometheus gives up after 10 seconds, and then has nothing of what the service knows without the database.
ANSWER_TIMEOUT_SECONDS = 2.0
# What is beyond is not counted: a bound for the query, and more than anyone has to know.
MAX_COUNTED = 10_000

UNFINISHED_STEPS = (Step.ACCEPTED, Step.ASKED, Step.TAKEN)

# From the index of what recovery looks at, which holds unfinished operations only.
_left = (
    select(
        Operation.step,
        (Operation.tracking_state == TrackingState.STUCK).label("is_stuck"),
        func.extract("epoch", func.now() - func.coalesce(Operation.asked_at, Operation.created_at)).label("age"),
    )
    .where(Operation.lease_until.is_not(None))
    .order_by(Operation.lease_until)
    .limit(MAX_COUNTED)
    .subquery()
)
_LEFT = Batch(
    select(_left.c.step, _left.c.is_stuck, func.count().label("count"), func.max(_left.c.age).label("age")).group_by(
        _left.c.step, _left.c.is_stuck
    )
)

# One row for each app.
_cursors = select(EventCursor.reconciled_until.label("until")).limit(MAX_COUNTED).subquery()
_CURSORS = Batch(
    select(
        func.extract("epoch", func.now() - func.min(_cursors.c.until)).label("oldest"),
        func.extract("epoch", func.now() - func.max(_cursors.c.until)).label("newest"),
    )
)


def find_backlog(services: Services) -> Backlog | None:
    """What is left to do; None when the database can't tell in time."""
    try:
        return _read(services)
    except DATABASE_ERRORS as error:
        log.warning("the database did not tell the backlog: %s", type(error).__name__)
        return None


def _read(services: Services) -> Backlog:
    database = services.database.giving_up_after(ANSWER_TIMEOUT_SECONDS)
    groups = database.run(_LEFT)
    (cursors,) = database.run(_CURSORS)
    unfinished: dict[str, int] = dict.fromkeys(UNFINISHED_STEPS, 0)
    oldest_seconds, stuck = 0.0, 0
    for group in groups:
        if group.is_stuck:
            stuck += group.count
        else:
            unfinished[Step(group.step)] = group.count
            oldest_seconds = max(oldest_seconds, float(group.age))
    return Backlog(
        unfinished=unfinished,
        oldest_unfinished_seconds=oldest_seconds,
        stuck=stuck,
        oldest_cursor_seconds=None if cursors.oldest is None else float(cursors.oldest),
        newest_cursor_seconds=None if cursors.newest is None else float(cursors.newest),
    )
