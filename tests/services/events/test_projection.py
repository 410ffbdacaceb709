"""The fold: any order, any duplicates, the same result; and the result that a plain model of the life says."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.models import PaymentKind
from app.services.events.stripe_event import Event
from tests.lives import AMOUNT, BORN_AT, CHARGE, INTENT, SESSION, Life, lives
from tests.soak import amount


@pytest.mark.soak
class TestProject:
    @settings(max_examples=amount(400, 10_000), deadline=None)
    @given(life=lives(), data=st.data())
    def test_it_says_the_same_in_any_order_and_with_any_duplicates(self, life: Life, data: st.DataObject) -> None:
        shuffled = data.draw(st.permutations(life.events))
        again = data.draw(st.lists(st.sampled_from(life.events), max_size=5)) if life.events else []

        assert life.projection_of([*again, *shuffled, *again]) == life.projection_of(life.events)

    @settings(max_examples=amount(1000, 10_000), deadline=None)
    @given(life=lives())
    def test_it_says_what_a_plain_model_of_the_life_says(self, life: Life) -> None:
        projection = life.projection_of(life.events)

        assert projection.state.status == life.expected_status
        assert projection.state.amount_received_in_cents == life.received
        assert projection.state.amount_refunded_in_cents == life.refunded
        assert len(projection.failures) == life.expected_failures
        assert len(projection.successes) == life.paid
        assert {(r.id, r.amount_in_cents, r.status) for r in projection.refunds} == {
            (refund_id, *refund) for refund_id, refund in life.refunds.items()
        }
        assert {(d.id, d.amount_in_cents, d.status) for d in projection.disputes} == {
            (dispute_id, *dispute) for dispute_id, dispute in life.disputes.items()
        }

    @settings(max_examples=amount(200, 2_000), deadline=None)
    @given(life=lives(), junk=st.lists(st.recursive(st.none() | st.booleans() | st.integers() | st.text(),
           lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)), min_size=1, max_size=4))  # fmt: skip
    def test_it_survives_fields_of_any_type(self, life: Life, junk: list[Any]) -> None:
        """A genuine event has an id, a type and an object; nothing more is certain of it."""
        odd = [
            Event(f"{event.id}_{number}", event.type, event.created, {**dict.fromkeys(event.object, value), **kept})
            for number, value in enumerate(junk)
            for event in life.events
            for kept in [{"object": event.object["object"], "id": event.object["id"]}]
        ]
        projection = life.projection_of(odd)

        assert projection.state.amount_refunded_in_cents >= 0
        assert projection.state.amount_received_in_cents >= 0


def intent_event(kind: str, *, created: int = BORN_AT + 1, event_id: str = "evt_1", **fields: Any) -> Event:
    shape = {"id": INTENT, "object": "payment_intent", "amount": AMOUNT, "currency": "usd"}
    return Event(event_id, f"payment_intent.{kind}", created, shape | fields)


class TestForeignObjects:
    def life(self) -> Life:
        return Life(PaymentKind.CHECKOUT_SESSION)

    def test_it_is_not_paid_by_an_intent_that_only_carries_its_metadata(self) -> None:
        paid = intent_event("succeeded", amount_received=AMOUNT, latest_charge=CHARGE)

        projection = self.life().projection_of([paid])

        assert (projection.state.status, projection.state.amount_received_in_cents, projection.successes) == (
            "checkout_created",
            0,
            (),
        )

    def test_it_shows_nothing_of_an_intent_over_another_amount(self) -> None:
        events = [intent_event("created", status="requires_payment_method", amount=1),
                  intent_event("payment_failed", event_id="evt_2", amount=1)]  # fmt: skip

        assert self.life().projection_of(events).state.status == "checkout_created"
        assert self.life().projection_of(events).failures == ()

    def test_it_shows_a_failed_try_before_the_session_names_its_intent(self) -> None:
        failed = intent_event("payment_failed", last_payment_error={"code": "card_declined"})

        assert self.life().projection_of([failed]).state.status == "failed"

    def test_it_is_not_refunded_by_the_refund_of_another_intent(self) -> None:
        life = Life(PaymentKind.PAYMENT_INTENT)
        other = {"id": "re_1", "object": "refund", "amount": 10, "status": "succeeded", "payment_intent": "pi_other"}
        events = [intent_event("succeeded", amount_received=AMOUNT), Event("evt_2", "refund.created", 2, other)]

        assert life.projection_of(events).state.status == "succeeded"


class TestShapesOfCheckout:
    @pytest.mark.parametrize(
        ("told", "status"),
        [
            ([("completed", "paid")], "succeeded"),
            ([("completed", "no_payment_required")], "succeeded"),
            ([("completed", "unpaid")], "pending"),
            ([("completed", "unpaid"), ("async_payment_succeeded", "paid")], "succeeded"),
            ([("completed", "unpaid"), ("async_payment_failed", "unpaid")], "failed"),
            ([("expired", "unpaid")], "expired"),
        ],
    )
    def test_it_ends_in_its_status(self, told: list[tuple[str, str]], status: str) -> None:
        life = Life(PaymentKind.CHECKOUT_SESSION)
        for kind, payment_status in told:
            life.tell_session(kind, payment_status=payment_status)

        assert life.projection_of(life.events).state.status == status

    def test_it_counts_a_free_checkout_as_one_success_over_nothing(self) -> None:
        life = Life(PaymentKind.CHECKOUT_SESSION)
        life.tell_session("completed", payment_status="no_payment_required", payment_intent=None, amount_total=0)

        (success,) = life.projection_of(life.events).successes
        assert (success.id, success.amount_in_cents, success.stripe_payment_intent_id) == (SESSION, 0, None)
