"""What PostgreSQL uses for the service's requests: the CPU of the backends that serve it, and its WAL.

A backend is the process that serves one connection. The CPU of PostgreSQL's other processes is not counted: they work
for all databases together. Their WAL is counted, as PostgreSQL tells only that of the whole server: a round in which
autovacuum ran has more of it.
"""

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import text

from tests.bench.database import APPLICATION_NAME, connect

# https://www.postgresql.org/docs/18/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW
_BACKENDS = text(
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND backend_type = 'client backend' AND application_name <> :benchmark"
)
_WAL_BYTES = text("SELECT CAST(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0') AS bigint)")


class BackendMissing(Exception):
    """A backend's CPU can't be read: it has ended, or runs on another machine."""


@dataclass(frozen=True)
class DatabaseUse:
    """What was used so far: CPU seconds by the process id of each backend, and the WAL of the whole server."""

    cpu_seconds: dict[int, float]
    wal_bytes: int


def database_use(url: str) -> DatabaseUse:
    """Look at the backends of a database that serve others than the benchmark itself.

    :raises BackendMissing: when a backend is no process of this machine.
    """
    with connect(url).connect() as connection:
        pids = connection.execute(_BACKENDS, {"benchmark": APPLICATION_NAME}).scalars().all()
        wal_bytes = connection.execute(_WAL_BYTES).scalar_one()
        return DatabaseUse({pid: _cpu_seconds(pid) for pid in pids}, wal_bytes)


def backend_cpu_between(before: DatabaseUse, after: DatabaseUse) -> float:
    """The CPU seconds that the backends used between two looks; all of those of a backend that started meanwhile.

    :raises BackendMissing: when a backend ended meanwhile, and took its figures with it.
    """
    if ended := before.cpu_seconds.keys() - after.cpu_seconds.keys():
        raise BackendMissing(f"{len(ended)} database backends ended in the middle of a measurement")
    if started := after.cpu_seconds.keys() - before.cpu_seconds.keys():
        print(f"{len(started)} database backends started in the middle of a measurement", file=sys.stderr)
    return sum(after.cpu_seconds.values()) - sum(before.cpu_seconds.values())


def _cpu_seconds(pid: int) -> float:
    try:
        process = psutil.Process(pid)
        if not process.name().startswith("postgres"):
            raise BackendMissing(f"process {pid} is not a backend: PostgreSQL must run on this machine")
        times = process.cpu_times()
    except psutil.NoSuchProcess as error:
        raise BackendMissing(f"no process {pid}: a backend ended, or PostgreSQL runs on another machine") from error
    return _scheduled_seconds(pid) or times.user + times.system


def _scheduled_seconds(pid: int) -> float:
    """User and system time as Linux's scheduler counts it; 0 where there is no such figure.

    It counts nanoseconds, psutil only ticks of 10 ms, which eight backends would add up to a tenth of a second. A
    backend has one thread, so that the main thread's time is all of its time.
    https://docs.kernel.org/scheduler/sched-stats.html#proc-pid-schedstat
    """
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    return 0.0
