"""Recovery of charges: the customer is charged once at most, and no invoice is left that anybody could pay."""

from typing import Any

import pytest
from sqlalchemy import Connection, text

from app.services import Services
from tests.books import assert_balanced, objects_of
from tests.services.payments.conftest import Json, Payer, Recovering, state_of
from tests.stand_ins import StandIns

INVOICED = {"invoice": True, "description": "Credit"}
DRAFT, ITEM, FINALIZE = "/v1/invoices$", "/v1/invoiceitems$", "/finalize$"
UPDATE, PAY = "/payment_intents/[^/]+$", "/pay$"
LATER = [ITEM, FINALIZE, UPDATE, PAY]
each_call = pytest.mark.parametrize("path", [DRAFT, *LATER])
each_later_call = pytest.mark.parametrize("path", LATER)
whether_executed = pytest.mark.parametrize("executed", [True, False])


class Recovery(Recovering):
    """A charge whose caller has no answer, and what becomes of it."""

    def __init__(self, payer: Payer, services: Services, db: Connection) -> None:
        super().__init__(payer, services, db)
        self.payer = payer

    def break_stripe(self, path: str, kind: str = "reset", **options: Any) -> None:
        self.stand_ins.fault("stripe", kind, method="POST", path=path, **options)

    def lose(self, path: str, *, executed: bool, **options: Any) -> None:
        """Charge, and hear nothing."""
        self.break_stripe(path, executed=executed, **options)
        assert self.payer.charge(**INVOICED).status_code in (502, 503, 504)

    def step(self) -> str:
        return str(self.db.execute(text("SELECT step FROM operations")).scalar_one())

    def status(self) -> str:
        return str(self.db.execute(text("SELECT status FROM payments")).scalar_one())

    def charges(self) -> list[str]:
        return [charge["status"] for charge in objects_of(self.stand_ins, "charge")]

    def assert_paid(self, invoices: list[str]) -> Json:
        """Once, and by one invoice of these; the caller's retry has the answer of it."""
        assert (self.status(), self.charges(), sorted(self.payer.invoices())) == (
            "succeeded", ["succeeded"], invoices
        )  # fmt: skip
        first, again = self.payer.charge(**INVOICED), self.payer.charge(**INVOICED)
        assert (first.status_code, first.json) == (200, again.json)
        self.payer.hear()
        assert state_of(self.payer.status(first.json))[:2] == ("succeeded", 2000)
        assert self.charges() == ["succeeded"]
        return dict(first.json)


@pytest.fixture
def recovery(payer: Payer, services: Services, db: Connection) -> Recovery:
    return Recovery(payer, services, db)


class TestLostAnswers:
    @each_call
    @whether_executed
    def test_it_repeats_all_calls_under_their_keys(self, recovery: Recovery, path: str, executed: bool) -> None:
        """Fails when a call has another key for each try, or the key of another call."""
        recovery.payer.save()
        recovery.lose(path, executed=executed)

        assert recovery.recover() == ["taken"]
        recovery.assert_paid(["paid"])
        assert_balanced(recovery.db, recovery.stand_ins)

    @each_later_call
    def test_one_that_certainly_did_nothing_leaves_what_was_done_before_to_recovery(
        self, recovery: Recovery, path: str
    ) -> None:
        """Fails when the operation is taken back to accepted, and abandoned, while Stripe has its invoice."""
        recovery.payer.save()
        recovery.break_stripe(path, "status", status=429, times=1)

        assert recovery.payer.charge(**INVOICED).json["code"] == "upstream_unavailable"
        assert (recovery.step(), recovery.recover()) == ("asked", ["taken"])
        recovery.assert_paid(["paid"])

    def test_the_first_one_that_certainly_did_nothing_leaves_nothing(self, recovery: Recovery) -> None:
        recovery.payer.save()
        recovery.break_stripe(DRAFT, "status", status=429)

        assert recovery.payer.charge(**INVOICED).json["code"] == "stripe_rate_limited"
        assert (recovery.step(), recovery.recover()) == ("accepted", ["abandoned"])
        assert recovery.payer.charge(**INVOICED).status_code == 200
        recovery.assert_paid(["paid"])

    @each_call
    def test_where_stripe_keeps_a_failure_it_begins_anew_and_ends_what_there_was(
        self, recovery: Recovery, path: str
    ) -> None:
        recovery.payer.save()
        recovery.lose(path, executed=True, kind="status", status=500)

        assert recovery.recover() == ["taken"]
        recovery.assert_paid(["paid", "void"] if path == FINALIZE else ["paid"])


class TestForgottenKeys:
    @pytest.mark.parametrize(
        ("path", "executed", "left"),
        [
            (DRAFT, True, []),
            (ITEM, False, []),
            (FINALIZE, False, []),
            (FINALIZE, True, ["void"]),
            (PAY, False, ["void"]),
        ],
    )
    def test_what_is_not_paid_is_ended_and_a_retry_charges_anew(
        self, recovery: Recovery, path: str, executed: bool, left: list[str]
    ) -> None:
        recovery.payer.save()
        recovery.lose(path, executed=executed)
        recovery.pass_a_day()

        assert recovery.recover() == ["rejected"]
        assert (recovery.status(), recovery.payer.invoices()) == ("rejected", left)
        assert recovery.payer.charge(**INVOICED).status_code == 200
        recovery.assert_paid(["paid", *left])

    @pytest.mark.parametrize(("behaves", "status"), [("visa", "succeeded"), ("takesDays", "processing")])
    def test_what_is_paid_or_on_its_way_is_taken(self, recovery: Recovery, behaves: str, status: str) -> None:
        recovery.payer.save(behaves=behaves)
        recovery.lose(PAY, executed=True)
        recovery.pass_a_day()

        assert (recovery.recover(), recovery.status()) == (["taken"], status)
        answer = recovery.payer.charge(**INVOICED)
        assert (answer.status_code, answer.json["status"]) == (200, status)

    @pytest.mark.parametrize("more", [{}, INVOICED], ids=["plain", "invoice"])
    def test_what_another_account_has_not_is_not_told_of_the_first(self, recovery: Recovery, more: Json) -> None:
        """Fails when nothing found is believed of an account that doesn't have the customer."""
        recovery.payer.save()
        recovery.break_stripe(PAY if more else "/payment_intents$", executed=True)
        recovery.payer.charge(**more)
        recovery.pass_a_day()
        recovery.set_key("sk_test_another")

        assert (recovery.recover(), recovery.status()) == (["stuck"], "creating")

    @pytest.mark.parametrize("more", [{}, INVOICED], ids=["plain", "invoice"])
    def test_what_was_declined_is_told_so(self, recovery: Recovery, more: Json) -> None:
        recovery.payer.save(behaves="chargeDeclinedExpiredCard")
        recovery.break_stripe(PAY if more else "/payment_intents$", executed=True)
        assert recovery.payer.charge(**more).status_code in (502, 503, 504)
        recovery.pass_a_day()

        outcome = recovery.recover()
        answer = recovery.payer.charge(**more)

        assert (outcome, recovery.payer.invoices()) == (["taken"], ["void"] if more else [])
        assert (answer.status_code, answer.json["code"]) == (402, "expired_card")
        assert answer.json["details"]["action"] == "new_payment_method"
        assert state_of(recovery.payer.status(answer.json["details"]))[0] == "failed"


class TestRefusedInTheMiddle:
    @each_later_call
    def test_no_invoice_is_left(self, recovery: Recovery, path: str) -> None:
        recovery.payer.save()
        error = {"message": "No.", "type": "invalid_request_error"}
        recovery.break_stripe(path, "json", status=400, body={"error": error})
        first, again = recovery.payer.charge(**INVOICED), recovery.payer.charge(**INVOICED)

        assert (first.status_code, first.json["error"], again.json["error"]) == (400, "No.", "No.")
        assert recovery.payer.invoices() == ([] if path in (ITEM, FINALIZE) else ["void"])
        assert (recovery.status(), recovery.charges()) == ("rejected", [])

    @pytest.mark.parametrize("path", ["/void$", "/v1/invoices/in_[^/]+$"])
    @whether_executed
    def test_the_refusal_is_told_once_that_is_done(self, recovery: Recovery, path: str, executed: bool) -> None:
        """Fails when a decline is told while its invoice is open."""
        recovery.payer.save(behaves="chargeCustomerFail")
        # A call that only reads is repeated once where its connection breaks.
        recovery.stand_ins.fault("stripe", "reset", path=path, executed=executed, times=1 if path == "/void$" else 2)

        assert recovery.payer.charge(**INVOICED).status_code in (502, 503, 504)
        assert (recovery.step(), recovery.recover()) == ("asked", ["taken"])
        assert recovery.payer.charge(**INVOICED).status_code == 402
        assert (recovery.payer.invoices(), recovery.charges()) == (["void"], ["failed"])

    @pytest.mark.parametrize("path", [PAY, "/void$"])
    def test_what_the_customer_pays_meanwhile_is_taken(
        self, recovery: Recovery, stand_ins: StandIns, path: str
    ) -> None:
        """Fails when a refusal is believed where the money has come."""
        method = recovery.payer.save(behaves="visa" if path == PAY else "chargeCustomerFail")
        recovery.lose(path, executed=False)
        stand_ins.control(f"methods/{method}/accept")
        (invoice,) = objects_of(stand_ins, "invoice")
        stand_ins.control(f"invoices/{invoice['id']}/pay")

        assert (recovery.recover(), recovery.status()) == (["taken"], "succeeded")
        assert recovery.payer.charge(**INVOICED).json["status"] == "succeeded"
        assert (recovery.payer.invoices(), recovery.charges().count("succeeded")) == (["paid"], 1)
