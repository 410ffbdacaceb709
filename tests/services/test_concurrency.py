"""Places and their shares, and work that is done side by side."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import pytest

from app.errors import Overloaded
from app.services.concurrency import THREADS, FairLimit, InHand, Places, Work, side_by_side
from app.services.stopping import Stop

PATIENCE_SECONDS = 30


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

    def test_it_names_the_apps_that_have_their_share_and_no_longer_when_one_is_given_back(self) -> None:
        places = Places(4, contested=4)
        assert taken(places, "shop") == 2
        assert places.apps_with_their_share() == ["shop"]

        places.give_back("shop")

        assert places.apps_with_their_share() == []
        assert places.take("shop")


class TestFairLimit:
    @pytest.mark.parametrize(("threads", "most"), [(1, 1), (2, 1), (4, 2), (8, 5), (16, 12), (32, 24), (64, 48)])
    def test_one_app_has_some_three_quarters_of_the_threads_and_leaves_places_to_another(
        self, threads: int, most: int
    ) -> None:
        """One or two threads have no place for a second app."""
        limit = FairLimit(threads)
        with ExitStack() as places:
            for _ in range(most):
                places.enter_context(limit.hold("slow"))
            with pytest.raises(Overloaded):
                places.enter_context(limit.hold("slow"))
            if threads > 2:
                places.enter_context(limit.hold("shop"))


class Pieces:
    """Work that is begun in order, where the piece of each app waits until its app is let go."""

    def __init__(self, *apps: str) -> None:
        self.left = list(apps)
        self.begun: list[str] = []
        self.looked_in_vain = False
        self.let_go = {app_id: threading.Event() for app_id in apps}
        self.changed = threading.Condition()

    def next(self, in_hand: InHand) -> Work[str] | None:
        for app_id in self.left:
            if app_id not in in_hand.apps:
                self.left.remove(app_id)
                return Work(app_id, partial(self.do, app_id))
        with self.changed:
            self.looked_in_vain = True
            self.changed.notify_all()
        return None

    def do(self, app_id: str) -> str:
        with self.changed:
            self.begun.append(app_id)
            self.changed.notify_all()
        assert self.let_go[app_id].wait(PATIENCE_SECONDS)
        return app_id

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE_SECONDS)


class TestSideBySide:
    def run(self, pieces: Pieces, stop: Stop) -> tuple[threading.Thread, list[str]]:
        ended: list[str] = []
        running = threading.Thread(target=lambda: ended.extend(side_by_side(pieces.next, stop=stop)), daemon=True)
        running.start()
        return running, ended

    def test_an_app_that_hangs_holds_half_of_the_places_and_the_others_are_done(self) -> None:
        """Fails when an app's share isn't passed over, or when rows are done one after another."""
        pieces = Pieces(*["slow"] * 5, *["shop"] * 5)
        pieces.let_go["shop"].set()
        running, ended = self.run(pieces, Stop())

        pieces.wait_for(lambda: pieces.begun.count("shop") == 5)

        assert pieces.begun.count("slow") == THREADS // 2
        pieces.let_go["slow"].set()
        running.join(PATIENCE_SECONDS)
        assert sorted(ended) == ["shop"] * 5 + ["slow"] * 5

    def test_it_begins_nothing_more_once_it_is_to_stop_and_waits_for_what_is_in_hand(self) -> None:
        pieces, stop = Pieces(*["slow"] * 5), Stop()
        running, ended = self.run(pieces, stop)
        pieces.wait_for(lambda: len(pieces.begun) == 2)

        stop.set()
        pieces.let_go["slow"].set()

        running.join(PATIENCE_SECONDS)
        assert (ended, len(pieces.begun)) == (["slow"] * 2, 2)

    def test_it_ends_quietly_when_the_end_is_asked_for_while_it_looks_for_work(self) -> None:
        stop = Stop()

        def next_work(_: InHand) -> None:
            stop.set()
            stop.check()

        assert list(side_by_side(next_work, stop=stop)) == []

    def test_it_sees_what_comes_up_while_all_that_is_in_hand_hangs(self) -> None:
        pieces = Pieces("slow", "slow", "late")
        pieces.left = ["slow", "slow"]
        running, _ = self.run(pieces, Stop())
        pieces.wait_for(lambda: len(pieces.begun) == 2 and pieces.looked_in_vain)

        pieces.left.append("late")

        pieces.wait_for(lambda: "late" in pieces.begun)
        for event in pieces.let_go.values():
            event.set()
        running.join(PATIENCE_SECONDS)

    def test_it_never_works_twice_on_what_a_piece_is_alone_on(self) -> None:
        first, seen = threading.Event(), list[list[str]]()

        def next_work(in_hand: InHand) -> Work[bool] | None:
            seen.append(in_hand.alone_on)
            if len(seen) == 1:
                return Work("shop", lambda: first.wait(PATIENCE_SECONDS), alone_on="run")
            first.set()
            return None

        assert list(side_by_side(next_work, stop=Stop())) == [True]
        assert seen[:2] == [[], ["run"]]
        assert seen[-1] == []

    def test_it_raises_what_a_piece_raised_once_all_have_ended(self) -> None:
        let_go, other_ended = threading.Event(), list[bool]()

        def fail() -> None:
            let_go.set()
            raise ValueError("a piece")

        def other() -> None:
            other_ended.append(let_go.wait(PATIENCE_SECONDS))

        works = [Work("one", other), Work("two", fail)]
        with pytest.raises(ValueError, match="a piece"):
            list(side_by_side(lambda _: works.pop(0) if works else None, stop=Stop()))
        assert other_ended == [True]

    def test_it_raises_what_the_search_for_work_raised(self) -> None:
        def fail(_: InHand) -> None:
            raise ValueError("the search")

        with pytest.raises(ValueError, match="the search"):
            list(side_by_side(fail, stop=Stop()))
