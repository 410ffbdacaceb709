"""Places, and the shares of apps in them."""

from contextlib import ExitStack

import pytest

from app.errors import Overloaded
from app.services.concurrency import ConcurrencyLimit, Places


def taken(places: Places, app_id: str) -> int:
    """How many places an app is given, if it takes all that it can have."""
    count = 0
    while places.take(app_id):
        count += 1
    return count


class TestPlaces:
    @pytest.mark.parametrize(
        ("count", "contested", "shares"),
        [
            (4, 4, [2, 1, 1, 0]),
            (1, 1, [1, 0]),
            (2, 2, [1, 1, 0]),
            (28, 4, [24, 2, 1, 1, 0]),
            (28, 28, [14, 7, 4, 2, 1, 0]),
        ],
    )
    def test_an_app_never_takes_the_last_ones_from_those_that_hold_fewer(
        self, count: int, contested: int, shares: list[int]
    ) -> None:
        places = Places(count, contested=contested)

        assert [taken(places, f"app{position}") for position in range(len(shares))] == shares


class TestConcurrencyLimit:
    @pytest.mark.parametrize(("threads", "most"), [(1, 1), (2, 1), (4, 2), (8, 6), (16, 12), (32, 24), (64, 48)])
    def test_one_app_has_three_quarters_of_the_threads_and_leaves_places_to_another(
        self, threads: int, most: int
    ) -> None:
        """One or two threads have no place for a second app."""
        limit = ConcurrencyLimit(threads)
        with ExitStack() as places:
            for _ in range(most):
                places.enter_context(limit.hold("slow"))
            with pytest.raises(Overloaded):
                places.enter_context(limit.hold("slow"))
            if threads > 2:
                places.enter_context(limit.hold("shop"))
