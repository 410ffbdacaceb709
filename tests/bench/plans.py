"""The SQL that a request really sends, and how the database goes about it."""

import re
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

from sqlalchemy import Connection, Engine

from app.database import Query

_WHOLE_TABLE = re.compile(r"Seq Scan on (payments|stripe_events)\b")


def explain(engine: Engine, request: Callable[[], object]) -> list[str]:
    """For each query that a request runs: its text, and its plan with what it took and what it read."""
    with engine.connect() as connection:
        return [f"{_one_line(query.sql)}\n{_plan(connection, query, values)}" for query, values in _run_by(request)]


def reads_whole_table(plan: str) -> bool:
    """Whether all rows of payments or events are looked at, one after another."""
    return _WHOLE_TABLE.search(plan) is not None


def _run_by(request: Callable[[], object]) -> list[tuple[Query, Mapping[str, object]]]:
    runs = []
    run = Query.run

    def remember(query: Query, database: Engine, values: Mapping[str, object]) -> list[Any]:
        runs.append((query, values))
        return run(query, database, values)

    with mock.patch.object(Query, "run", remember):
        request()
    return runs


def _plan(connection: Connection, query: Query, values: Mapping[str, object]) -> str:
    explained = f"EXPLAIN (ANALYZE, BUFFERS) {query.sql}"
    return "\n".join(connection.exec_driver_sql(explained, {**query.constants, **values}).scalars())


def _one_line(sql: str) -> str:
    return " ".join(sql.split())
