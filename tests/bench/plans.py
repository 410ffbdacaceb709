"""The SQL that a request really sends, and how the database goes about it."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

# What may stand before a statement, in the same message; EXPLAIN takes one statement.
_SETTINGS = re.compile(r"(SET LOCAL [^;]*;\s*)*")
_WHOLE_TABLE = re.compile(r"Seq Scan on (payments|stripe_events)\b")

Statement = tuple[str, Any]


def explain(engine: Engine, request: Callable[[], object]) -> list[str]:
    """For each statement that a request sends: its text, and its plan with what it took and what it read."""
    with _sent_by(engine) as statements:
        request()
    with engine.connect() as connection:
        return [f"{_one_line(sql)}\n{_plan(connection, sql, values)}" for sql, values in statements]


def reads_whole_table(plan: str) -> bool:
    """Whether all rows of payments or events are looked at, one after another."""
    return _WHOLE_TABLE.search(plan) is not None


@contextmanager
def _sent_by(engine: Engine) -> Iterator[list[Statement]]:
    statements: list[Statement] = []

    def remember(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        statements.append((_SETTINGS.sub("", statement, count=1), values))

    event.listen(engine, "before_cursor_execute", remember)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", remember)


def _plan(connection: Any, sql: str, values: Any) -> str:
    return "\n".join(connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {sql}", values).scalars())


def _one_line(sql: str) -> str:
    return " ".join(sql.split())
