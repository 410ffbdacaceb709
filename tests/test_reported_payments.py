"""Payments that went wrong for others, told over the wire as Stripe tells them, with the right value of each."""

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.factories import checkout, intent
from tests.webhooks import deliver, event

AMOUNT = 5000
Shape = dict[str, Any]


class Told:
    """A payment, and what Stripe tells of it."""

    def __init__(self, client: FlaskClient, created: Shape) -> None:
        self.client = client
        self.payment_id = created["paymentId"]
        self.intent_id = created.get("paymentIntentId")
        self.session_id = created.get("sessionId")

    def tell(self, kind: str, shape: Shape, **fields: Any) -> None:
        assert deliver(self.client, event(kind, shape, **fields)).status_code == 200

    def tell_intent(self, kind: str, **fields: Any) -> None:
        shape = {"id": self.intent_id, "object": "payment_intent", "amount": AMOUNT, "currency": "usd"}
        self.tell(f"payment_intent.{kind}", shape | fields, created=fields.get("created"))

    def tell_charge(self, kind: str, **fields: Any) -> None:
        shape = {"id": "ch_1", "object": "charge", "amount": AMOUNT, "payment_intent": self.intent_id}
        self.tell(f"charge.{kind}", shape | {"currency": "usd", "status": "succeeded"} | fields)

    def tell_dispute(self, kind: str, status: str) -> None:
        shape = {"id": "du_1", "object": "dispute", "amount": AMOUNT, "charge": "ch_1", "status": status}
        self.tell(f"charge.dispute.{kind}", shape | {"payment_intent": self.intent_id, "currency": "usd"})

    def pay(self, received: int = AMOUNT, **fields: Any) -> None:
        self.tell_intent("succeeded", amount_received=received, status="succeeded", latest_charge="ch_1", **fields)

    def refund(self, amount: int, **fields: Any) -> Shape:
        shape = {"id": "re_1", "object": "refund", "amount": amount, "charge": "ch_1", "status": "succeeded"}
        return shape | {"payment_intent": self.intent_id, "currency": "usd"} | fields

    def status(self) -> Shape:
        answer: Shape = self.client.get(f"/status/{self.payment_id}").json
        return answer

    @property
    def money(self) -> tuple[Any, ...]:
        """Its status; what was received and refunded; and the net and what is disputed, as statistics have them."""
        payment, stats = self.status()["payment"], self.client.get("/stats?orgId=org_1").json
        (currency,) = stats["currencies"]
        received, refunded = payment["amountReceivedInCents"], payment["amountRefundedInCents"]
        return payment["status"], received, refunded, currency["netInCents"], currency["disputedInCents"]

    @property
    def failure_codes(self) -> list[str | None]:
        return [failure["failureCode"] for failure in self.status()["events"]["failures"]]


@pytest.fixture
def told(client: FlaskClient) -> Told:
    return Told(client, client.post("/payment-intent/create", json=intent(amountInCents=AMOUNT)).json)


@pytest.fixture
def subscribed(client: FlaskClient) -> Told:
    items = [{"priceId": "price_sandbox_monthly", "quantity": 1}]
    return Told(client, client.post("/checkout/create", json=checkout(mode="subscription", lineItems=items)).json)


class TestCaptures:
    def test_it_refunds_nothing_when_more_was_captured_than_authorised(self, told: Told) -> None:
        told.pay(6000)
        told.tell_charge("updated", amount_captured=6000, amount_refunded=0)

        assert told.money == ("succeeded", 6000, 0, 6000, 0)

    @pytest.mark.parametrize("told_by", ["a list", "an event of a refund", "both"])
    def test_it_refunds_nothing_when_a_part_was_captured_and_the_rest_released(self, told: Told, told_by: str) -> None:
        told.pay(3000)
        release = told.refund(2000, balance_transaction=None)
        listed = {"refunds": {"object": "list", "data": [release]}} if told_by != "an event of a refund" else {}
        told.tell_charge("refunded", amount_captured=3000, amount_refunded=2000, **listed)
        if told_by != "a list":
            told.tell("refund.created", release)

        assert told.money == ("succeeded", 3000, 0, 3000, 0)
        assert told.status()["events"]["refunds"] == []


class TestOldShapes:
    def test_it_finds_charge_and_receipt_in_the_list_of_an_intent(self, told: Told) -> None:
        """API version 2020-08-27: no `latest_charge`, and no event of the charge comes."""
        charges = [
            {"id": "ch_failed", "object": "charge", "status": "failed", "receipt_url": None},
            {"id": "ch_1", "object": "charge", "status": "succeeded", "receipt_url": "https://pay.stripe.test/r"},
        ]
        listed = {"object": "list", "data": charges}
        told.tell_intent("succeeded", amount_received=AMOUNT, status="succeeded", charges=listed)

        (success,) = told.status()["events"]["successes"]
        assert (success["stripeChargeId"], success["receiptUrl"]) == ("ch_1", "https://pay.stripe.test/r")


class TestDisputes:
    def test_it_is_refunded_when_a_full_refund_has_ended_an_inquiry(self, told: Told) -> None:
        told.pay()
        told.tell_dispute("created", "warning_needs_response")
        told.tell("refund.created", told.refund(AMOUNT, balance_transaction="txn_1"))
        told.tell_dispute("closed", "charge_refunded")

        assert told.money == ("refunded", AMOUNT, AMOUNT, 0, 0)

    def test_it_withdraws_nothing_when_the_bank_only_asks(self, told: Told) -> None:
        told.pay()
        told.tell_dispute("created", "warning_needs_response")

        assert told.money == ("disputed", AMOUNT, 0, AMOUNT, 0)


class TestFailures:
    def test_it_counts_one_try_when_two_events_of_a_second_tell_it(self, told: Told, client: FlaskClient) -> None:
        error = {"type": "card_error", "code": "payment_intent_authentication_failure"}
        for _ in range(2):
            told.tell_intent("payment_failed", last_payment_error=error, created=1_700_000_000)

        assert told.failure_codes == ["payment_intent_authentication_failure"]
        assert client.get("/stats?orgId=org_1").json["failureCount"] == 1

    @pytest.mark.parametrize(
        "links",
        [
            lambda metadata: {"parent": {"subscription_details": {"subscription": "sub_1", "metadata": metadata}}},
            lambda metadata: {"subscription": "sub_1", "subscription_details": {"metadata": metadata}},
        ],
        ids=["2025-03-31", "2022-11-15"],
    )
    def test_it_shows_a_try_that_fails_on_a_subscriptions_page_and_is_then_paid(
        self, subscribed: Told, links: Callable[[Shape], Shape]
    ) -> None:
        invoice = {"id": "in_1", "object": "invoice", "billing_reason": "subscription_create", "attempt_count": 1}
        invoice |= links({"paymentId": subscribed.payment_id})
        subscribed.tell("invoice.payment_failed", invoice)
        assert subscribed.status()["payment"]["status"] == "failed"
        assert len(subscribed.failure_codes) == 1

        session = {"id": subscribed.session_id, "object": "checkout.session", "payment_status": "paid"}
        session |= {"subscription": "sub_1", "invoice": "in_1", "amount_total": 1500, "currency": "usd"}
        subscribed.tell("checkout.session.completed", session)
        subscribed.tell("invoice.paid", invoice | {"amount_paid": 1500})

        assert subscribed.money == ("succeeded", 1500, 0, 1500, 0)
        assert len(subscribed.failure_codes) == 1
