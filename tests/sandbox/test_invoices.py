"""The stand-in of Stripe where a charge leaves an invoice."""

from typing import Any

import pytest
import stripe

from tests.sandbox.conftest import Sandbox
from tests.sandbox.test_customers import decline_of, newest_types, refusal_of, saved


@pytest.fixture
def client(sandbox: Sandbox) -> Any:
    return sandbox.client()


def drawn_up(client: Any, customer: str, amount: int = 900) -> str:
    """A finalized invoice with one item, made as a careful caller does; the value is its id."""
    invoice = client.v1.invoices.create(
        {
            "customer": customer,
            "auto_advance": False,
            "pending_invoice_items_behavior": "exclude",
            "metadata": {"a": "b"},
        }
    )
    item = {"customer": customer, "invoice": invoice.id, "amount": amount, "currency": "usd", "description": "Credit"}
    client.v1.invoice_items.create(item)
    assert client.v1.invoices.finalize_invoice(invoice.id).status == "open"
    return str(invoice.id)


def intent_of(client: Any, invoice_id: str) -> Any:
    path = "payments.data.payment.payment_intent"
    (paying,) = client.v1.invoices.retrieve(invoice_id, {"expand": ["payments", path]}).payments.data
    return paying.payment.payment_intent


class TestInvoices:
    def test_one_is_paid_once_by_an_intent_that_inherits_nothing(self, client: Any, sandbox: Sandbox) -> None:
        customer, method = saved(client, email="a@example.com")
        invoice_id = drawn_up(client, customer)

        invoice = client.v1.invoices.pay(
            invoice_id, {"off_session": True, "payment_method": method, "expand": ["payments"]}
        )

        assert (invoice.status, invoice.amount_paid, invoice.amount_remaining) == ("paid", 900, 0)
        assert [(each.status, each.amount_paid) for each in invoice.payments.data] == [("paid", 900)]
        intent = intent_of(client, invoice_id)
        assert (intent.status, intent.customer, intent.metadata.to_dict()) == ("succeeded", customer, {})
        assert newest_types(client, 4) == [
            "payment_intent.succeeded", "invoice.paid", "invoice.payment_succeeded", "invoice_payment.paid"
        ]  # fmt: skip
        assert str(refusal_of(client.v1.invoices.pay, invoice_id)).endswith("Invoice is already paid")
        assert "cannot be voided" in str(refusal_of(client.v1.invoices.void_invoice, invoice_id))
        assert "draft" in str(refusal_of(client.v1.invoices.delete, invoice_id))
        assert sandbox.read("ledger")["invoices"] == {"paid": 1}
        assert "9.00 USD" in sandbox.call("GET", invoice.hosted_invoice_url.removeprefix(sandbox.url)).text

    def test_a_declined_one_stays_open_until_it_is_voided_with_its_intent(self, client: Any, sandbox: Sandbox) -> None:
        customer, method = saved(client, "pm_card_chargeCustomerFail")
        invoice_id = drawn_up(client, customer)
        for _ in range(2):
            error = decline_of(client.v1.invoices.pay, invoice_id, {"payment_method": method}, {"idempotency_key": "k"})
            assert (error.code, error.decline_code) == ("card_declined", "generic_decline")

        invoice = client.v1.invoices.retrieve(invoice_id)
        assert (invoice.status, invoice.attempted, invoice.attempt_count) == ("open", True, 1)
        assert newest_types(client, 2) == ["payment_intent.payment_failed", "invoice.payment_failed"]
        assert client.v1.invoices.void_invoice(invoice_id).status == "void"
        assert intent_of(client, invoice_id).status == "canceled"
        assert newest_types(client, 2) == ["payment_intent.canceled", "invoice.voided"]
        assert "can no longer be paid" in str(refusal_of(client.v1.invoices.pay, invoice_id))
        assert "isn't open" in str(refusal_of(client.v1.invoices.void_invoice, invoice_id))
        assert [entry["effect"] for entry in sandbox.ledger("stripe") if entry["effect"]].count("invoice.pay") == 1

    def test_one_whose_bank_asks_is_paid_on_the_page_of_its_intent(self, client: Any, sandbox: Sandbox) -> None:
        customer, method = saved(client, "pm_card_authenticationRequired")
        client.v1.customers.update(customer, {"invoice_settings": {"default_payment_method": method}})
        invoice_id = drawn_up(client, customer)

        assert decline_of(client.v1.invoices.pay, invoice_id).code == "invoice_payment_intent_requires_action"
        intent = intent_of(client, invoice_id)
        assert intent.status == "requires_action"
        sandbox.call("POST", f"/intent/{intent.id}/pay")
        assert client.v1.invoices.retrieve(invoice_id).status == "paid"

    def test_one_with_a_payment_on_its_way_cant_be_changed(self, client: Any, sandbox: Sandbox) -> None:
        customer, method = saved(client)
        sandbox.control(f"methods/{method}/take_days")
        invoice_id = drawn_up(client, customer)
        client.v1.invoices.pay(invoice_id, {"payment_method": method})

        for call in (client.v1.invoices.void_invoice, client.v1.invoices.pay):
            options = {"payment_method": method} if call == client.v1.invoices.pay else {}
            assert "still pending" in str(refusal_of(call, invoice_id, options))
        sandbox.control(f"intents/{intent_of(client, invoice_id).id}/pay")
        assert client.v1.invoices.retrieve(invoice_id).status == "paid"

    def test_a_draft_includes_pending_items_when_asked_and_can_be_deleted(self, client: Any) -> None:
        customer, _ = saved(client)
        for amount in (100, 250):
            client.v1.invoice_items.create({"customer": customer, "amount": amount, "currency": "eur"})
        without = client.v1.invoices.create({"customer": customer})
        draft = client.v1.invoices.create({"customer": customer, "pending_invoice_items_behavior": "include"})

        assert (without.total, draft.total, draft.currency) == (0, 350, "eur")
        assert client.v1.invoices.delete(without.id).deleted
        assert refusal_of(client.v1.invoices.retrieve, without.id).http_status == 404
        assert [each.id for each in client.v1.invoices.list({"customer": customer, "status": "draft"})] == [draft.id]
        with pytest.raises(stripe.InvalidRequestError, match="default_payment_method"):
            client.v1.invoices.pay(draft.id)

    def test_only_a_draft_is_finalized_and_takes_items(self, client: Any) -> None:
        customer, _ = saved(client)
        invoice_id = drawn_up(client, customer)
        item = {"customer": customer, "invoice": invoice_id, "amount": 1, "currency": "usd"}
        assert "re-finalize" in str(refusal_of(client.v1.invoices.finalize_invoice, invoice_id))
        assert refusal_of(client.v1.invoice_items.create, item).code == "invoice_not_editable"
        assert client.v1.invoices.update(invoice_id, {"metadata": {"c": "d"}}).metadata.to_dict() == {
            "a": "b",
            "c": "d",
        }
        assert refusal_of(client.v1.invoices.update, invoice_id, {"description": "x"}).param == "description"
