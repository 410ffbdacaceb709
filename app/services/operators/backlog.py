"""The backlog: what is left to do, asked of the database in two small statements, whoever else waits for it."""

import logging
import threading
from concurrent.futures import Future
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from app.metrics import Backlog
from app.models import EventCursor, Payment, Step, TrackingState
from app.services import Services

log = logging.getLogger(__name__)

# Prometheus gives up after 10 seconds, and then has nothing of what the service knows without the database.
PATIENCE_SECONDS = 2.0
# What is beyond is not counted: a bound for the query, and more than anyone has to know.
MAX_COUNTED = 10_000

UNFINISHED_STEPS = (Step.ACCEPTED, Step.ASKED, Step.TAKEN)

# From the index of what recovery looks at, which holds unfinished payments only.
_left = (
    select(
        Payment.step,
        (Payment.tracking_state == TrackingState.STUCK).label("is_stuck"),
        func.extract("epoch", func.now() - func.coalesce(Payment.asked_at, Payment.created_at)).label("age"),
    )
    .where(Payment.step != Step.FINISHED)
    .order_by(Payment.lease_until)
    .limit(MAX_COUNTED)
    .subquery()
)
_LEFT = select(_left.c.step, _left.c.is_stuck, func.count(), func.max(_left.c.age)).group_by(
    _left.c.step, _left.c.is_stuck
)

# One row for each app.
_cursors = select(EventCursor.reconciled_until.label("until")).limit(MAX_COUNTED).subquery()
_CURSORS = select(
    func.extract("epoch", func.now() - func.min(_cursors.c.until)),
    func.extract("epoch", func.now() - func.max(_cursors.c.until)),
)

_lock = threading.Lock()
_asked: WeakKeyDictionary[Engine, "Future[Backlog | None]"] = WeakKeyDictionary()


def find_backlog(services: Services) -> Backlog | None:
    """What is left to do; None when the database can't tell within `PATIENCE_SECONDS`.

    A connection to a machine that is gone may hang for minutes. So a thread waits for the answer, and whoever asks
    meanwhile waits for the same one: of all scrapes together, one connection is used.
    """
    with _lock:
        answer = _asked.get(services.database)
        if answer is None or answer.done():
            answer = _asked[services.database] = Future()
            threading.Thread(target=_answer, args=(services.database, answer), daemon=True).start()
    try:
        return answer.result(PATIENCE_SECONDS)
    except TimeoutError:
        log.warning("the database did not tell the backlog within %s s", PATIENCE_SECONDS)
        return None


def _answer(database: Engine, answer: "Future[Backlog | None]") -> None:
    try:
        answer.set_result(_read(database))
    except SQLAlchemyError as error:
        log.warning("the database did not tell the backlog: %s", type(error).__name__)
        answer.set_result(None)
    except BaseException as error:
        answer.set_exception(error)


def _read(database: Engine) -> Backlog:
    with database.connect() as connection:
        groups = connection.execute(_LEFT).all()
        oldest_cursor, newest_cursor = connection.execute(_CURSORS).one()
    unfinished: dict[str, int] = dict.fromkeys(UNFINISHED_STEPS, 0)
    oldest_seconds, stuck = 0.0, 0
    for step, is_stuck, count, age in groups:
        if is_stuck:
            stuck += count
        else:
            unfinished[Step(step)] = count
            oldest_seconds = max(oldest_seconds, float(age))
    return Backlog(
        unfinished=unfinished,
        oldest_unfinished_seconds=oldest_seconds,
        stuck=stuck,
        oldest_cursor_seconds=None if oldest_cursor is None else float(oldest_cursor),
        newest_cursor_seconds=None if newest_cursor is None else float(newest_cursor),
    )
