"""The backlog: what is left to do, asked of the database in a few small statements."""

import logging
from collections import Counter
from datetime import timedelta
from typing import Any

from sqlalchemy import case, func, select, union_all

from app.database import Batch, Database
from app.errors import DATABASE_ERRORS
from app.metrics import Backlog
from app.models import Delivery, DeliveryState, EventCursor, EventEndpoint, Operation, Step, TrackingState
from app.services import Services
from app.services.notifications.app_events import undelivered

log = logging.getLogger(__name__)

# Prometheus gives up after 10 seconds, and then has nothing of what the service knows without the database.
ANSWER_TIMEOUT_SECONDS = 2.0
# What is beyond is not counted: a bound for the query, and more than anyone has to know.
MAX_COUNTED = 10_000

# What was given up is told for so long.
NEWS = timedelta(days=1)

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


# From the indexes of what is on its way and of what is dead.
_ends = select(Delivery.endpoint_id, Delivery.state, Delivery.next_attempt_at)
_open = union_all(
    _ends.where(undelivered(Delivery)).limit(MAX_COUNTED),
    _ends.where(Delivery.state == DeliveryState.DEAD, Delivery.ended_at > func.now() - NEWS).limit(MAX_COUNTED),
).subquery()
_is_dead = _open.c.state == DeliveryState.DEAD
_works = (
    EventEndpoint.disabled_at.is_(None)
    & EventEndpoint.failing_since.is_(None)
    & func.coalesce(EventEndpoint.paused_until <= func.now(), True)
)
_DELIVERIES = Batch(
    select(
        EventEndpoint.app_id,
        func.count().filter(~_is_dead).label("undelivered"),
        func.count().filter(_is_dead).label("dead"),
        func.max(func.extract("epoch", func.now() - _open.c.next_attempt_at)).filter(~_is_dead, _works).label("lag"),
    )
    .join(_open, _open.c.endpoint_id == EventEndpoint.id)
    .group_by(EventEndpoint.app_id)
)
# One row for each endpoint.
_endpoint = select(
    EventEndpoint.app_id,
    EventEndpoint.succeeded_count,
    EventEndpoint.failed_count,
    case(
        (EventEndpoint.disabled_at.is_not(None), "disabled"),
        (EventEndpoint.failing_since.is_not(None), "failing"),
        else_="working",
    ).label("state"),
).limit(MAX_COUNTED)
_ENDPOINTS = Batch(_endpoint)


def find_backlog(services: Services) -> Backlog | None:
    """What is left to do; None when the database can't tell in time."""
    try:
        return _read(services)
    except DATABASE_ERRORS as error:
        log.warning("the database did not tell the backlog: %s", type(error).__name__)
        return None


def _read(services: Services) -> Backlog:
    database = services.database.giving_up_after(ANSWER_TIMEOUT_SECONDS)
    by_app = services.settings.metrics_by_app
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
        **_read_deliveries(database, by_app=by_app),
    )


def _read_deliveries(database: Database, *, by_app: bool) -> dict[str, Any]:
    """What of a backlog is about events on their way to apps; without `by_app`, of all apps together."""
    on_their_way: Counter[str] = Counter({"": 0})
    dead: Counter[str] = Counter({"": 0})
    tries: Counter[tuple[str, str]] = Counter({("", "succeeded"): 0, ("", "failed"): 0})
    endpoints: Counter[str] = Counter({"working": 0, "failing": 0, "disabled": 0})
    lag_seconds = 0.0
    for row in database.run(_DELIVERIES):
        app_id = row.app_id if by_app else ""
        on_their_way[app_id] += row.undelivered
        dead[app_id] += row.dead
        # A delivery that is being sent is due when its lease ends.
        lag_seconds = max(lag_seconds, float(row.lag or 0))
    for row in database.run(_ENDPOINTS):
        app_id = row.app_id if by_app else ""
        tries[app_id, "succeeded"] += row.succeeded_count
        tries[app_id, "failed"] += row.failed_count
        endpoints[row.state] += 1
    return {
        "undelivered": on_their_way,
        "dead": dead,
        "tries": tries,
        "endpoints": endpoints,
        "delivery_lag_seconds": lag_seconds,
    }
