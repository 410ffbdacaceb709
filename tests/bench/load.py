"""A load generator: keep-alive connections, each of which sends the next request as soon as it has its answer."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


class UnexpectedAnswer(Exception):
    """The service answered something else than it should: figures of errors would be none."""


@dataclass(frozen=True)
class Load:
    """What came of a number of requests; `last_body` is that of the answer that came last."""

    seconds: float
    latencies: tuple[float, ...]
    last_body: bytes

    @classmethod
    def joined(cls, loads: Sequence["Load"]) -> "Load":
        """Loads that came one after another, as one."""
        latencies = tuple(latency for load in loads for latency in load.latencies)
        return cls(sum(load.seconds for load in loads), latencies, loads[-1].last_body)

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile_ms(self, percent: int) -> float:
        """The latency, in milliseconds, that so many of a hundred requests stayed within."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def drive(port: int, requests: Iterable[bytes], *, connections: int) -> Load:
    """Send all requests and read all answers.

    :raises UnexpectedAnswer: when one of them isn't 200.
    """
    return asyncio.run(send_all(port, requests, connections=connections))


async def send_all(port: int, requests: Iterable[bytes], *, connections: int) -> Load:
    """The same, beside other load.

    :raises UnexpectedAnswer: when an answer isn't 200.
    """
    waiting, latencies, bodies = iter(requests), list[float](), [b""]
    started = time.perf_counter()
    sent = [_send_in_turn(port, waiting, latencies, bodies) for _ in range(connections)]
    # Not a TaskGroup, which would hide the one exception in a group.
    await asyncio.gather(*sent)
    return Load(time.perf_counter() - started, tuple(latencies), bodies[0])


async def _send_in_turn(port: int, requests: Iterator[bytes], latencies: list[float], bodies: list[bytes]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for request in requests:
            started = time.perf_counter()
            writer.write(request)
            bodies[0] = await _read_answer(reader)
            latencies.append(time.perf_counter() - started)
    finally:
        writer.close()


async def _read_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    _, _, rest = head.lower().partition(b"\r\ncontent-length:")
    body = await reader.readexactly(int(rest.partition(b"\r\n")[0]))
    if not head.startswith(b"HTTP/1.1 200 "):
        raise UnexpectedAnswer((head.partition(b"\r\n")[0] + b": " + body[:500]).decode(errors="replace"))
    return body
