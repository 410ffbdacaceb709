"""What an app is told of a change."""

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest

from app.services.events.app_event import data_of_change, types_of_change
from app.services.events.projection import PaymentState

NEW = PaymentState(
    status="requires_payment_method",
    amount_in_cents=2000,
    currency="usd",
    stripe_payment_intent_id="pi_1",
    stripe_checkout_session_id=None,
    stripe_subscription_id=None,
    stripe_invoice_id=None,
    stripe_charge_id=None,
    stripe_customer_id=None,
    amount_received_in_cents=0,
    amount_refunded_in_cents=0,
    amount_disputed_in_cents=0,
    amount_lost_in_cents=0,
    success_count=0,
    failure_count=0,
    refund_count=0,
    dispute_count=0,
    movements_digest=None,
    refund_statuses={},
    dispute_statuses={},
)
CREATING = replace(NEW, status="creating", stripe_payment_intent_id=None)
FREE = replace(NEW, status="succeeded", success_count=1)
PAID = replace(FREE, amount_received_in_cents=2000)


def refunded(amount: int, **statuses: str) -> PaymentState:
    status = {0: "succeeded", 2000: "refunded"}.get(amount, "partially_refunded")
    count = len(statuses)
    return replace(PAID, status=status, amount_refunded_in_cents=amount, refund_count=count, refund_statuses=statuses)


def disputed(amount: int, status: str = "disputed", **statuses: str) -> PaymentState:
    count = len(statuses)
    return replace(PAID, status=status, amount_disputed_in_cents=amount, dispute_count=count, dispute_statuses=statuses)


CASES: dict[str, tuple[Any, Any, list[str]]] = {
    "made": (CREATING, NEW, ["created"]),
    "made and paid at once": (CREATING, PAID, ["created", "succeeded"]),
    "restarted": (replace(CREATING, status="rejected"), NEW, ["created"]),
    "nothing that apps see": (NEW, replace(NEW, stripe_charge_id="ch_1"), []),
    "a status without a type": (NEW, replace(NEW, status="requires_confirmation"), []),
    **{status: (NEW, replace(NEW, status=status), [status]) for status in
       ("processing", "requires_action", "requires_capture", "failed", "canceled", "expired")},
    "pending": (NEW, replace(NEW, status="pending"), ["processing"]),
    "another failed try": (
        replace(NEW, status="failed", failure_count=1), replace(NEW, status="failed", failure_count=2), [],
    ),
    "paid": (NEW, PAID, ["succeeded"]),
    "free": (NEW, FREE, ["succeeded"]),
    "paid by another intent as well": (PAID, replace(PAID, amount_received_in_cents=3000), ["succeeded"]),
    "a failure after a success": (PAID, replace(PAID, failure_count=1), []),
    "paid and given back at once": (NEW, refunded(2000, re_1="succeeded"), ["succeeded", "refunded"]),
    "refund asked for": (PAID, refunded(500, re_1="pending"), ["refunded"]),
    "refund succeeds": (refunded(500, re_1="pending"), refunded(500, re_1="succeeded"), []),
    "another refund": (refunded(500, re_1="succeeded"), refunded(800, re_1="succeeded", re_2="pending"), ["refunded"]),
    "refund fails": (refunded(500, re_1="succeeded"), refunded(0, re_1="failed"), ["refund_failed"]),
    "refund is canceled": (refunded(0, re_1="pending"), refunded(0, re_1="canceled"), ["refund_failed"]),
    "one comes back as another goes": (
        refunded(500, re_1="succeeded"), refunded(500, re_1="failed", re_2="pending"), ["refunded", "refund_failed"],
    ),
    "disputed": (PAID, disputed(2000, dp_1="needs_response"), ["disputed"]),
    "asked about": (PAID, disputed(0, dp_1="warning_needs_response"), ["disputed"]),
    "an inquiry becomes a dispute": (
        disputed(0, dp_1="warning_needs_response"), disputed(2000, dp_1="needs_response"), ["disputed"],
    ),
    "a dispute goes on": (disputed(2000, dp_1="needs_response"), disputed(2000, dp_1="under_review"), []),
    "lost": (disputed(2000, dp_1="under_review"), disputed(2000, dp_1="lost"), ["dispute_closed"]),
    "won": (disputed(2000, dp_1="under_review"), disputed(0, "succeeded", dp_1="won"), ["dispute_closed"]),
    "opened again": (disputed(0, "succeeded", dp_1="won"), disputed(2000, dp_1="needs_response"), ["disputed"]),
    "one closes as another opens": (
        disputed(2000, dp_1="under_review"), disputed(2000, dp_1="won", dp_2="needs_response"),
        ["disputed", "dispute_closed"],
    ),
    "first heard of when it is over": (PAID, disputed(0, "succeeded", dp_1="won"), ["disputed", "dispute_closed"]),
    "a row of a former release learns its refunds": (
        replace(refunded(500, re_1="succeeded"), refund_statuses={}), refunded(500, re_1="succeeded"), [],
    ),
    "a row of a former release has a refund fail": (
        replace(refunded(500, re_1="succeeded"), refund_statuses={}), refunded(0, re_1="failed"), ["refund_failed"],
    ),
}  # fmt: skip


def row(state: PaymentState) -> Any:
    return SimpleNamespace(**asdict(state))


class TestTypesOfChange:
    @pytest.mark.parametrize(("before", "after", "types"), CASES.values(), ids=CASES)
    def test_it_tells_each_change_that_apps_see(
        self, before: PaymentState, after: PaymentState, types: list[str]
    ) -> None:
        assert types_of_change(row(before), after) == [f"payment.{each}" for each in types]

    @pytest.mark.parametrize("state", {id(each): each for case in CASES.values() for each in case[:2]}.values())
    def test_it_tells_nothing_where_nothing_has_changed(self, state: PaymentState) -> None:
        assert types_of_change(row(state), state) == []


class TestDataOfChange:
    def test_it_shows_the_state_that_is_told_and_what_was_another(self) -> None:
        data = data_of_change(row(PAID), refunded(500, re_1="succeeded"))

        assert data["payment"]["status"] == "partially_refunded"
        assert data["previous"] == {
            "status": "succeeded",
            "amount_refunded_in_cents": 0,
            "amount_returned_in_cents": 0,
        }
