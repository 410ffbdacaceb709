"""Waiting for a condition, and never for a time."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], *, seconds: float, what: str) -> None:
    """Return as soon as the condition holds.

    :raises AssertionError: when it doesn't within the time
    """
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, f"waited {seconds} s for {what}"
        time.sleep(0.02)
