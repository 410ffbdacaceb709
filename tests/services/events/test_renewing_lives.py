"""Lives of a subscription that are drawn at random, told in any order: one state, and the money that Stripe booked."""

import random
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from app.services import Services
from tests.books import objects_of
from tests.databases import empty
from tests.services.events.test_renewals import Subscriber, forget_what_was_told
from tests.soak import amount
from tests.stand_ins import StandIns

Json = dict[str, Any]
ORDERS = 2
HALF_A_MONTH = 15 * 24 * 3600

BANK = [("renew", {}), ("renew", {"fail": True}), ("renew", {"ask": True}), ("retry", {}), ("retry", {"fail": True})]
OTHERS = [("settle_outside", {}), ("void_invoice", {}), ("stop_trying", {}), ("swap_card", {}), ("end", {})]
MONEY = [("refund", {"amount": 300}), ("dispute", {"amount": 500})]
LIVES = st.lists(st.sampled_from([*BANK, *BANK, *OTHERS, *MONEY]), min_size=2, max_size=12)


def live(subscriber: Subscriber, life: list[tuple[str, Json]]) -> None:
    """Play it; what can't happen now doesn't."""
    stand_ins = subscriber.stand_ins
    for action, options in life:
        stand_ins.control("clock", advance=HALF_A_MONTH)
        path = f"subscriptions/{subscriber.id}"
        if (action, options) in MONEY:
            path = f"charges/{objects_of(stand_ins, 'charge')[0]['id']}"
        done = stand_ins.session.post(f"{stand_ins.url}/_sandbox/{path}/{action}", json=options, timeout=30)
        assert done.status_code in (200, 400, 409), done.text


def booked(stand_ins: StandIns) -> tuple[int, int, int]:
    """What came in by cards, went back, and is disputed, by Stripe's own objects."""
    captured = sum(charge["amount_captured"] for charge in objects_of(stand_ins, "charge"))
    refunded = sum(refund["amount"] for refund in objects_of(stand_ins, "refund"))
    return captured, refunded, sum(dispute["amount"] for dispute in objects_of(stand_ins, "dispute"))


def charged(subscriber: Subscriber) -> tuple[int, int, int]:
    """The same, by what callers are shown; what was paid outside of Stripe has no charge."""
    payments = [(each, subscriber.happened_to(each)) for each in subscriber.payments()]
    received = sum(
        success["amountInCents"]
        for _, events in payments
        for success in events["successes"]
        if success["stripeChargeId"]
    )
    (usd,) = subscriber.client.get("/stats?appId=shop").json["currencies"]
    assert usd["grossInCents"] == sum(each["amountReceivedInCents"] for each, _ in payments)
    return received, usd["refundedInCents"], usd["disputedInCents"]


@pytest.mark.soak
@settings(
    max_examples=amount(8, 200),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
@given(life=LIVES, seed=st.integers(0, 1000), old_shapes=st.booleans())
def test_any_life_is_one_state_in_any_order(
    client: FlaskClient,
    stand_ins: StandIns,
    services: Services,
    db: Connection,
    *,
    life: list[tuple[str, Json]],
    seed: int,
    old_shapes: bool,
) -> None:
    stand_ins.reset()
    empty(db)
    subscriber = Subscriber(client, stand_ins, services)
    stand_ins.control("accounts", key="sk_test_sandbox_shop", oldShapes=old_shapes)
    live(subscriber, life)
    told, chance, found = subscriber.told(), random.Random(seed), []
    for order in range(1 + ORDERS):
        forget_what_was_told(db)
        events = list(told)
        if order:
            events += chance.sample(told, len(told) // 3)
            chance.shuffle(events)
        subscriber.deliver(events)
        found.append([(each | {"updatedAt": None}, subscriber.happened_to(each)) for each in subscriber.payments()])
        assert charged(subscriber) == booked(stand_ins)
        of_money = [each for each in objects_of(stand_ins, "invoice") if each["amount_due"]]
        assert len(found[-1]) == len(of_money)
    assert found == [found[0]] * (1 + ORDERS)
