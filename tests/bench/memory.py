"""What a web process takes of the machine's memory, and whether that grows with the requests it has answered."""

import sys
from dataclasses import dataclass

from tests.bench.load import drive
from tests.bench.service import measured_service
from tests.bench.traffic import DUPLICATED_EVENTS, Traffic

CONNECTIONS = 16
EARLY, LATE = 10_000, 50_000


@dataclass(frozen=True)
class MemoryFigures:
    """The resident memory of the largest worker in MiB: as it starts, and after 10,000 and 50,000 requests."""

    start_mib: float
    early_mib: float
    late_mib: float

    def __str__(self) -> str:
        return (
            f"a worker's memory: {self.start_mib:.1f} MiB at its start, {self.early_mib:.1f} MiB after {EARLY:,} "
            f"requests, {self.late_mib:.1f} MiB after {LATE:,} ({self.late_mib - self.early_mib:+.1f})"
        )


def measure_memory(*, workers: int) -> MemoryFigures:
    """Send 50,000 requests to all routes."""
    traffic = Traffic()
    with measured_service(workers=workers, unpaid=LATE // 2) as service:
        sizes = []
        for requests in (DUPLICATED_EVENTS, EARLY - DUPLICATED_EVENTS, LATE - EARLY):
            print(f"{requests} requests", file=sys.stderr)
            drive(service.web.port, traffic.mixed(requests), connections=CONNECTIONS)
            sizes.append(service.web.rss_bytes() / 2**20)
        service.require_effects(traffic.effects)
    return MemoryFigures(*sizes)
