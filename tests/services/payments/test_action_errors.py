"""What goes wrong with a refund, a capture or a cancel over HTTP: what is heard, what is kept, what a retry does."""

from typing import Any

import pytest
import requests
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from app.services.kinds import KINDS
from app.services.operations.recovery import recover_operations
from tests.factories import intent
from tests.services.payments.conftest import Actor, Json, state_of
from tests.stand_ins import StandIns
from tests.webhooks import deliver, event

STRIPE_KEY = "sk_test_sandbox_shop"
WEEK_SECONDS = 7 * 24 * 3600
# Of each: how its payment begins, the path at Stripe, what the stand-in calls it, and the status that it ends in.
ACTIONS = {
    "refund": ("pay", "automatic", "/v1/refunds$", "refund.create", "refunded"),
    "capture": ("authorize", "manual", "/capture$", "payment_intent.capture", "succeeded"),
    "cancel": (None, "automatic", "/cancel$", "payment_intent.cancel", "canceled"),
}


def payment_for(actor: Actor, action: str) -> Json:
    """A payment with which the action is possible, and of which everything was heard."""
    begins, capture_method, *_ = ACTIONS[action]
    payment = actor.intent(begins, captureMethod=capture_method)
    actor.hear()
    return payment


def told(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json.get("code", "done")


def asked(stand_ins: StandIns, action: str) -> list[str]:
    """The idempotency keys under which Stripe was asked to do it."""
    path = ACTIONS[action][2].strip("$")
    return [entry["idempotencyKey"] for entry in stand_ins.ledger("stripe") if entry["path"].endswith(path)]


class TestRefusals:
    """Whether a retry under the same key is given the refusal again, or tries anew."""

    @pytest.mark.parametrize(
        ("action", "status", "error", "code", "is_kept"),
        [
            ("refund", 400, {"code": "charge_already_refunded"}, "charge_already_refunded", True),
            ("refund", 400, {"code": "charge_disputed"}, "charge_disputed", True),
            ("refund", 400, {"param": "amount"}, "amount_too_large", True),
            ("capture", 400, {"param": "amount_to_capture"}, "amount_too_large", True),
            ("capture", 400, {"code": "charge_expired_for_capture"}, "charge_expired_for_capture", True),
            ("capture", 402, {"code": "card_declined"}, "card_declined", True),
            ("cancel", 400, {}, "invalid_request", True),
            ("cancel", 404, {"code": "resource_missing"}, "resource_missing", True),
            ("refund", 400, {"code": "balance_insufficient"}, "balance_insufficient", False),
            ("capture", 401, {}, "stripe_key_refused", False),
            ("cancel", 429, {"code": "rate_limit"}, "stripe_rate_limited", False),
        ],
    )
    def test_it_is_kept_when_it_is_for_good(
        self, actor: Actor, stand_ins: StandIns, action: str, status: int, error: Json, code: str, is_kept: bool
    ) -> None:
        payment = payment_for(actor, action)
        body = {"error": {"message": "No.", "type": "invalid_request_error", **error}}
        stand_ins.fault("stripe", "json", method="POST", status=status, body=body, path=ACTIONS[action][2])

        first, again = actor.act(payment, action), actor.act(payment, action)

        assert told(first)[1] == code
        assert told(again) == (told(first) if is_kept else (200, "done"))
        assert stand_ins.effects().count(ACTIONS[action][3]) == (0 if is_kept else 1)
        (shown,) = actor.status(payment)["actions"]
        assert (shown["state"], shown["error"]) == (("refused", "No.") if is_kept else ("done", None))

    def test_a_charge_that_stays_locked_is_told_and_tried_again(self, actor: Actor, stand_ins: StandIns) -> None:
        payment = payment_for(actor, "refund")
        stand_ins.fault("stripe", "locked", path="/v1/refunds", times=3)

        locked, again = actor.act(payment, "refund"), actor.act(payment, "refund")

        assert (told(locked), locked.headers["Retry-After"]) == ((429, "stripe_rate_limited"), "1")
        assert told(again) == (200, "done")
        assert len(set(asked(stand_ins, "refund"))) == 1

    def test_a_balance_that_does_not_suffice_today_may_do_tomorrow(self, actor: Actor, stand_ins: StandIns) -> None:
        payment = payment_for(actor, "refund")
        stand_ins.control("accounts", key=STRIPE_KEY, available=1_999)
        today = [told(actor.act(payment, "refund")) for _ in range(2)]
        stand_ins.control("accounts", key=STRIPE_KEY, available=2_000)

        assert today == [(400, "balance_insufficient")] * 2
        assert told(actor.act(payment, "refund")) == (200, "done")
        assert [key.rpartition(":")[2] for key in asked(stand_ins, "refund")] == ["1", "2", "3"]

    @pytest.mark.parametrize("action", list(ACTIONS))
    def test_a_payment_that_was_rejected_has_nothing_to_act_on(
        self, actor: Actor, stand_ins: StandIns, db: Connection, action: str
    ) -> None:
        stand_ins.fault("stripe", "status", status=400, path="/v1/payment_intents")
        actor.client.post("/payment-intent/create", json=intent())
        payment = {"paymentId": db.execute(text("SELECT id::text FROM payments")).scalar_one()}

        assert told(actor.act(payment, action)) == (409, "payment_not_ready")
        assert db.execute(text("SELECT count(*) FROM operations")).scalar_one() == 1


class TestOutages:
    @pytest.fixture
    def environment(self, environment: dict[str, str]) -> dict[str, str]:
        """Every call asks for the key, and no answer of Stripe's is waited for longer than a second."""
        return environment | {"KEY_CACHE_SECONDS": "0", "STRIPE_TIMEOUT_SECONDS": "1"}

    @pytest.mark.parametrize("executed", [False, True])
    @pytest.mark.parametrize(
        ("action", "fault", "heard"),
        [
            ("refund", {"kind": "reset"}, (503, "upstream_unavailable")),
            ("refund", {"kind": "hang", "seconds": 2}, (504, "upstream_timeout")),
            ("capture", {"kind": "reset"}, (503, "upstream_unavailable")),
            ("capture", {"kind": "html"}, (502, "upstream_error")),
            ("cancel", {"kind": "reset"}, (503, "upstream_unavailable")),
        ],
    )
    def test_a_retry_goes_on_after_one_of_stripes(
        self, actor: Actor, stand_ins: StandIns, action: str, executed: bool, fault: Json, heard: tuple[int, str]
    ) -> None:
        payment = payment_for(actor, action)
        stand_ins.fault("stripe", method="POST", path=ACTIONS[action][2], executed=executed, **fault)

        assert told(actor.act(payment, action)) == heard
        assert actor.status(payment)["actions"][0]["state"] == "pending"
        assert told(actor.act(payment, action)) == (200, "done")
        assert stand_ins.effects().count(ACTIONS[action][3]) == 1
        assert len(set(asked(stand_ins, action))) == 1
        assert actor.status(payment)["payment"]["status"] == ACTIONS[action][4]

    @pytest.mark.parametrize("action", list(ACTIONS))
    def test_recovery_finds_what_was_done_behind_a_failure_that_stripe_repeats(
        self, actor: Actor, stand_ins: StandIns, services: Services, action: str
    ) -> None:
        payment = payment_for(actor, action)
        stand_ins.fault("stripe", "status", method="POST", path=ACTIONS[action][2], executed=True)

        assert [told(actor.act(payment, action)) for _ in range(2)] == [(502, "upstream_error")] * 2
        list(recover_operations(services, KINDS, command="flask recover", at_once=True))

        assert told(actor.act(payment, action)) == (200, "done")
        assert stand_ins.effects().count(ACTIONS[action][3]) == 1

    def test_a_retry_goes_on_after_one_of_key_service(self, actor: Actor, stand_ins: StandIns, db: Connection) -> None:
        payment = payment_for(actor, "refund")
        stand_ins.fault("key-service", "status", status=503, times=0)
        away = actor.act(payment, "refund")
        stand_ins.heal()

        assert told(away) == (503, "upstream_unavailable")
        assert "key-service" in away.json["error"]
        assert actor.status(payment)["actions"] == []
        assert told(actor.act(payment, "refund")) == (200, "done")

    def test_an_app_without_a_key_is_told_so(self, actor: Actor, stand_ins: StandIns) -> None:
        payment = payment_for(actor, "refund")
        stand_ins.control("keys", appId="shop", key=None)
        gone = actor.act(payment, "refund")
        stand_ins.control("keys", appId="shop", key=STRIPE_KEY)

        assert told(gone) == (400, "no_stripe_key")
        assert told(actor.act(payment, "refund")) == (200, "done")

    @pytest.mark.parametrize("action", list(ACTIONS))
    def test_the_key_of_another_account_does_nothing(self, actor: Actor, stand_ins: StandIns, action: str) -> None:
        payment = payment_for(actor, action)
        # Opened before the app is given its key, so that it isn't taken for a new key of the app's own account.
        requests.get(f"{stand_ins.url}/v1/refunds", auth=("sk_test_elsewhere", ""), timeout=10)
        stand_ins.control("keys", appId="shop", key="sk_test_elsewhere")

        assert told(actor.act(payment, action)) == (400, "resource_missing")
        assert ACTIONS[action][3] not in stand_ins.effects()


class TestRefundsOfAllKinds:
    @pytest.mark.parametrize("status", ["pending", "requires_action"])
    def test_one_that_is_under_way_counts_until_it_fails(self, actor: Actor, stand_ins: StandIns, status: str) -> None:
        """Fails when `_refunded` counts what has succeeded only: the webhook would change what the answer told."""
        payment = payment_for(actor, "refund")
        stand_ins.control("accounts", key=STRIPE_KEY, refundStatus=status)

        refund = actor.act(payment, "refund").json

        assert refund["status"] == status
        for _ in range(2):
            assert state_of(actor.status(payment)) == ("refunded", 2_000, 2_000, 2_000)
            actor.hear()
        stand_ins.control(f"refunds/{refund['refundId']}/fail")
        actor.hear()
        shown = actor.status(payment)
        assert state_of(shown) == ("succeeded", 2_000, 0, 0)
        assert [each["status"] for each in shown["events"]["refunds"]] == ["failed"]
        # What was done was done: the action tells what Stripe answered.
        assert [action["state"] for action in shown["actions"]] == ["done"]
        assert told(actor.act(payment, "refund", "again")) == (200, "done")

    def test_it_is_in_whole_units_of_a_currency_without_decimals(self, actor: Actor) -> None:
        payment = actor.intent("pay", currency="jpy")
        actor.hear()
        part = actor.act(payment, "refund", "a", amountInCents=500).json
        more = actor.act(payment, "refund", "b", amountInCents=1_501)
        rest = actor.act(payment, "refund", "c").json

        assert (part["amountInCents"], part["currency"], rest["amountInCents"]) == (500, "jpy", 1_500)
        assert told(more) == (400, "amount_too_large")
        assert "1,501 JPY" in more.json["error"]
        assert state_of(actor.status(payment)) == ("refunded", 2_000, 2_000, 2_000)

    @pytest.mark.parametrize("is_heard", [False, True])
    def test_a_free_payment_has_nothing_to_give_back(self, actor: Actor, client: FlaskClient, is_heard: bool) -> None:
        coupon = {"appId": "shop", "percentOff": 100, "duration": "once"}
        coupon_id = client.post("/coupons/create", json=coupon).json["couponId"]
        payment = actor.checkout("pay", discounts=[{"coupon": coupon_id}])
        if is_heard:
            actor.hear()
            assert state_of(actor.status(payment)) == ("succeeded", 0, 0, 0)

        assert told(actor.act(payment, "refund")) == (400, "nothing_to_refund")
        assert actor.status(payment)["actions"] == []

    def test_what_was_given_back_at_stripe_is_gone(self, actor: Actor, stand_ins: StandIns) -> None:
        """We hear of neither refund that is made in Stripe's dashboard before our own is asked for."""
        payment = payment_for(actor, "refund")
        stand_ins.control(f"charges/{payment['paymentIntentId']}/refund", amount=1_500)
        more, rest = actor.act(payment, "refund", "a", amountInCents=600), actor.act(payment, "refund", "b")
        actor.hear()

        assert told(more) == (400, "amount_too_large")
        assert rest.json["amountInCents"] == 500
        assert state_of(actor.status(payment)) == ("refunded", 2_000, 2_000, 2_000)
        assert told(actor.act(payment, "refund", "c")) == (400, "charge_already_refunded")


class TestSeveralIntents:
    @pytest.fixture
    def payment(self, actor: Actor, stand_ins: StandIns) -> Json:
        """A first invoice of a subscription, of 2,000, that a second intent has paid 700 of besides."""
        payment = actor.checkout(
            "pay", mode="subscription", lineItems=[{"priceId": "price_sandbox_monthly", "quantity": 1}]
        )
        actor.hear()
        shown = actor.status(payment)["payment"]
        answer = requests.post(
            f"{stand_ins.url}/v1/payment_intents",
            data={"amount": 700, "currency": "usd"},
            auth=(STRIPE_KEY, ""),
            timeout=10,
        )
        second = answer.json()["id"]
        stand_ins.control(f"intents/{second}/pay")
        paid = {"type": "payment_intent", "payment_intent": second}
        told = {"id": "inpay_2", "object": "invoice_payment", "invoice": shown["stripeInvoiceId"], "payment": paid}
        assert deliver(actor.client, event("invoice_payment.paid", told)).status_code == 200
        actor.hear()
        return {**payment, "intents": [shown["stripePaymentIntentId"], second]}

    def test_the_caller_says_which(self, actor: Actor, payment: Json) -> None:
        first, second = payment["intents"]
        which = actor.act(payment, "refund", "a")
        foreign = actor.act(payment, "refund", "b", paymentIntentId="pi_of_nobody")
        named = actor.act(payment, "refund", "c", paymentIntentId=second)
        only_one_left = actor.act(payment, "refund", "d", amountInCents=100)

        assert told(which) == (400, "several_payment_intents")
        assert sorted(which.json["details"]["paymentIntentIds"]) == sorted([first, second])
        assert told(foreign) == (400, "invalid_request")
        assert list(foreign.json["details"]["fieldErrors"]) == ["paymentIntentId"]
        assert named.json["amountInCents"] == 700
        assert only_one_left.json["amountInCents"] == 100
        actor.hear()
        refunds = actor.status(payment)["events"]["refunds"]
        assert {refund["stripePaymentIntentId"]: refund["amountInCents"] for refund in refunds} == {
            first: 100, second: 700
        }  # fmt: skip

    def test_the_key_of_a_request_that_named_none_is_free_for_one_that_does(self, actor: Actor, payment: Json) -> None:
        """Nothing was accepted, so that the caller may correct the request."""
        assert told(actor.act(payment, "refund")) == (400, "several_payment_intents")
        assert told(actor.act(payment, "refund", paymentIntentId=payment["intents"][1])) == (200, "done")


class TestAuthorisations:
    def test_what_a_capture_leaves_is_no_refund(self, actor: Actor) -> None:
        payment = payment_for(actor, "capture")
        assert actor.act(payment, "capture", amountInCents=1_200).json["amountReceivedInCents"] == 1_200
        actor.hear()

        shown = actor.status(payment)
        assert state_of(shown) == ("succeeded", 1_200, 0, 0)
        assert shown["events"]["refunds"] == []
        assert told(actor.act(payment, "refund", "a", amountInCents=1_201)) == (400, "amount_too_large")
        assert actor.act(payment, "refund", "b").json["amountInCents"] == 1_200
        actor.hear()
        assert state_of(actor.status(payment)) == ("refunded", 1_200, 1_200, 1_200)

    @pytest.mark.parametrize("action", ["capture", "cancel"])
    def test_one_that_expired_is_canceled(self, actor: Actor, stand_ins: StandIns, action: str) -> None:
        payment = payment_for(actor, "capture")
        stand_ins.control("clock", advance=WEEK_SECONDS)

        answer = actor.act(payment, action)

        assert told(answer) == ((400, "charge_expired_for_capture") if action == "capture" else (200, "done"))
        actor.hear()
        shown = actor.status(payment)
        assert state_of(shown) == ("canceled", 0, 0, 0)
        assert shown["events"]["refunds"] == []

    def test_what_is_held_is_not_given_back(self, actor: Actor, stand_ins: StandIns) -> None:
        payment = payment_for(actor, "capture")
        answer = actor.act(payment, "refund")
        assert answer.status_code == 400
        assert "refund.create" not in stand_ins.effects()
