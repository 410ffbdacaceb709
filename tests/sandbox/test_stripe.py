"""The stand-in of Stripe, driven by Stripe's own SDK."""

from typing import Any

import pytest
import stripe

from tests.sandbox.conftest import Receiver, Sandbox

SESSION = {
    "mode": "payment",
    "line_items": [{"price": "price_sandbox", "quantity": 2}],
    "success_url": "http://localhost:3000/ok?session={CHECKOUT_SESSION_ID}",
    "cancel_url": "http://localhost:3000/cancelled",
    "metadata": {"order": "7"},
    "payment_intent_data": {"metadata": {"paymentId": "p-1"}},
}
SUBSCRIPTION: dict[str, Any] = {
    "mode": "subscription",
    "line_items": [{"price": "price_sandbox_monthly", "quantity": 1}],
    "success_url": "http://localhost:3000/ok",
    "subscription_data": {"metadata": {"paymentId": "p-2"}},
}
NO_REDIRECTS = {"enabled": True, "allow_redirects": "never"}
INTENT = {"amount": 500, "currency": "usd", "automatic_payment_methods": NO_REDIRECTS}


def event_types(client: Any) -> list[str]:
    """The types of the account's events, oldest first."""
    return [event.type for event in reversed(client.v1.events.list({"limit": 100}).data)]


class TestCheckoutSessions:
    def test_it_has_no_intent_and_the_right_total_until_it_is_paid(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        coupon = client.v1.coupons.create({"percent_off": 12.5, "duration": "once"})

        session = client.v1.checkout.sessions.create({**SESSION, "discounts": [{"coupon": coupon.id}]})

        assert (session.status, session.payment_status, session.payment_intent) == ("open", "unpaid", None)
        assert (session.amount_subtotal, session.amount_total) == (4000, 3500)
        assert session.id.startswith("cs_test_")
        assert session.url == f"{sandbox.url}/pay/{session.id}"
        assert event_types(client) == ["coupon.created"]

    def test_it_is_paid_with_the_metadata_of_its_intent_data_only(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        created = client.v1.checkout.sessions.create(SESSION)

        sandbox.control(f"checkout/{created.id}/pay")

        session = client.v1.checkout.sessions.retrieve(created.id, {"expand": ["payment_intent.latest_charge"]})
        intent = session.payment_intent
        assert (session.status, session.payment_status, session.url) == ("complete", "paid", None)
        assert (intent.status, intent.amount_received) == ("succeeded", 4000)
        assert intent.metadata.to_dict() == intent.latest_charge.metadata.to_dict() == {"paymentId": "p-1"}
        assert event_types(client) == [
            "payment_intent.created",
            "charge.succeeded",
            "charge.updated",
            "payment_intent.succeeded",
            "checkout.session.completed",
        ]
        assert [found.id for found in client.v1.checkout.sessions.list({"payment_intent": intent.id})] == [session.id]

    def test_it_stays_open_when_the_card_is_declined(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        session = client.v1.checkout.sessions.create(SESSION)

        sandbox.control(f"checkout/{session.id}/decline")

        assert client.v1.checkout.sessions.retrieve(session.id).status == "open"
        assert event_types(client)[-2:] == ["charge.failed", "payment_intent.payment_failed"]
        assert sandbox.control(f"checkout/{session.id}/pay")["payment_status"] == "paid"
        assert len(client.v1.payment_intents.list().data) == 1

    @pytest.mark.parametrize(("end", "status"), [("settle", "paid"), ("fail_later", "unpaid")])
    def test_it_ends_later_when_the_method_is_delayed(self, sandbox: Sandbox, end: str, status: str) -> None:
        client = sandbox.client()
        session = client.v1.checkout.sessions.create(SESSION)
        assert sandbox.control(f"checkout/{session.id}/pay_later")["payment_status"] == "unpaid"
        assert event_types(client)[-1] == "checkout.session.completed"

        assert sandbox.control(f"checkout/{session.id}/{end}")["payment_status"] == status

        outcome = "succeeded" if status == "paid" else "failed"
        assert event_types(client)[-1] == f"checkout.session.async_payment_{outcome}"

    def test_it_expires_by_the_clock_of_the_sandbox(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        session = client.v1.checkout.sessions.create(SESSION)

        sandbox.control("clock", advance=24 * 3600 + 1)

        assert client.v1.checkout.sessions.retrieve(session.id).status == "expired"
        assert event_types(client) == ["checkout.session.expired"]
        assert sandbox.call("POST", f"/_sandbox/checkout/{session.id}/pay").status_code == 400

    def test_it_makes_a_subscription_whose_first_invoice_carries_its_metadata(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        created = client.v1.checkout.sessions.create(SUBSCRIPTION)

        session = sandbox.control(f"checkout/{created.id}/pay")

        assert session["payment_intent"] is None
        invoice = client.v1.invoices.retrieve(session["invoice"])
        assert (invoice.billing_reason, invoice.amount_paid) == ("subscription_create", 2000)
        details = invoice.parent.subscription_details
        assert (details.subscription, details.metadata.to_dict()) == (session["subscription"], {"paymentId": "p-2"})
        payment = client.v1.invoice_payments.list({"invoice": invoice.id}).data[0].payment
        assert client.v1.payment_intents.retrieve(payment.payment_intent).metadata.to_dict() == {}
        assert {"invoice.paid", "invoice_payment.paid", "customer.subscription.created"} <= set(event_types(client))

    def test_its_subscription_is_past_due_when_a_renewal_fails(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        created = client.v1.checkout.sessions.create(SUBSCRIPTION)
        subscription = sandbox.control(f"checkout/{created.id}/pay")["subscription"]

        assert sandbox.control(f"subscriptions/{subscription}/renew")["status"] == "active"
        assert sandbox.control(f"subscriptions/{subscription}/renew", fail=True)["status"] == "past_due"

        invoices = client.v1.invoices.list({"subscription": subscription}).data
        assert [(invoice.billing_reason, invoice.status) for invoice in invoices] == [
            ("subscription_cycle", "open"),
            ("subscription_cycle", "paid"),
            ("subscription_create", "paid"),
        ]

    def test_its_coupon_for_once_reduces_the_first_invoice_only(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        coupon = client.v1.coupons.create({"amount_off": 500, "currency": "usd", "duration": "once"})
        created = client.v1.checkout.sessions.create({**SUBSCRIPTION, "discounts": [{"coupon": coupon.id}]})
        subscription = sandbox.control(f"checkout/{created.id}/pay")["subscription"]

        sandbox.control(f"subscriptions/{subscription}/renew")

        invoices = client.v1.invoices.list({"subscription": subscription, "expand": ["data.discounts"]}).data
        assert [invoice.amount_paid for invoice in invoices] == [2000, 1500]
        assert invoices[1].discounts[0].source.coupon == coupon.id
        assert client.v1.coupons.retrieve(coupon.id).times_redeemed == 1

    @pytest.mark.parametrize(
        ("changes", "param", "message"),
        [
            ({"line_items": [{"price": "price_1", "quantity": 1}]}, "line_items[0][price]", "No such price: 'price_1'"),
            ({"line_items": SUBSCRIPTION["line_items"]}, "line_items", "recurring price"),
            ({"mode": "pay"}, "mode", "must be one of payment, setup, or subscription"),
            ({"discounts": [{"coupon": "none"}]}, "discounts[0][coupon]", "No such coupon: 'none'"),
            ({"customer": "cus_1"}, "customer", "No such customer: 'cus_1'"),
        ],
    )
    def test_it_is_refused_when_a_part_is_wrong(
        self, sandbox: Sandbox, changes: dict[str, Any], param: str, message: str
    ) -> None:
        with pytest.raises(stripe.InvalidRequestError, match=message.replace("(", "[(]")) as refusal:
            sandbox.client().v1.checkout.sessions.create({**SESSION, **changes})
        assert (refusal.value.param, refusal.value.http_status) == (param, 400)


class TestPaymentIntents:
    def test_it_lives_from_decline_through_capture_to_refund(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        intent = client.v1.payment_intents.create({**INTENT, "capture_method": "manual", "metadata": {"a": "b"}})
        assert (intent.status, intent.last_payment_error, intent.latest_charge) == (
            "requires_payment_method",
            None,
            None,
        )
        with pytest.raises(stripe.CardError, match="declined") as decline:
            client.v1.payment_intents.confirm(intent.id, {"payment_method": "pm_card_chargeDeclined"})
        assert decline.value.code == "card_declined"
        failed = client.v1.payment_intents.retrieve(intent.id)
        assert (failed.status, failed.last_payment_error.code) == ("requires_payment_method", "card_declined")

        held = client.v1.payment_intents.confirm(intent.id, {"payment_method": "pm_card_visa"})
        assert (held.status, held.amount_capturable) == ("requires_capture", 500)
        captured = client.v1.payment_intents.capture(intent.id, {"amount_to_capture": 300})
        assert (captured.status, captured.amount_received) == ("succeeded", 300)
        refund = client.v1.refunds.create({"payment_intent": intent.id, "amount": 100})

        charge = client.v1.charges.retrieve(refund.charge)
        assert (charge.amount_captured, charge.amount_refunded, charge.refunded) == (300, 300, False)
        assert charge.metadata.to_dict() == {"a": "b"}
        assert refund.metadata.to_dict() == {}

    def test_it_requires_action_when_the_card_does(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        intent = client.v1.payment_intents.create(
            {**INTENT, "confirm": True, "payment_method": "pm_card_authenticationRequired"}
        )
        assert intent.status == "requires_action"

        assert sandbox.control(f"intents/{intent.id}/pay")["status"] == "succeeded"
        with pytest.raises(stripe.InvalidRequestError, match="cannot cancel"):
            client.v1.payment_intents.cancel(intent.id)

    def test_its_refund_can_fail_after_it_succeeded(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        intent = client.v1.payment_intents.create(INTENT)
        sandbox.control(f"intents/{intent.id}/pay")
        refund = sandbox.control(f"charges/{intent.id}/refund", amount=200)

        assert sandbox.control(f"refunds/{refund['id']}/fail")["status"] == "failed"

        charge = client.v1.charges.list({"payment_intent": intent.id}).data[0]
        assert (charge.amount_refunded, charge.refunded) == (0, False)
        assert event_types(client)[-5:] == [
            "refund.created",
            "charge.refunded",
            "refund.failed",
            "refund.updated",
            "charge.refund.updated",
        ]

    @pytest.mark.parametrize(
        ("warning", "end", "status", "types"),
        [
            (False, "win", "won", ["created", "funds_withdrawn", "updated", "closed", "funds_reinstated"]),
            (False, "lose", "lost", ["created", "funds_withdrawn", "closed"]),
            (False, "prevent", "prevented", ["created", "funds_withdrawn", "closed", "funds_reinstated"]),
            (True, "close_warning", "warning_closed", ["created", "closed"]),
        ],
    )
    def test_its_dispute_ends(self, sandbox: Sandbox, warning: bool, end: str, status: str, types: list[str]) -> None:
        client = sandbox.client()
        intent = client.v1.payment_intents.create(INTENT)
        sandbox.control(f"intents/{intent.id}/pay")
        dispute = sandbox.control(f"charges/{intent.id}/dispute", warning=warning)

        assert sandbox.control(f"disputes/{dispute['id']}/{end}")["status"] == status

        found = [each for each in event_types(client) if each.startswith("charge.dispute.")]
        assert found == [f"charge.dispute.{each}" for each in types]
        assert client.v1.disputes.list({"payment_intent": intent.id}).data[0].status == status


class TestParameters:
    @pytest.mark.parametrize(
        ("changes", "code", "param"),
        [
            ({"amont": 5}, "parameter_unknown", "amont"),
            (
                {"automatic_payment_methods": {"enabeld": "true"}},
                "parameter_unknown",
                "automatic_payment_methods[enabeld]",
            ),
            ({"amount": "five"}, "parameter_invalid_integer", "amount"),
            ({"amount": 0}, "parameter_invalid_integer", "amount"),
            ({"amount": 100_000_000}, "amount_too_large", "amount"),
            ({"currency": "zzz"}, None, "currency"),
            ({"description": ""}, "parameter_invalid_empty", "description"),
            ({"capture_method": "later"}, None, "capture_method"),
            ({"metadata": {"k" * 41: "v"}}, None, "metadata"),
        ],
    )
    def test_they_are_refused_as_stripe_does(
        self, sandbox: Sandbox, changes: dict[str, Any], code: str | None, param: str
    ) -> None:
        with pytest.raises(stripe.InvalidRequestError) as refusal:
            sandbox.client().v1.payment_intents.create({**INTENT, **changes})
        assert (refusal.value.code, refusal.value.param, refusal.value.http_status) == (code, param, 400)
        assert sandbox.read("state")["accounts"].popitem()[1]["objects"]["payment_intent"] == []

    def test_a_missing_one_is_named(self, sandbox: Sandbox) -> None:
        answer = sandbox.call("POST", "/v1/payment_intents", data={"amount": 5}, auth=("sk_test_one", ""))
        assert answer.json()["error"]["code"] == "parameter_missing"
        assert answer.json()["error"]["message"] == "Missing required param: currency."
        assert answer.headers["Request-Id"].startswith("req_")


class TestAmounts:
    @pytest.mark.parametrize(
        ("currency", "least", "sentence"),
        [
            ("usd", 50, "Amount must be at least $0.50 usd"),
            ("gbp", 30, "Amount must be at least £0.30 gbp"),
            ("jpy", 50, "Amount must be at least ¥50 jpy"),
            ("mxn", 1000, "Amount must be at least $10.00 mxn"),
            ("czk", 1500, "Amount must be at least 15.00 czk"),
        ],
    )
    def test_an_intent_is_refused_when_it_is_below_the_minimum(
        self, sandbox: Sandbox, currency: str, least: int, sentence: str
    ) -> None:
        intents = sandbox.client().v1.payment_intents
        with pytest.raises(stripe.InvalidRequestError) as refusal:
            intents.create({"amount": least - 1, "currency": currency})
        assert (refusal.value.code, refusal.value.param) == ("amount_too_small", "amount")
        assert refusal.value.user_message == sentence
        assert intents.create({"amount": least, "currency": currency}).amount == least

    def test_an_intent_has_no_minimum_when_stripe_names_none(self, sandbox: Sandbox) -> None:
        assert sandbox.client().v1.payment_intents.create({"amount": 1, "currency": "isk"}).amount == 1

    def test_an_intent_may_have_twelve_digits_when_it_is_in_rupiahs(self, sandbox: Sandbox) -> None:
        intents = sandbox.client().v1.payment_intents
        assert intents.create({"amount": 999_999_999_999, "currency": "idr"}).amount == 999_999_999_999
        with pytest.raises(stripe.InvalidRequestError, match=r"no more than 9,999,999,999\.99"):
            intents.create({"amount": 1_000_000_000_000, "currency": "idr"})

    @pytest.mark.parametrize(
        ("amount", "quantity", "code", "sentence"),
        [
            (7, 7, "amount_too_small", "total amount due must add up to at least $0.50 usd"),
            (99_999_999, 2, "amount_too_large", "total amount due must be no more than $999,999.99."),
        ],
    )
    def test_a_session_is_refused_when_its_total_cant_be_charged(
        self, sandbox: Sandbox, amount: int, quantity: int, code: str, sentence: str
    ) -> None:
        priced = {"currency": "usd", "unit_amount": amount, "product_data": {"name": "Pin"}}
        client = sandbox.client()
        with pytest.raises(stripe.InvalidRequestError) as refusal:
            client.v1.checkout.sessions.create(
                {**SESSION, "line_items": [{"price_data": priced, "quantity": quantity}]}
            )
        assert refusal.value.code == code
        assert refusal.value.user_message == f"The Checkout Session's {sentence}"
        assert event_types(client) == []

    def test_a_session_is_checked_after_its_discount_and_may_come_to_nothing(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        nearly = client.v1.coupons.create({"percent_off": 99, "duration": "once"})
        wholly = client.v1.coupons.create({"percent_off": 100, "duration": "once"})
        with pytest.raises(stripe.InvalidRequestError, match="must add up to at least"):
            client.v1.checkout.sessions.create({**SESSION, "discounts": [{"coupon": nearly.id}]})
        assert client.v1.checkout.sessions.create({**SESSION, "discounts": [{"coupon": wholly.id}]}).amount_total == 0

    def test_a_part_may_be_below_the_minimum(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        intent = client.v1.payment_intents.create(INTENT)
        sandbox.control(f"intents/{intent.id}/pay")
        assert client.v1.refunds.create({"payment_intent": intent.id, "amount": 1}).amount == 1


class TestIdempotency:
    def test_the_first_answer_is_given_again_for_a_day(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        first = client.v1.payment_intents.create(INTENT, {"idempotency_key": "k"})
        again = client.v1.payment_intents.create(INTENT, {"idempotency_key": "k"})
        elsewhere = sandbox.client("sk_test_two").v1.payment_intents.create(INTENT, {"idempotency_key": "k"})
        sandbox.control("clock", advance=24 * 3600)
        later = client.v1.payment_intents.create(INTENT, {"idempotency_key": "k"})

        assert first.id == again.id
        assert len({first.id, elsewhere.id, later.id}) == 3
        assert [entry["replayed"] for entry in sandbox.ledger("stripe")] == [False, True, False, False]

    def test_another_request_with_the_same_key_is_an_error(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        client.v1.payment_intents.create(INTENT, {"idempotency_key": "k"})
        with pytest.raises(stripe.IdempotencyError, match="same parameters"):
            client.v1.payment_intents.create({**INTENT, "amount": 501}, {"idempotency_key": "k"})
        with pytest.raises(stripe.IdempotencyError, match="same endpoint"):
            client.v1.customers.create({}, {"idempotency_key": "k"})

    def test_a_decline_is_kept_and_a_refusal_is_not(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        declined = {**INTENT, "confirm": True, "payment_method": "pm_card_chargeDeclined"}
        for _ in range(2):
            with pytest.raises(stripe.CardError):
                client.v1.payment_intents.create(declined, {"idempotency_key": "declined"})
        assert len(client.v1.payment_intents.list().data) == 1

        with pytest.raises(stripe.InvalidRequestError):
            client.v1.payment_intents.create({**INTENT, "amount": 0}, {"idempotency_key": "refused"})
        assert client.v1.payment_intents.create(INTENT, {"idempotency_key": "refused"}).amount == 500


class TestLists:
    def test_pages_go_from_the_newest_to_the_oldest(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        made = [client.v1.payment_intents.create(INTENT).id for _ in range(5)]
        newest_first = made[::-1]

        first = client.v1.payment_intents.list({"limit": 2})
        assert ([found.id for found in first.data], first.has_more) == (newest_first[:2], True)
        before = client.v1.payment_intents.list({"limit": 2, "ending_before": newest_first[3]})
        assert ([found.id for found in before.data], before.has_more) == (newest_first[1:3], True)
        assert [found.id for found in first.auto_paging_iter()] == newest_first

    def test_events_are_filtered_and_gone_after_30_days(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        intent = client.v1.payment_intents.create(INTENT)
        sandbox.control(f"intents/{intent.id}/pay")
        wanted = {"types": ["payment_intent.created", "charge.succeeded"], "created": {"gte": intent.created}}

        found = client.v1.events.list(wanted)

        assert [event.type for event in found] == ["charge.succeeded", "payment_intent.created"]
        with pytest.raises(stripe.InvalidRequestError, match="20"):
            client.v1.events.list({"types": [f"a.{number}" for number in range(21)]})
        sandbox.control("clock", advance=30 * 24 * 3600)
        assert client.v1.events.list().data == []

    def test_an_unknown_id_is_missing(self, sandbox: Sandbox) -> None:
        with pytest.raises(stripe.InvalidRequestError, match="No such payment_intent: 'pi_1'") as refusal:
            sandbox.client().v1.payment_intents.retrieve("pi_1")
        assert (refusal.value.code, refusal.value.http_status) == ("resource_missing", 404)


class TestCatalog:
    def test_products_prices_and_coupons_are_created_once(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        product = client.v1.products.create({"name": "Mug", "id": "mug"})
        price = client.v1.prices.create(
            {"product": product.id, "currency": "eur", "unit_amount": 900, "recurring": {"interval": "year"}}
        )

        assert [found.id for found in client.v1.prices.list({"product": "mug", "active": True})] == [price.id]
        assert (price.type, price.recurring.interval_count) == ("recurring", 1)
        with pytest.raises(stripe.InvalidRequestError) as refusal:
            client.v1.products.create({"name": "Mug", "id": "mug"})
        assert refusal.value.code == "resource_already_exists"
        with pytest.raises(stripe.InvalidRequestError, match="exactly one"):
            client.v1.coupons.create({"duration": "once"})


class TestWebhooks:
    def test_they_are_signed_and_show_the_object_as_it_was(self, sandbox: Sandbox, receiver: Receiver) -> None:
        intent = sandbox.client().v1.payment_intents.create(INTENT)
        sandbox.control(f"intents/{intent.id}/pay")
        assert receiver.received.empty()

        assert sandbox.control("webhooks/release", order="forward")["released"] == 4

        created, *_, succeeded = receiver.events(4)
        assert (created.type, created.data.object["status"]) == ("payment_intent.created", "requires_payment_method")
        assert (succeeded.type, succeeded.data.object["status"]) == ("payment_intent.succeeded", "succeeded")
        assert created.api_version == stripe.api_version

    def test_they_are_released_in_any_order_any_number_of_times(self, sandbox: Sandbox, receiver: Receiver) -> None:
        made = [sandbox.client().v1.payment_intents.create(INTENT).id for _ in range(3)]

        sandbox.control("webhooks/release", order="reverse", copies=2)

        received = [event.data.object["id"] for event in receiver.events(6)]
        assert sorted(received) == sorted(made * 2)
        assert received[-3:] == made[::-1]

    def test_they_are_sent_again_until_they_are_taken(self, sandbox: Sandbox, receiver: Receiver) -> None:
        sandbox.control("webhooks", mode="deliver")
        receiver.answers.put(500)
        intent = sandbox.client().v1.payment_intents.create(INTENT)

        first, second = receiver.events(2)

        assert first.id == second.id
        assert second.data.object["id"] == intent.id
        assert [entry["status"] for entry in sandbox.ledger("webhook")][:1] == [500]

    def test_an_endpoint_gets_the_events_of_its_account_only(self, sandbox: Sandbox, receiver: Receiver) -> None:
        endpoint = {"url": receiver.url, "secret": "whsec_of_the_tests", "account": "sk_test_two"}
        sandbox.control("webhooks", mode="deliver", endpoints=[endpoint])
        sandbox.client("sk_test_one").v1.payment_intents.create(INTENT)
        mine = sandbox.client("sk_test_two").v1.payment_intents.create(INTENT)

        assert receiver.events(1)[0].data.object["id"] == mine.id
        assert receiver.received.empty()
