"""Charges without the customer, over HTTP: what is charged, what the caller hears, and what `/status` shows then."""

from typing import Any

import pytest
from sqlalchemy import Connection, text

from app.services import Services
from tests.books import assert_balanced, objects_of, recover_until_quiet
from tests.services.payments.conftest import APP_AND_ORG, CREATE_INTENT, Json, Payer, state_of
from tests.stand_ins import StandIns

# What is saved, and how it behaves from then on; what is charged without an invoice and with one.
DECLINES = [
    ("chargeCustomerFail", "card_declined", "new_payment_method"),
    ("chargeDeclinedInsufficientFunds", "card_declined", "retry_later"),
    ("chargeDeclinedProcessingError", "processing_error", "retry_later"),
    ("chargeDeclinedExpiredCard", "expired_card", "new_payment_method"),
    ("authenticationRequired", "authentication_required", "confirm_with_customer"),
    ("in", "card_declined", "new_payment_method"),
]
both_ways = pytest.mark.parametrize("more", [{}, {"invoice": True, "description": "Credit"}], ids=["plain", "invoice"])


class TestSucceeded:
    @both_ways
    def test_it_takes_the_money_at_once_and_once(
        self, payer: Payer, stand_ins: StandIns, db: Connection, more: Json
    ) -> None:
        payer.save()
        first, again = payer.charge(**more), payer.charge(**more)

        assert first.status_code == again.status_code == 200
        assert first.json == again.json
        assert first.json["status"] == "succeeded"
        (intent,) = objects_of(stand_ins, "payment_intent")
        (charge,) = objects_of(stand_ins, "charge")
        assert (intent["status"], intent["amount_received"], intent["id"]) == (
            "succeeded", 2000, first.json["paymentIntentId"]
        )  # fmt: skip
        for made in (intent, charge):
            assert made["metadata"]["paymentId"] == first.json["paymentId"]
            assert made["description"] == more.get("description")
        before = payer.status(first.json)
        payer.hear()
        assert payer.status(first.json)["events"]["successes"][0]["stripeChargeId"] == charge["id"]
        assert state_of(before) == state_of(payer.status(first.json)) == ("succeeded", 2000, 0, 0)
        assert payer.stats() == {"totalPayments": 1, "successCount": 1, "failureCount": 0, "gross": 2000}
        assert_balanced(db, stand_ins)

    def test_it_leaves_an_invoice_that_is_paid(self, payer: Payer, stand_ins: StandIns) -> None:
        payer.save()
        answer = payer.charge(invoice=True, description="Credit").json

        (invoice,) = objects_of(stand_ins, "invoice")
        assert (invoice["status"], invoice["amount_paid"], invoice["metadata"]["paymentId"]) == (
            "paid", 2000, answer["paymentId"]
        )  # fmt: skip
        assert (answer["invoiceId"], answer["hostedInvoiceUrl"], answer["invoicePdf"]) == (
            invoice["id"], invoice["hosted_invoice_url"], invoice["invoice_pdf"]
        )  # fmt: skip
        shown = payer.client.get(f"/status/by-stripe-id/{invoice['id']}?appId=shop").json
        assert shown["payment"]["stripeInvoiceId"] == invoice["id"]
        payer.hear()
        assert payer.status(answer)["payment"] | {"updatedAt": None} == shown["payment"] | {"updatedAt": None}

    @both_ways
    def test_what_takes_days_is_processing_until_it_is_paid(
        self, payer: Payer, stand_ins: StandIns, more: Json
    ) -> None:
        method = payer.save(behaves="takesDays")
        answer = payer.charge(paymentMethodId=method, **more).json

        assert answer["status"] == "processing"
        assert state_of(payer.status(answer))[:2] == ("processing", 0)
        stand_ins.control(f"intents/{answer['paymentIntentId']}/pay")
        payer.hear()
        assert state_of(payer.status(answer))[:2] == ("succeeded", 2000)

    def test_it_holds_the_money_where_that_is_asked_for(self, payer: Payer) -> None:
        payer.save()
        payment = payer.charge(captureMethod="manual").json
        assert payment["status"] == "requires_capture"
        assert payer.act(payment, "capture", "other").json["amountReceivedInCents"] == 2000


class TestDeclined:
    @both_ways
    @pytest.mark.parametrize(("behaves", "code", "action"), DECLINES)
    def test_the_payment_failed_and_the_caller_hears_what_to_do(
        self, payer: Payer, stand_ins: StandIns, db: Connection, behaves: str, code: str, action: str, more: Json
    ) -> None:
        """Fails when the refusal isn't taken, and when the try is counted by the answer and by its webhook."""
        payer.save(behaves=behaves)
        first, again = payer.charge(**more), payer.charge(**more)

        (intent,) = objects_of(stand_ins, "payment_intent")
        details = first.json["details"]
        assert (first.status_code, first.json["code"]) == (402, code)
        assert details == {
            "paymentId": details["paymentId"], "paymentIntentId": intent["id"],
            "clientSecret": intent["client_secret"], "action": action,
        }  # fmt: skip
        assert again.status_code == 402
        assert {**again.json, "requestId": None} == {**first.json, "requestId": None}
        self.assert_failed(payer, details, "failed")
        payer.hear()
        self.assert_failed(payer, details, "canceled" if more else "failed")
        assert payer.stats() == {"totalPayments": 1, "successCount": 0, "failureCount": 1, "gross": 0}
        assert payer.invoices() == (["void"] if more else [])
        assert [run["status"] for run in stand_ins.runs().values()] == ["failed"]
        assert_balanced(db, stand_ins)
        kept = db.execute(text("SELECT answer::text || coalesce(request::text, '') FROM operations")).scalar_one()
        assert intent["client_secret"] not in kept

    def assert_failed(self, payer: Payer, payment: Json, status: str) -> None:
        shown = payer.status(payment)
        assert state_of(shown) == (status, 0, 0, 0)
        assert [each["stripePaymentIntentId"] for each in shown["events"]["failures"]] == [payment["paymentIntentId"]]
        assert shown["payment"]["tracking"] == {"state": "complete", "error": None}

    def test_the_customer_can_confirm_it_later(self, payer: Payer, stand_ins: StandIns, db: Connection) -> None:
        payer.save("pm_card_authenticationRequired")
        payment = payer.charge().json["details"]
        payer.hear()

        stand_ins.control(f"intents/{payment['paymentIntentId']}/pay")
        payer.hear()

        shown = payer.status(payment)
        assert state_of(shown) == ("succeeded", 2000, 0, 0)
        assert (len(shown["events"]["successes"]), len(shown["events"]["failures"])) == (1, 1)
        assert payer.charge().status_code == 402
        assert_balanced(db, stand_ins)

    def test_no_cost_of_it_is_expected_on_a_run_that_payments_share(
        self, payer: Payer, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        """Fails when a declined charge counts among the payments whose cost has to be on the run.

        A charge is an organisation's, and that has runs of its own: the declined one is put there by hand.
        """
        run_id = stand_ins.new_run()
        payer.save("pm_card_authenticationRequired")
        payment = payer.charge().json["details"]
        db.execute(
            text("UPDATE payments SET org_id = NULL, run_id = :run WHERE id = :id"),
            {"run": run_id, "id": payment["paymentId"]},
        )
        stand_ins.fault("runs-service", "reset", path="/costs", executed=True)
        payer.intent(orgId=None, runId=run_id)
        recover_until_quiet(services, db)

        assert len(stand_ins.runs()[run_id]["costs"]) == 1


class TestRefused:
    def test_nothing_saved_can_be_charged(self, payer: Payer, db: Connection) -> None:
        first = payer.charge()
        payer.save("pm_usBankAccount_success")

        assert [(answer.status_code, answer.json["code"]) for answer in (first, payer.charge())] == [
            (400, "no_payment_method")
        ] * 2
        assert db.execute(text("SELECT count(*) FROM operations")).scalar_one() == 0
        payer.save("pm_link")
        assert payer.charge().json["status"] == "succeeded"

    @both_ways
    @pytest.mark.parametrize("is_anothers", [True, False])
    def test_a_method_that_isnt_the_customers(
        self, payer: Payer, stand_ins: StandIns, db: Connection, is_anothers: bool, more: Json
    ) -> None:
        payer.save()
        method = payer.save(orgId="org_2") if is_anothers else "pm_none"
        first, again = (payer.charge(paymentMethodId=method, **more) for _ in range(2))

        assert (first.status_code, first.json["error"]) == (400, again.json["error"])
        assert method in first.json["error"]
        assert objects_of(stand_ins, "charge") == []
        assert payer.invoices() == (["void"] if more else [])
        assert db.execute(text("SELECT status FROM payments")).scalar_one() == "rejected"

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"orgId": None}, "orgId"),
            ({"saveForLater": True}, "saveForLater"),
            ({"offSession": False, "paymentMethodId": "pm_1"}, "paymentMethodId"),
            ({"offSession": False, "invoice": True, "description": "x"}, "invoice"),
            ({"invoice": True}, "description"),
            ({"invoice": True, "description": "x", "captureMethod": "manual"}, "captureMethod"),
        ],
    )
    def test_fields_that_dont_go_together(self, payer: Payer, changes: Json, field: str) -> None:
        answer = payer.charge(**changes)
        assert (answer.status_code, list(answer.json["details"]["fieldErrors"])) == (400, [field])

    def test_a_charge_needs_an_idempotency_key(self, payer: Payer) -> None:
        payer.save()
        assert payer.charge(key=None).json["code"] == "idempotency_key_required"

    @pytest.mark.parametrize(("scope", "status"), [("write", 403), ("money", 200)])
    def test_a_key_of_an_app_needs_the_scope_money(self, payer: Payer, scope: str, status: int) -> None:
        payer.save()
        key = payer.client.post("/keys/create", json={"appId": "shop", "scope": scope}).json["key"]
        payer.client.environ_base["HTTP_X_API_KEY"] = key

        assert payer.charge().status_code == status
        assert payer.client.post(CREATE_INTENT, json={**APP_AND_ORG, "amountInCents": 2000}).status_code == 200


class TestWhichMethod:
    def test_it_is_the_named_one_or_the_default_or_the_newest_card(self, payer: Payer, stand_ins: StandIns) -> None:
        first, second = payer.save(), payer.save()
        payer.save("pm_link")

        def charged(key: str, **changes: Any) -> str:
            intent_id = payer.charge(key, **changes).json["paymentIntentId"]
            intents = {each["id"]: each for each in objects_of(stand_ins, "payment_intent")}
            return str(intents[intent_id]["payment_method"])

        assert charged("a") == second
        assert charged("b", paymentMethodId=first) == first
        payer.client.post("/payment-methods/default", json={**APP_AND_ORG, "paymentMethodId": first})
        assert charged("c") == first
        # What was chosen for a request stays so.
        assert charged("a") == second


class TestSaveForLater:
    @pytest.mark.parametrize("path", ["/checkout/create", CREATE_INTENT])
    def test_what_the_customer_pays_with_can_be_charged_afterwards(
        self, payer: Payer, stand_ins: StandIns, path: str
    ) -> None:
        make = payer.checkout if path == "/checkout/create" else payer.intent
        make("pay", saveForLater=True)

        assert payer.charge().json["status"] == "succeeded"
        assert len(objects_of(stand_ins, "customer")) == 1

    @pytest.mark.parametrize("path", ["/checkout/create", CREATE_INTENT])
    def test_the_organisations_customer_is_used_unless_another_is_named(
        self, payer: Payer, stand_ins: StandIns, path: str
    ) -> None:
        own, other = payer.customer(), payer.customer(orgId="org_2")
        make, kind = (payer.checkout, "checkout.session") if path == "/checkout/create" else (
            payer.intent, "payment_intent"
        )  # fmt: skip
        payments = [make(), make(customerId=other), make(orgId="org_3")]

        assert [each["customer"] for each in objects_of(stand_ins, kind)] == [None, other, own]
        assert payer.status(payments[0])["payment"]["stripeCustomerId"] == own
        assert len(objects_of(stand_ins, "customer")) == 2
