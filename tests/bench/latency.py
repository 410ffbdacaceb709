"""Creates while every upstream is slow, and whether reads still are quick meanwhile."""

import asyncio
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.bench.load import Load, drive, send_all
from tests.bench.service import MeasuredService, measured_service
from tests.bench.traffic import Effects, Traffic

# Each occupies a thread of the service for as long as a create takes.
CREATING_CONNECTIONS = 16
READING_CONNECTIONS = 4
SECONDS = 15
# The run, the payment intent, its cost, and the end of the run.
UPSTREAM_CALLS = 4


@dataclass(frozen=True)
class LatencyFigures:
    """Creates a second by 16 threads, and what reads take beside them and alone."""

    latency_ms: float
    creates_per_second: float
    creates_per_second_at_most: float
    create_p95_ms: float
    reads_per_second: float
    read_p95_ms: float
    read_alone_p95_ms: float

    def __str__(self) -> str:
        return "\n".join(
            (
                f"each upstream call takes {self.latency_ms:.0f} ms",
                f"creates by {CREATING_CONNECTIONS} threads: {self.creates_per_second:.1f} a second, of "
                f"{self.creates_per_second_at_most:.1f} that waiting allows; p95 {self.create_p95_ms:.0f} ms",
                f"reads meanwhile: {self.reads_per_second:.0f} a second, p95 {self.read_p95_ms:.1f} ms; "
                f"alone {self.read_alone_p95_ms:.1f} ms",
            )
        )


def measure_under_latency(latency_ms: float, *, workers: int) -> LatencyFigures:
    """Create and read for 15 seconds while every call to an upstream takes `latency_ms`."""
    with measured_service(workers=workers, latency_ms=latency_ms) as service:
        traffic = Traffic()
        creates, reads = traffic.routes["intent-create"].requests, traffic.routes["status"].requests
        print("reads alone, then with creates", file=sys.stderr)
        alone = drive(service.web.port, _for_seconds(SECONDS, reads), connections=READING_CONNECTIONS)
        created, read = asyncio.run(_create_and_read(service, creates, reads))
        service.require_effects(Effects(created=len(created.latencies)))
    return LatencyFigures(
        latency_ms=latency_ms,
        creates_per_second=created.per_second,
        creates_per_second_at_most=1000 * CREATING_CONNECTIONS / (UPSTREAM_CALLS * latency_ms),
        create_p95_ms=created.percentile_ms(95),
        reads_per_second=read.per_second,
        read_p95_ms=read.percentile_ms(95),
        read_alone_p95_ms=alone.percentile_ms(95),
    )


async def _create_and_read(
    service: MeasuredService, creates: Iterable[bytes], reads: Iterable[bytes]
) -> tuple[Load, Load]:
    port = service.web.port
    return await asyncio.gather(
        send_all(port, _for_seconds(SECONDS, creates), connections=CREATING_CONNECTIONS),
        send_all(port, _for_seconds(SECONDS, reads), connections=READING_CONNECTIONS),
    )


def _for_seconds(seconds: float, requests: Iterable[bytes]) -> Iterator[bytes]:
    ends_at = time.monotonic() + seconds
    for request in requests:
        if time.monotonic() > ends_at:
            return
        yield request
