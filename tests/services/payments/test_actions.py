"""Refund, capture and cancel over HTTP: what Stripe does once, what the caller hears, and what `/status` shows then."""

from collections.abc import Callable

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from tests.factories import checkout, intent
from tests.services.payments.conftest import Actor, Json, state_of
from tests.stand_ins import StandIns
from tests.webhooks import deliver, event, paid_intent

MONTHLY = [{"priceId": "price_sandbox_monthly", "quantity": 1}]


class TestRefund:
    def test_it_gives_all_back_and_shows_it_before_any_webhook(self, actor: Actor) -> None:
        payment = actor.intent("pay")
        actor.hear()
        answer = actor.act(payment, "refund", reason="duplicate", metadata={"ticket": "7"})

        assert answer.status_code == 200
        refund_id = answer.json["refundId"]
        assert answer.json == {
            "success": True, "paymentId": payment["paymentId"], "refundId": refund_id, "amountInCents": 2000,
            "currency": "usd", "status": "succeeded",
        }  # fmt: skip
        shown = actor.status(payment)
        assert state_of(shown) == ("refunded", 2000, 2000, 2000)
        (action,) = shown["actions"]
        assert {name: action[name] for name in action if name not in ("id", "createdAt")} == {
            "kind": "refund", "amountInCents": 2000, "refundId": refund_id, "reason": "duplicate",
            "metadata": {"ticket": "7"}, "state": "done", "error": None,
        }  # fmt: skip
        actor.hear()
        assert actor.status(payment)["payment"] == shown["payment"]
        assert [refund["id"] for refund in actor.status(payment)["events"]["refunds"]] == [refund_id]

    def test_it_gives_parts_back_until_stripe_says_that_nothing_is_left(self, actor: Actor) -> None:
        payment = actor.checkout("pay", lineItems=[{"priceId": "price_sandbox", "quantity": 1}])
        answers = [actor.act(payment, "refund", key, amountInCents=800) for key in ("a", "b", "c")]

        assert [answer.status_code for answer in answers] == [200, 200, 400]
        assert answers[2].json["code"] == "amount_too_large"
        assert "is greater than unrefunded amount" in answers[2].json["error"]
        assert [action["state"] for action in actor.status(payment)["actions"]] == ["done", "done", "refused"]
        actor.hear()
        assert state_of(actor.status(payment)) == ("partially_refunded", 2000, 1600, 1600)

    def test_it_gives_the_first_answer_again_under_its_key(self, actor: Actor, stand_ins: StandIns) -> None:
        payment = actor.intent("pay")
        first, second = (actor.act(payment, "refund", amountInCents=500).json for _ in range(2))

        assert first == second
        assert stand_ins.effects().count("refund.create") == 1

    def test_it_needs_a_key(self, actor: Actor) -> None:
        answer = actor.act(actor.intent("pay"), "refund", key=None)
        assert (answer.status_code, answer.json["code"]) == (400, "idempotency_key_required")

    def test_a_key_is_one_requests(self, actor: Actor, client: FlaskClient) -> None:
        client.post("/payment-intent/create", json=intent(), headers={"Idempotency-Key": "key"})
        payment, other = actor.intent("pay"), actor.intent("pay")

        assert actor.act(payment, "refund").status_code == 422
        assert actor.act(payment, "refund", "mine").status_code == 200
        assert actor.act(other, "refund", "mine").status_code == 422
        assert actor.act(payment, "refund", "mine", amountInCents=5).status_code == 422

    @pytest.mark.parametrize(
        ("app_id", "payment_id"), [("other", None), ("shop", "nope"), ("shop", "00000000-0000-0000-0000-000000000000")]
    )
    def test_no_payment_but_the_apps_own_is_found(self, actor: Actor, app_id: str, payment_id: str | None) -> None:
        payment = actor.intent("pay") if payment_id is None else {"paymentId": payment_id}
        answer = actor.act(payment, "refund", appId=app_id)
        assert (answer.status_code, answer.json["error"]) == (404, "Payment not found")

    def test_it_waits_for_stripe_to_have_the_payment(self, actor: Actor, stand_ins: StandIns, db: Connection) -> None:
        stand_ins.fault("stripe", "status", status=400, path="/v1/payment_intents")
        actor.client.post("/payment-intent/create", json=intent())
        payment = {"paymentId": db.execute(text("SELECT id::text FROM payments")).scalar_one()}

        answer = actor.act(payment, "refund")

        assert (answer.status_code, answer.json["code"]) == (409, "payment_not_ready")

    @pytest.mark.parametrize("action", [None, "expire"])
    def test_it_refuses_where_nothing_was_received(self, actor: Actor, action: str | None) -> None:
        answer = actor.act(actor.checkout(action), "refund")
        assert (answer.status_code, answer.json["code"]) == (400, "nothing_to_refund")

    def test_a_refusal_that_passes_is_tried_again_under_its_key(self, actor: Actor, stand_ins: StandIns) -> None:
        payment = actor.intent("pay")
        error = {"code": "balance_insufficient", "message": "Insufficient funds.", "type": "invalid_request_error"}
        stand_ins.fault("stripe", "json", method="POST", status=400, body={"error": error}, path="/v1/refunds")

        today, shown = actor.act(payment, "refund"), actor.status(payment)["actions"]
        tomorrow = actor.act(payment, "refund")

        assert (today.status_code, today.json["code"]) == (400, "balance_insufficient")
        assert [(action["state"], action["error"]) for action in shown] == [("refused", "Insufficient funds.")]
        assert tomorrow.status_code == 200
        assert [action["state"] for action in actor.status(payment)["actions"]] == ["done"]
        keys = [entry["idempotencyKey"] for entry in stand_ins.ledger("stripe") if entry["path"] == "/v1/refunds"]
        assert [key.rpartition(":")[2] for key in keys] == ["1", "2"]

    def test_one_that_is_pending_counts_at_once_and_no_more_when_it_fails(
        self, actor: Actor, stand_ins: StandIns
    ) -> None:
        """Fails when what the answer says and what the charge says later are counted by different rules."""
        stand_ins.control("accounts", key="sk_test_sandbox_shop", refundStatus="pending")
        payment = actor.intent("pay")
        actor.hear()
        made = actor.act(payment, "refund").json
        answered = state_of(actor.status(payment))
        actor.hear()

        assert made["status"] == "pending"
        assert answered == state_of(actor.status(payment)) == ("refunded", 2000, 2000, 2000)
        stand_ins.control(f"refunds/{made['refundId']}/fail")
        actor.hear()
        assert state_of(actor.status(payment)) == ("succeeded", 2000, 0, 0)

    def test_a_free_checkout_has_nothing_to_refund(
        self, actor: Actor, stand_ins: StandIns, client: FlaskClient
    ) -> None:
        coupon = {"appId": "shop", "percentOff": 100, "duration": "once", "id": "FREE"}
        assert client.post("/coupons/create", json=coupon).status_code == 200
        payment = actor.checkout("pay", discounts=[{"coupon": "FREE"}])
        actor.hear()
        assert actor.status(payment)["payment"]["status"] == "succeeded"
        assert actor.act(payment, "refund").json["code"] == "nothing_to_refund"

    def test_a_currency_without_decimals_is_refunded_in_its_own_unit(self, actor: Actor) -> None:
        payment = actor.intent("pay", currency="jpy", amountInCents=5000)
        answer = actor.act(payment, "refund", amountInCents=4999).json
        assert (answer["amountInCents"], answer["currency"]) == (4999, "jpy")
        refused = actor.act(payment, "refund", "again", amountInCents=2)
        assert (refused.status_code, refused.json["code"]) == (400, "amount_too_large")

    def test_it_asks_which_of_several_intents_where_more_than_one_has_money_left(self, actor: Actor) -> None:
        """Two intents have paid the invoice of a subscription."""
        made = actor.client.post("/checkout/create", json=checkout(mode="subscription", lineItems=MONTHLY)).json
        links = {"subscription": "sub_1", "invoice": "in_1", "payment_status": "paid", "amount_total": 4000}
        session = {"id": made["sessionId"], "object": "checkout.session", "currency": "usd", **links}
        deliver(actor.client, event("checkout.session.completed", session))
        for intent_id in ("pi_first", "pi_second"):
            paying = {"id": f"inpay_{intent_id}", "object": "invoice_payment", "invoice": "in_1"}
            by = {"type": "payment_intent", "payment_intent": intent_id}
            deliver(actor.client, event("invoice_payment.paid", {**paying, "payment": by}))
            deliver(actor.client, event("payment_intent.succeeded", paid_intent(intent_id, currency="usd")))

        several = actor.act(made, "refund")
        assert (several.status_code, several.json["code"]) == (400, "several_payment_intents")
        assert sorted(several.json["details"]["paymentIntentIds"]) == ["pi_first", "pi_second"]
        # The stand-in knows neither: that it is asked about the one that was named is enough.
        named = actor.act(made, "refund", paymentIntentId="pi_second")
        assert (named.status_code, "pi_second" in named.json["error"]) == (400, True)
        other = actor.act(made, "refund", "other", paymentIntentId="pi_of_another")
        assert list(other.json["details"]["fieldErrors"]) == ["paymentIntentId"]


class TestCapture:
    @pytest.mark.parametrize("amount", [None, 1500])
    def test_it_takes_what_is_held(self, actor: Actor, amount: int | None) -> None:
        payment = actor.intent("authorize", captureMethod="manual")
        actor.hear()
        assert actor.status(payment)["payment"]["status"] == "requires_capture"

        answer = actor.act(payment, "capture", **({} if amount is None else {"amountInCents": amount}))

        received = amount or 2000
        assert answer.json == {
            "success": True, "paymentId": payment["paymentId"], "status": "succeeded", "amountReceivedInCents": received
        }  # fmt: skip
        shown = actor.status(payment)
        assert state_of(shown) == ("succeeded", received, 0, 0)
        assert (shown["payment"]["captureMethod"], len(shown["events"]["successes"])) == ("manual", 1)
        actor.hear()
        assert state_of(actor.status(payment)) == ("succeeded", received, 0, 0)
        assert actor.act(payment, "refund", "back").json["amountInCents"] == received

    def test_it_takes_what_a_checkout_holds_though_no_webhook_came(self, actor: Actor) -> None:
        payment = actor.checkout("pay", captureMethod="manual")
        assert actor.act(payment, "capture").json["amountReceivedInCents"] == 4000
        actor.hear()
        assert state_of(actor.status(payment)) == ("succeeded", 4000, 0, 0)

    def test_what_is_captured_already_is_done(self, actor: Actor, stand_ins: StandIns) -> None:
        payment = actor.intent("authorize", captureMethod="manual")
        stand_ins.control(f"intents/{payment['paymentIntentId']}/capture", amount=1500)

        assert actor.act(payment, "capture", "a").json["amountReceivedInCents"] == 1500
        refused = actor.act(payment, "capture", "b", amountInCents=700)
        assert (refused.status_code, refused.json["code"]) == (400, "payment_intent_unexpected_state")

    def test_it_says_what_stripe_says(self, actor: Actor) -> None:
        held = actor.intent("authorize", captureMethod="manual")
        assert actor.act(held, "capture", amountInCents=2001).json["code"] == "amount_too_large"
        assert actor.act(actor.checkout(), "capture", "b").json["code"] == "payment_not_ready"

    def test_the_money_of_a_subscription_is_not_held(self, client: FlaskClient) -> None:
        answer = client.post("/checkout/create", json=checkout(mode="subscription", captureMethod="manual"))
        assert (answer.status_code, list(answer.json["details"]["fieldErrors"])) == (400, ["captureMethod"])


class TestCancel:
    def test_it_cancels_an_intent(self, actor: Actor) -> None:
        payment = actor.intent()
        answer = actor.act(payment, "cancel", reason="abandoned")

        assert answer.json == {"success": True, "paymentId": payment["paymentId"], "status": "canceled"}
        assert actor.status(payment)["payment"]["status"] == "canceled"
        assert [(a["kind"], a["reason"], a["state"]) for a in actor.status(payment)["actions"]] == [
            ("cancel", "abandoned", "done")
        ]

    @pytest.mark.parametrize("action", [None, "decline"])
    def test_it_lets_an_open_session_expire(self, actor: Actor, action: str | None) -> None:
        payment = actor.checkout(action)
        actor.hear()
        assert actor.act(payment, "cancel", reason="duplicate").json["status"] == "expired"
        assert actor.status(payment)["payment"]["status"] == "expired"
        assert actor.act(payment, "cancel", "again").json["status"] == "expired"

    def test_it_cancels_what_a_session_that_is_complete_holds(self, actor: Actor) -> None:
        payment = actor.checkout("pay", captureMethod="manual")
        assert actor.act(payment, "cancel").json["status"] == "canceled"
        actor.hear()
        assert state_of(actor.status(payment)) == ("canceled", 0, 0, 0)

    @pytest.mark.parametrize("kind", ["intent", "checkout"])
    def test_what_is_paid_is_not_canceled(self, actor: Actor, kind: str) -> None:
        make: Callable[[str], Json] = getattr(actor, kind)
        payment = make("pay")
        answer = actor.act(payment, "cancel")

        assert (answer.status_code, answer.json["code"]) == (400, "payment_intent_unexpected_state")
        actor.hear()
        assert actor.status(payment)["payment"]["status"] == "succeeded"


class TestByStripeId:
    def test_it_finds_a_payment_by_every_object_of_its_own(self, actor: Actor, client: FlaskClient) -> None:
        payment = actor.checkout("pay")
        actor.hear()
        refund_id = actor.act(payment, "refund", amountInCents=500).json["refundId"]
        shown = actor.status(payment)
        success = shown["events"]["successes"][0]
        ids = (payment["sessionId"], success["stripePaymentIntentId"], success["stripeChargeId"], refund_id)

        for stripe_id in ids:
            assert client.get(f"/status/by-stripe-id/{stripe_id}?appId=shop").json == shown
            assert client.get(f"/status/by-stripe-id/{stripe_id}?appId=other").status_code == 404
        assert client.get("/status/by-stripe-id/pi_none?appId=shop").json["error"] == "Payment not found"
        assert client.get(f"/status/by-stripe-id/{refund_id}").status_code == 400
