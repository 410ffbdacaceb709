"""The SQL that a request really sends, and how the database goes about it."""

import re
from collections.abc import Callable
from typing import Any
from unittest import mock

from sqlalchemy import Connection, Engine

from app.database import Batch

_WHOLE_TABLE = re.compile(r"Seq Scan on (payments|operations|stripe_objects|stripe_events|money_movements)\b")


def explain(engine: Engine, request: Callable[[], object]) -> list[str]:
    """For each query that a request sends: its text, and its plan with what it took and what it read."""
    with engine.connect() as connection:
        return [f"{' '.join(query.split())}\n{_plan(connection, query)}" for query in _sent_by(request)]


def reads_whole_table(plan: str) -> bool:
    """Whether all rows of a growing table are looked at, one after another."""
    return _WHOLE_TABLE.search(plan) is not None


def _sent_by(request: Callable[[], object]) -> list[str]:
    sent: list[str] = []
    send = Batch.send

    def remember(batch: Batch, cursor: Any, values: Any, **around: str) -> list[Any]:
        sent.extend(cursor.mogrify(batch._text, batch.processed(values)).decode().split("; "))
        return send(batch, cursor, values, **around)

    with mock.patch.object(Batch, "send", remember):
        request()
    return sent


def _plan(connection: Connection, query: str) -> str:
    return "\n".join(connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {query}", None).scalars())
