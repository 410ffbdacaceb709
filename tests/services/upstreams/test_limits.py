"""Limits: places at once, and beginnings a second."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from app.errors import Overloaded
from app.services.upstreams.limits import ConcurrencyLimit
from tests.waiting import wait_until


class TestConcurrencyLimit:
    def test_it_refuses_who_finds_no_place(self) -> None:
        limit = ConcurrencyLimit(2)
        with ExitStack() as places:
            places.enter_context(limit.hold())
            places.enter_context(limit.hold())
            with pytest.raises(Overloaded), limit.hold():
                pass
        with limit.hold():
            pass

    def test_it_has_a_place_at_least(self) -> None:
        with ConcurrencyLimit(0).hold():
            pass

    def test_it_lets_so_many_begin_a_second(self) -> None:
        limit = ConcurrencyLimit(1, a_second=3)
        for _ in range(3):
            with limit.hold():
                pass
        with pytest.raises(Overloaded), limit.hold():
            pass
        wait_until(lambda: holds(limit), seconds=2, what="another second")

    def test_it_lets_so_many_wait_for_a_place_that_is_soon_free(self) -> None:
        limit = ConcurrencyLimit(1, waiting=1, wait_seconds=20)
        for _ in range(2):
            with ThreadPoolExecutor(1) as threads:
                with limit.hold():
                    waiting = threads.submit(holds, limit)
                    wait_until(lambda: not limit._waiting._value, seconds=10, what="one that waits")
                    assert not holds(limit)
                assert waiting.result(10)

    def test_it_refuses_who_has_waited_for_so_long(self) -> None:
        limit = ConcurrencyLimit(1, waiting=1, wait_seconds=0.05)
        with limit.hold():
            assert not holds(limit)
        assert holds(limit)


def holds(limit: ConcurrencyLimit) -> bool:
    """Whether a place can be taken."""
    try:
        with limit.hold():
            return True
    except Overloaded:
        return False
