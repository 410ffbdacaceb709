"""The fold of subscriptions: any order, any duplicates, both shapes, one state; and the one that a plain model says."""

import random
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from app.services.events.stripe_event import Event
from app.services.events.subscription import SubscriptionProjection, SubscriptionState, project_subscription
from tests.soak import amount
from tests.subscription_lives import CUSTOMER, ITEM, SubscriptionLife, subscription_lives


def time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def expected_of(life: SubscriptionLife) -> dict[str, Any]:
    """What callers are told of the subscription, from the model's variables."""
    return {
        "status": life.status,
        "customer": CUSTOMER,
        "items": [(ITEM, f"price_{life.price}", life.quantity, life.price, "usd", "month", 1)],
        "period": (time(life.start), time(life.end)),
        "end": (time(life.cancel_at), life.cancel_at is not None, time(life.canceled_at), time(life.ended_at)),
        "trial_end": time(life.trial_end),
    }


def told_of(state: SubscriptionState) -> dict[str, Any]:
    return {
        "status": state.status,
        "customer": state.customer_id,
        "items": [tuple(vars(item).values()) for item in state.items],
        "period": (state.current_period_start, state.current_period_end),
        "end": (state.cancel_at, state.cancel_at_period_end, state.canceled_at, state.ended_at),
        "trial_end": state.trial_end,
    }


def project(events: list[Event]) -> SubscriptionProjection:
    projection = project_subscription(events)
    assert projection is not None
    return projection


def updated(number: int, created: int, status: str, *, before: str | None = None) -> Event:
    previous = None if before is None else {"status": before}
    shown = {"object": "subscription", "id": "sub_1", "status": status, "created": 1}
    return Event(f"evt_{number}", "customer.subscription.updated", created, shown, previous)


class TestProjectSubscription:
    @settings(max_examples=amount(300, 20_000), deadline=None)
    @given(life=subscription_lives(), seed=st.integers(0, 2**32))
    def test_it_says_what_a_plain_model_of_the_life_says(self, life: SubscriptionLife, seed: int) -> None:
        """Fails when a tie is settled by arrival or by an id."""
        chance, in_order = random.Random(seed), project(life.events)
        for _ in range(3):
            told = [*life.events, *chance.sample(life.events, min(3, len(life.events)))]
            chance.shuffle(told)
            assert project(told) == in_order

        asked = project([*life.events, life.look(late=1)])
        assert asked.is_settled
        assert told_of(asked.state) == expected_of(life)
        if in_order.is_settled:
            assert told_of(in_order.state) == expected_of(life)

    @settings(max_examples=amount(100, 5_000), deadline=None)
    @given(life=subscription_lives())
    def test_slow_changes_are_settled_by_their_events_alone(self, life: SubscriptionLife) -> None:
        assert life.quick or project(life.events).is_settled

    @settings(max_examples=amount(100, 5_000), deadline=None)
    @given(life=subscription_lives())
    def test_what_is_read_alone_says_the_same(self, life: SubscriptionLife) -> None:
        alone = project([life.look()])
        assert (told_of(alone.state), alone.is_settled) == (expected_of(life), True)

    def test_a_deletion_wins_for_ever(self) -> None:
        deleted = replace(updated(1, 5, "active"), type="customer.subscription.deleted")
        assert project([deleted, updated(2, 9, "active", before="past_due")]).state.status == "active"
        canceled = replace(deleted, object={**deleted.object, "status": "canceled"})
        assert project([canceled, updated(2, 9, "past_due")]).state.status == "canceled"

    def test_events_of_one_second_are_ordered_by_what_was_before(self) -> None:
        """Fails without `previous_attributes`: the ids say the contrary."""
        chain = [updated(3, 5, "active", before="incomplete"), updated(2, 5, "past_due", before="active")]
        assert (project(chain).state.status, project(chain).is_settled) == ("past_due", True)

    def test_a_tie_that_says_nothing_of_its_order_is_not_settled(self) -> None:
        tie = [updated(1, 5, "active"), updated(2, 5, "past_due")]
        circle = [updated(1, 5, "active", before="past_due"), updated(2, 5, "past_due", before="active")]
        assert [project(events).is_settled for events in (tie, circle)] == [False, False]

    def test_an_answer_shows_at_once_and_is_settled_by_what_stripe_tells(self) -> None:
        answer = replace(updated(1, 6, "canceled"), id="op_1:1")
        shown = replace(answer, object={**answer.object, "status": "past_due"})
        known = updated(2, 5, "active")
        assert (project([known, shown]).state.status, project([known, shown]).is_settled) == ("past_due", False)
        assert project([known, shown, replace(updated(3, 6, "past_due"), id="evt_3")]).is_settled
        assert project([known, shown, updated(4, 7, "active", before="past_due")]).state.status == "active"

    def test_it_says_nothing_of_what_shows_no_status(self) -> None:
        assert (
            project_subscription([Event("evt_1", "customer.subscription.updated", 1, {"object": "subscription"})])
            is None
        )
