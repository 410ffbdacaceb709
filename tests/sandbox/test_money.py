"""The stand-in of Stripe where money is given back, taken or let go, driven by Stripe's own SDK."""

from typing import Any

import pytest
import stripe

from tests.sandbox.conftest import Sandbox

KEY = "sk_test_one"
WEEK_SECONDS = 7 * 24 * 3600


@pytest.fixture
def client(sandbox: Sandbox) -> Any:
    return sandbox.client(KEY)


def new_intent(client: Any, **changes: Any) -> str:
    """An intent of 500; the value is its id."""
    terms = {"amount": 500, "currency": "usd", "automatic_payment_methods": {"enabled": True}, **changes}
    return str(client.v1.payment_intents.create(terms).id)


def paid(client: Any, sandbox: Sandbox) -> str:
    intent_id = new_intent(client)
    sandbox.control(f"intents/{intent_id}/pay")
    return intent_id


def held(client: Any, sandbox: Sandbox) -> str:
    intent_id = new_intent(client, capture_method="manual")
    sandbox.control(f"intents/{intent_id}/authorize")
    return intent_id


def newest_types(client: Any, count: int) -> list[str]:
    """The types of the account's newest events, oldest first."""
    return [event.type for event in reversed(client.v1.events.list({"limit": count}).data)]


def refusal_of(call: Any, *arguments: Any) -> stripe.InvalidRequestError:
    with pytest.raises(stripe.InvalidRequestError) as refusal:
        call(*arguments)
    return refusal.value


class TestRefunds:
    @pytest.mark.parametrize(
        ("status", "booked"), [("succeeded", True), ("pending", False), ("requires_action", False)]
    )
    def test_they_begin_as_the_account_says(self, client: Any, sandbox: Sandbox, status: str, booked: bool) -> None:
        sandbox.control("accounts", key=KEY, refundStatus=status)
        refund = client.v1.refunds.create({"payment_intent": paid(client, sandbox)})

        assert (refund.status, refund.balance_transaction is not None) == (status, booked)
        assert client.v1.charges.retrieve(refund.charge).refunded is True
        if not booked:
            sandbox.control(f"refunds/{refund.id}/succeed")
            assert client.v1.refunds.retrieve(refund.id).balance_transaction is not None

    def test_they_are_paid_from_the_balance(self, client: Any, sandbox: Sandbox) -> None:
        sandbox.control("accounts", key=KEY, available=600)
        first, second = paid(client, sandbox), paid(client, sandbox)
        refund = client.v1.refunds.create({"payment_intent": first})
        refusals = [
            refusal_of(client.v1.refunds.create, {"payment_intent": second}, {"idempotency_key": "k"}) for _ in range(2)
        ]
        sandbox.control(f"refunds/{refund.id}/fail")

        assert {refusal.code for refusal in refusals} == {"balance_insufficient"}
        # Stripe has begun to execute it, so that its key can't be tried again.
        assert refusal_of(client.v1.refunds.create, {"payment_intent": second}, {"idempotency_key": "k"})
        assert client.v1.refunds.create({"payment_intent": second}).status == "succeeded"
        assert [entry["replayed"] for entry in sandbox.ledger("stripe")[-4:]] == [False, True, True, False]

    def test_more_than_is_left_is_refused(self, client: Any, sandbox: Sandbox) -> None:
        intent_id = paid(client, sandbox)
        client.v1.refunds.create({"payment_intent": intent_id, "amount": 400})
        more = refusal_of(client.v1.refunds.create, {"payment_intent": intent_id, "amount": 101})
        client.v1.refunds.create({"payment_intent": intent_id})
        none_left = refusal_of(client.v1.refunds.create, {"payment_intent": intent_id})

        assert (more.code, more.param) == (None, "amount")
        assert none_left.code == "charge_already_refunded"

    def test_a_disputed_charge_has_none(self, client: Any, sandbox: Sandbox) -> None:
        intent_id = paid(client, sandbox)
        sandbox.control(f"charges/{intent_id}/dispute")
        assert refusal_of(client.v1.refunds.create, {"payment_intent": intent_id}).code == "charge_disputed"


class TestCaptures:
    def test_what_is_left_is_released_and_shown_as_a_refund_without_a_transaction(
        self, client: Any, sandbox: Sandbox
    ) -> None:
        intent_id = held(client, sandbox)
        client.v1.payment_intents.capture(intent_id, {"amount_to_capture": 300})

        (release,) = client.v1.refunds.list({"payment_intent": intent_id}).data
        charge = client.v1.charges.retrieve(release.charge)
        assert (release.amount, release.status, release.balance_transaction) == (200, "succeeded", None)
        assert (charge.amount_captured, charge.amount_refunded, charge.refunded) == (300, 200, False)
        assert newest_types(client, 5) == [
            "charge.captured", "refund.created", "charge.refunded", "charge.updated", "payment_intent.succeeded"
        ]  # fmt: skip
        assert sandbox.call("POST", f"/_sandbox/refunds/{release.id}/fail").status_code == 400
        assert client.v1.refunds.create({"payment_intent": intent_id}).amount == 300

    def test_all_of_it_releases_nothing(self, client: Any, sandbox: Sandbox) -> None:
        intent_id = held(client, sandbox)
        client.v1.payment_intents.capture(intent_id)
        assert client.v1.refunds.list({"payment_intent": intent_id}).data == []

    def test_it_is_too_late_for_one_after_seven_days(self, client: Any, sandbox: Sandbox) -> None:
        intent_id = held(client, sandbox)
        sandbox.control("clock", advance=WEEK_SECONDS - 60)
        assert client.v1.payment_intents.retrieve(intent_id).status == "requires_capture"
        sandbox.control("clock", advance=61)

        intent = client.v1.payment_intents.retrieve(intent_id)
        assert (intent.status, intent.cancellation_reason) == ("canceled", "automatic")
        assert newest_types(client, 4) == [
            "refund.created", "charge.refunded", "charge.expired", "payment_intent.canceled"
        ]  # fmt: skip
        assert refusal_of(client.v1.payment_intents.capture, intent_id).code == "charge_expired_for_capture"

    def test_what_was_called_off_is_in_another_state(self, client: Any, sandbox: Sandbox) -> None:
        intent_id = held(client, sandbox)
        client.v1.payment_intents.cancel(intent_id)
        assert refusal_of(client.v1.payment_intents.capture, intent_id).code == "payment_intent_unexpected_state"


class TestPages:
    def test_they_offer_a_half_and_show_what_was_released(self, client: Any, sandbox: Sandbox) -> None:
        intent_id = held(client, sandbox)
        sandbox.call("POST", f"/actions/intents/{intent_id}/capture_half")
        charges, refunds = (sandbox.call("GET", f"/?table={name}").text for name in ("charges", "refunds"))
        (charge,) = client.v1.charges.list({"payment_intent": intent_id}).data
        sandbox.call("POST", f"/actions/charges/{charge.id}/refund_half")

        assert "2.50 USD captured" in charges
        assert "released, not refunded" in refunds
        assert [each.amount for each in client.v1.refunds.list({"payment_intent": intent_id}).data] == [125, 250]
        assert f"/actions/charges/{charge.id}/refund_half" in charges
