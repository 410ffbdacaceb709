"""Limits: places at once, and beginnings a second."""

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


def holds(limit: ConcurrencyLimit) -> bool:
    """Whether a place can be taken."""
    try:
        with limit.hold():
            return True
    except Overloaded:
        return False
