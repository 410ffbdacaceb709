"""The fold: any order, any duplicates, the same result; and the result that a plain model of the life says."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.models import MovementKind, PaymentKind
from app.services.events.projection import PaymentState, Projection
from app.services.events.stripe_event import PERSONAL_FIELDS, Event, answer_event, storable
from app.services.reconciliation.reconcile import EVENT_TYPES
from tests.lives import AMOUNT, BORN_AT, CHARGE, INTENT, INVOICE, PAYMENT_ID, SESSION, SUBSCRIPTION, Life, lives
from tests.objects_of_lives import snapshots_of
from tests.soak import amount
from tests.stripe_shapes import ApiVersion


def counts_of(state: PaymentState) -> tuple[int, ...]:
    return (state.success_count, state.failure_count, state.refund_count, state.dispute_count)


def lists_of(projection: Projection) -> tuple[tuple[object, ...], ...]:
    return (projection.successes, projection.failures, projection.refunds, projection.disputes)


def moved_of(projection: Projection) -> dict[str, int]:
    """What the movements of each kind add up to."""
    moved = dict.fromkeys(MovementKind, 0)
    for movement in projection.movements:
        moved[movement.kind] += movement.amount_in_cents
    return {str(kind): amount for kind, amount in moved.items()}


def told_of(projection: Projection) -> dict[str, Any]:
    """What callers are told of a payment, as far as the model knows it."""
    state = projection.state
    return {
        "status": state.status,
        "amount": (state.amount_in_cents, state.currency),
        "received": state.amount_received_in_cents,
        "refunded": state.amount_refunded_in_cents,
        "disputed": state.amount_disputed_in_cents,
        "lost": state.amount_lost_in_cents,
        "counts": counts_of(state),
        "successes": {
            (it.stripe_payment_intent_id, it.stripe_charge_id, it.amount_in_cents, it.receipt_url)
            for it in projection.successes
        },
        "failures": sorted(str(failure.failure_code) for failure in projection.failures),
        "refunds": sorted((it.id, it.amount_in_cents, it.status) for it in projection.refunds),
        "disputes": sorted((it.id, it.amount_in_cents, it.status) for it in projection.disputes),
    }


def expected_of(life: Life, *, every_refund: bool = False) -> dict[str, Any]:
    """The same, from the model's variables.

    :param every_refund: whether those are known, too, that the life's API version never names in an event
    """
    known = [refund for refund in life.all_refunds if not refund.is_release]
    refunds = {refund.id: (refund.amount, refund.status) for refund in known} if every_refund else life.refunds
    charges = [(intent, intent.charge) for intent in life.paid_intents if intent.charge]
    by_intent = {(it.id, charge.id, it.received, f"https://receipt.test/{charge.id}") for it, charge in charges}
    return {
        "status": life.expected_status,
        "amount": (life.amount, life.currency),
        "received": life.received,
        "refunded": life.refunded,
        "disputed": life.disputed,
        "lost": life.lost,
        "counts": (life.success_count, life.failures, len(refunds), len(life.disputes)),
        "successes": by_intent or ({(None, None, life.received, None)} if life.paid else set()),
        "failures": sorted(life.failure_codes),
        "refunds": sorted((refund_id, *refund) for refund_id, refund in refunds.items()),
        "disputes": sorted((dispute_id, *dispute) for dispute_id, dispute in life.disputes.items()),
    }


def failures_shown_by_objects(life: Life) -> dict[str, Any]:
    """The failures that Stripe's objects still show: each failed charge, and the last try if it came to no charge.

    A page that has expired names no intent: what failed there was told by events only.
    """
    codes: list[str] = []
    if not life.is_checkout or life.session_is_complete:
        codes = [str(charge.failure_code) for charge in life.all_charges if charge.status == "failed"]
        if (error := life.intent.error) and "charge" not in error:
            codes.append(error["code"])
    counts = (
        life.success_count,
        len(codes),
        sum(not refund.is_release for refund in life.all_refunds),
        len(life.all_disputes),
    )
    return {"failures": sorted(codes), "counts": counts}


PERSONAL_VALUES = ("a@b.example", {"id": "x_1", "status": "succeeded", "amount": 1, "of": "a@b.example"})


def with_personal_fields(shown: Any, value: object) -> Any:
    """The same object as Stripe shows it of a customer who has told everything, at each place where it may."""
    if isinstance(shown, list):
        return [with_personal_fields(inner, value) for inner in shown]
    if not isinstance(shown, Mapping):
        return shown
    customer = {"id": "cus_1", "object": "customer", "description": "a@b.example", "created": 1}
    method = {"id": "pm_1", "object": "payment_method", "link": {"owner": "a@b.example"}}
    told = {name: with_personal_fields(inner, value) for name, inner in shown.items()}
    return {"customer": customer, "payment_method": method, **told, **dict.fromkeys(PERSONAL_FIELDS, value)}


def orders(events: list[Event], seed: int) -> Iterator[list[Event]]:
    """Events in three random orders, some of them twice."""
    chance = random.Random(seed)
    for _ in range(3):
        told = [*events, *chance.sample(events, min(5, len(events)))]
        chance.shuffle(told)
        yield told


@pytest.mark.soak
class TestProject:
    @settings(max_examples=amount(300, 20_000), deadline=None)
    @given(life=lives(), seed=st.integers(0, 2**32))
    def test_it_says_what_a_plain_model_of_the_life_says(self, life: Life, seed: int) -> None:
        in_order = life.projection_of(life.events)
        state = in_order.state

        assert told_of(in_order) == expected_of(life)
        assert all(life.projection_of(told) == in_order for told in orders(life.events, seed))
        assert 0 <= state.amount_refunded_in_cents <= state.amount_received_in_cents
        assert counts_of(state) == tuple(map(len, lists_of(in_order)))
        assert moved_of(in_order) == {"received": life.received, "refunded": life.refunded, "disputed": life.disputed}
        assert (state.status == "succeeded") == (life.expected_status == "succeeded")

    @settings(max_examples=amount(50, 5_000), deadline=None)
    @given(life=lives(), value=st.sampled_from(PERSONAL_VALUES))
    def test_it_says_the_same_of_what_is_stored_as_of_what_stripe_tells(self, life: Life, value: object) -> None:
        """Fails when the fold reads what is left out where an event is stored."""
        told = [replace(event, object=with_personal_fields(event.object, value)) for event in life.events]
        stored = [replace(event, object=storable(event.object)) for event in told]

        assert life.projection_of(stored) == life.projection_of(told)
        assert not told or "@" in str(told)
        assert "@" not in str(stored)

    @settings(max_examples=amount(200, 20_000), deadline=None)
    @given(life=lives(), seed=st.integers(0, 2**32))
    def test_it_says_the_same_where_the_objects_were_read_besides(self, life: Life, seed: int) -> None:
        """At any moments, and at the end; an object that hasn't changed is stored once, as of the first time."""
        read: dict[str, Event] = {}
        for seen in (*life.looks, life):
            read = {event.id: event for event in snapshots_of(seen)} | read
        expected = expected_of(life, every_refund=True)

        for told in orders([*life.events, *read.values()], seed):
            assert told_of(life.projection_of(told)) == expected

    @settings(max_examples=amount(200, 20_000), deadline=None)
    @given(life=lives(), seed=st.integers(0, 2**32))
    def test_it_says_the_same_where_nothing_but_the_objects_tells(self, life: Life, seed: int) -> None:
        """After 60 days without webhooks: a page has expired by then, and Stripe lists none of the events."""
        life.expire()
        expected = expected_of(life, every_refund=True) | failures_shown_by_objects(life)

        for told in orders(snapshots_of(life), seed):
            assert told_of(life.projection_of(told)) == expected

    @settings(max_examples=amount(100, 5_000), deadline=None)
    @given(life=lives(versions=[ApiVersion.PINNED]))
    def test_it_says_the_same_where_the_events_are_listed(self, life: Life) -> None:
        """Fails when a type of event that the fold needs is not among those that Stripe is asked to list."""
        listed = [event for event in life.events if event.type in EVENT_TYPES]

        assert told_of(life.projection_of(listed)) == expected_of(life)

    @settings(max_examples=amount(120, 10_000), deadline=None)
    @given(life=lives(), data=st.data())
    def test_it_contradicts_itself_in_no_part_of_the_events(self, life: Life, data: st.DataObject) -> None:
        """Whatever is lost: state and money are told by the same facts, and nothing is made up."""
        kept = data.draw(st.lists(st.booleans(), min_size=len(life.events), max_size=len(life.events)))
        projection = life.projection_of([event for event, is_kept in zip(life.events, kept, strict=True) if is_kept])
        state = projection.state

        assert 0 <= state.amount_refunded_in_cents <= state.amount_received_in_cents <= life.received
        assert 0 <= state.amount_disputed_in_cents <= sum(dispute.amount for dispute in life.all_disputes)
        if state.status in ("succeeded", "refunded", "partially_refunded"):
            assert projection.successes
        if state.status != "disputed" and projection.successes:
            assert state.status in ("succeeded", "refunded", "partially_refunded")
        if state.amount_received_in_cents:
            assert projection.successes
        assert counts_of(state) == tuple(map(len, lists_of(projection)))
        assert moved_of(projection) == {
            "received": state.amount_received_in_cents,
            "refunded": state.amount_refunded_in_cents,
            "disputed": state.amount_disputed_in_cents,
        }
        assert len(projection.failures) <= life.failures
        assert {refund.id for refund in projection.refunds} <= set(life.refunds)
        assert {dispute.id for dispute in projection.disputes} <= set(life.disputes)

    @settings(max_examples=amount(50, 2_000), deadline=None)
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


class TestMovements:
    @pytest.mark.parametrize("version", ApiVersion)
    def test_each_refund_moves_money_when_it_was_made(self, version: ApiVersion) -> None:
        """Also where only the charge tells of it: fails when what it shows is dated by the last that showed it."""
        life = Life(PaymentKind.PAYMENT_INTENT, version=version)
        life.pay()
        expected = []
        for amount_in_cents in (1000, 2000):
            life.now += 40 * 24 * 3600
            life.refund(amount_in_cents)
            expected.append((life.now, amount_in_cents))

        movements = life.projection_of(life.events).movements
        moved = [(each.occurred_at.timestamp(), each.amount_in_cents) for each in movements if each.kind == "refunded"]
        assert moved == expected


class TestAnswers:
    """What Stripe answered to a caller, as a fact of ours."""

    def test_a_pending_refund_counts_before_and_after_its_events(self) -> None:
        """The charge shows it as refunded from the beginning: the events that follow the answer change nothing."""
        told = {}
        for lost in (True, False):
            life = Life(PaymentKind.PAYMENT_INTENT)
            life.pay()
            life.ask_refund(1000, pending=True, lost=lost)
            told[lost] = life.projection_of(life.events).state

        assert (told[True].status, told[True].amount_refunded_in_cents) == ("partially_refunded", 1000)
        assert told[True] == told[False]

    @pytest.mark.parametrize(("lost", "seconds"), [(True, 20 * 3600), (False, 0)])
    def test_stripe_says_when_a_payment_has_succeeded(self, lost: bool, seconds: int) -> None:
        """An answer that recovery sees much later dates the success only until Stripe tells of it."""
        life = Life(PaymentKind.PAYMENT_INTENT)
        life.authorize()
        life.ask_capture(AMOUNT, lost=lost, late=20 * 3600)

        (success,) = life.projection_of(life.events).successes
        assert success.created_at.timestamp() == life.now + seconds


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


def event_of(
    kind: str, stripe_object: str, event_id: str = "evt_x", created: int = BORN_AT + 9, **fields: Any
) -> Event:
    return Event(event_id, kind, BORN_AT + 9, {"object": stripe_object} | fields)


class TestReports:
    """Payments that went wrong for others: rows of the list of reports, each with the right value."""

    def paid(self, received: int, **charge: Any) -> list[Event]:
        """An authorisation of AMOUNT of which `received` was captured, and what its charge says at the end."""
        shape: dict[str, Any] = {"id": CHARGE, "payment_intent": INTENT, "amount": AMOUNT, "status": "succeeded"}
        succeeded = intent_event("succeeded", status="succeeded", amount_received=received, latest_charge=CHARGE)
        return [succeeded, event_of("charge.updated", "charge", "evt_2", **shape, **charge)]

    def told(self, events: list[Event], kind: PaymentKind = PaymentKind.PAYMENT_INTENT) -> PaymentState:
        return Life(kind).projection_of(events).state

    def test_it_takes_more_than_was_authorised_for_no_refund(self) -> None:
        """Row 1."""
        state = self.told(self.paid(6000, amount_captured=6000, amount_refunded=0))

        assert (state.status, state.amount_received_in_cents, state.amount_refunded_in_cents) == ("succeeded", 6000, 0)

    @pytest.mark.parametrize("told_by", ["charge without a list", "list of the charge", "refund.created", "all"])
    def test_it_takes_what_was_released_for_no_refund(self, told_by: str) -> None:
        """Row 2: however the release is told."""
        release: dict[str, Any] = {
            "id": "re_1",
            "object": "refund",
            "amount": 2000,
            "status": "succeeded",
            "charge": CHARGE,
        }
        release |= {"payment_intent": INTENT, "balance_transaction": None}
        charge: dict[str, Any] = {"amount_captured": 3000, "amount_refunded": 2000}
        if told_by in ("list of the charge", "all"):
            charge["refunds"] = {"object": "list", "data": [release]}
        events = self.paid(3000, **charge)
        if told_by in ("refund.created", "all"):
            events.append(Event("evt_3", "refund.created", BORN_AT + 9, release))

        projection = Life(PaymentKind.PAYMENT_INTENT).projection_of(events)

        state = projection.state
        assert (state.status, state.amount_received_in_cents, state.amount_refunded_in_cents) == ("succeeded", 3000, 0)
        assert (projection.refunds, state.refund_count) == ((), 0)

    def test_it_finds_the_charge_in_the_list_of_an_old_intent(self) -> None:
        """Row 3."""
        charge = {"id": CHARGE, "object": "charge", "status": "succeeded", "receipt_url": "https://receipt.test/1"}
        failed = {"id": "ch_0", "object": "charge", "status": "failed", "receipt_url": None}
        paid = intent_event("succeeded", amount_received=AMOUNT, charges={"object": "list", "data": [charge, failed]})

        projection = Life(PaymentKind.PAYMENT_INTENT).projection_of([paid])

        (success,) = projection.successes
        assert projection.state.stripe_charge_id == CHARGE
        assert (success.stripe_charge_id, success.receipt_url) == (CHARGE, "https://receipt.test/1")

    @pytest.mark.parametrize("version", [ApiVersion.CHARGES_OF_INTENT, ApiVersion.LATEST_CHARGE])
    def test_it_is_refunded_when_a_refund_has_ended_an_inquiry(self, version: ApiVersion) -> None:
        """Row 4."""
        life = Life(PaymentKind.PAYMENT_INTENT, version=version)
        life.pay()
        life.dispute("warning_needs_response")
        life.refund(AMOUNT)

        state = self.told(life.events)

        assert life.disputes["du_0"] == (AMOUNT, "charge_refunded")
        assert (state.status, state.amount_refunded_in_cents, state.amount_disputed_in_cents) == ("refunded", AMOUNT, 0)

    def test_it_holds_nothing_for_an_inquiry(self) -> None:
        """Row 5."""
        life = Life(PaymentKind.PAYMENT_INTENT)
        life.pay()
        life.dispute("warning_needs_response")

        state = self.told(life.events)

        assert (state.status, state.amount_received_in_cents, state.amount_disputed_in_cents) == ("disputed", AMOUNT, 0)

    def test_it_counts_one_try_that_two_events_of_a_second_tell(self) -> None:
        """Row 6."""
        error = {"code": "payment_intent_authentication_failure", "message": "Not authenticated."}
        events = [intent_event("payment_failed", event_id=it, last_payment_error=error) for it in ("evt_1", "evt_2")]

        projection = Life(PaymentKind.PAYMENT_INTENT).projection_of(events)

        assert (len(projection.failures), projection.state.failure_count) == (1, 1)

    @pytest.mark.parametrize("charge", [{}, {"charge": CHARGE}], ids=["no charge", "charge"])
    def test_it_counts_one_try_that_an_answer_and_an_event_of_later_tell(self, charge: dict[str, str]) -> None:
        """Fails when a try that came to no charge is told from another by the second of our own fact."""
        error = {"code": "authentication_required", "message": "Not authenticated.", **charge}
        shown = {"object": "payment_intent", "id": INTENT, "created": BORN_AT, "last_payment_error": error}
        answered = answer_event(f"{PAYMENT_ID}:2", "payment_intent.payment_failed", shown)
        told = intent_event("payment_failed", created=BORN_AT + 2, last_payment_error=error)

        for events in permutations((answered, told)):
            (failure,) = Life(PaymentKind.PAYMENT_INTENT).projection_of(list(events)).failures
            assert (failure.id, failure.failure_code) == (told.id, "authentication_required")

    def test_it_counts_two_challenges_that_failed(self) -> None:
        error = {"code": "payment_intent_authentication_failure", "message": "Not authenticated."}
        events = [intent_event("payment_failed", event_id=f"evt_{at}", created=at, last_payment_error=error)
                  for at in (BORN_AT + 5, BORN_AT + 50)]  # fmt: skip

        assert len(Life(PaymentKind.PAYMENT_INTENT).projection_of(events).failures) == 2

    def first_invoice(self, kind: str, event_id: str, **fields: Any) -> Event:
        details = {"subscription": SUBSCRIPTION, "metadata": {"paymentId": str(PAYMENT_ID)}}
        parent = {"type": "subscription_details", "subscription_details": details}
        shape: dict[str, Any] = {
            "id": INVOICE,
            "billing_reason": "subscription_create",
            "attempt_count": 1,
            "parent": parent,
        }
        return event_of(f"invoice.{kind}", "invoice", event_id, **shape, **fields)

    def test_it_shows_a_first_try_that_fails_on_a_subscriptions_page(self) -> None:
        """Row 9: the session hasn't ended, and nothing but the invoice's metadata ties the two."""
        projection = Life(PaymentKind.CHECKOUT_SESSION).projection_of([self.first_invoice("payment_failed", "evt_1")])

        assert (projection.state.status, len(projection.failures)) == ("failed", 1)

    def test_it_is_paid_by_the_second_try_on_a_subscriptions_page(self) -> None:
        """Row 9, later: the session names the invoice, and the first try stays on the list."""
        life = Life(PaymentKind.CHECKOUT_SESSION, subscription=True)
        life.pay()
        projection = life.projection_of([self.first_invoice("payment_failed", "evt_1", amount_paid=0), *life.events])

        state = projection.state
        assert (state.status, state.amount_received_in_cents) == ("succeeded", AMOUNT)
        assert (len(projection.failures), len(projection.successes)) == (1, 1)


class TestSeveralObjects:
    def test_it_adds_up_the_intents_of_an_invoice(self) -> None:
        life = Life(PaymentKind.CHECKOUT_SESSION, subscription=True)
        life.pay_in_parts(2000)
        by_intents_alone = [event for event in life.events if event.type != "invoice.paid"]

        assert told_of(life.projection_of(life.events)) == expected_of(life)
        assert told_of(life.projection_of(by_intents_alone)) == expected_of(life)

    def test_it_takes_off_a_refund_that_failed_where_the_others_have_no_name(self) -> None:
        """API version 2022-11-15 names a refund when it changes: the charge's sum alone tells of the others."""
        life = Life(PaymentKind.PAYMENT_INTENT, version=ApiVersion.LATEST_CHARGE)
        life.pay()
        life.refund(4999)
        life.refund(1)
        life.move_refund(1, "failed")

        assert life.refunds == {"re_1": (1, "failed")}
        assert told_of(life.projection_of(life.events)) == expected_of(life)

    def test_it_knows_its_intent_by_an_old_invoice_alone(self) -> None:
        life = Life(PaymentKind.CHECKOUT_SESSION, subscription=True, version=ApiVersion.LATEST_CHARGE)
        life.pay()
        told = [event for event in life.events if event.type in ("checkout.session.completed", "invoice.paid")]

        assert life.projection_of(told).state.stripe_payment_intent_id == INTENT

    def test_it_shows_a_failure_by_the_word_of_the_intent(self) -> None:
        """The charge tells of the same try."""
        life = Life(PaymentKind.PAYMENT_INTENT)
        life.fail()
        (told,) = [event for event in life.events if event.type == "payment_intent.payment_failed"]

        assert [failure.id for failure in life.projection_of(life.events).failures] == [told.id]

    def test_it_is_not_refunded_before_it_is_known_to_be_paid(self) -> None:
        """The refund's event comes first: nothing is refunded of nothing."""
        life = Life(PaymentKind.PAYMENT_INTENT)
        life.pay()
        life.refund(1000)
        state = life.projection_of([event for event in life.events if event.type == "refund.created"]).state

        assert (state.status, state.amount_received_in_cents, state.amount_refunded_in_cents, state.refund_count) == (
            "requires_payment_method", 0, 0, 1
        )  # fmt: skip

    @pytest.mark.parametrize("outside", [True, False])
    @pytest.mark.parametrize("version", ApiVersion)
    def test_it_is_paid_by_an_invoice_without_an_intent(self, version: ApiVersion, outside: bool) -> None:
        life = Life(PaymentKind.CHECKOUT_SESSION, subscription=True, version=version)
        life.settle(outside=outside)

        assert told_of(life.projection_of(life.events)) == expected_of(life)

    @pytest.mark.parametrize("outside", [True, False])
    def test_it_is_not_the_failed_intent_that_paid_an_invoice_without_one(self, outside: bool) -> None:
        life = Life(PaymentKind.CHECKOUT_SESSION, subscription=True)
        life.fail()
        life.settle(outside=outside)

        assert told_of(life.projection_of(life.events)) == expected_of(life)

    @pytest.mark.parametrize("end", ["failed", "canceled"])
    @pytest.mark.parametrize("it_still_counts", [True, False])
    def test_it_is_not_refunded_by_what_came_back(self, end: str, it_still_counts: bool) -> None:
        """Whether the charge's `amount_refunded` still counts the refund, or no more."""
        life = Life(PaymentKind.PAYMENT_INTENT, failed_refunds_count=it_still_counts)
        life.pay()
        life.refund(1000, pending=True)
        life.move_refund(0, end)
        life.touch(0)

        assert told_of(life.projection_of(life.events)) == expected_of(life)

    @pytest.mark.parametrize("version", ApiVersion)
    def test_it_receives_nothing_of_an_authorisation_that_is_let_go(self, version: ApiVersion) -> None:
        life = Life(PaymentKind.PAYMENT_INTENT, version=version)
        life.authorize()
        life.cancel()

        assert told_of(life.projection_of(life.events)) == expected_of(life)

    @pytest.mark.parametrize("version", ApiVersion)
    def test_it_counts_one_failure_of_a_slow_debit_on_a_subscriptions_page(self, version: ApiVersion) -> None:
        life = Life(PaymentKind.CHECKOUT_SESSION, subscription=True, version=version, slow=True)
        life.process()
        life.fail_later()

        assert told_of(life.projection_of(life.events)) == expected_of(life)

    @pytest.mark.parametrize("captured", [AMOUNT, 3000, 6000])
    def test_it_is_refunded_when_all_that_was_captured_went_back(self, captured: int) -> None:
        life = Life(PaymentKind.PAYMENT_INTENT)
        life.authorize()
        life.pay(captured)
        life.refund(captured)

        assert told_of(life.projection_of(life.events)) == expected_of(life)
        assert life.expected_status == "refunded"
