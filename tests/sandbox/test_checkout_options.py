"""The stand-in of Stripe where a checkout saves a method, is shown inside a page, or has other options."""

from typing import Any

import pytest

from tests.sandbox.conftest import Sandbox
from tests.sandbox.test_customers import newest_types, refusal_of, saved

HOSTED = {"success_url": "http://localhost:3000/ok", "cancel_url": "http://localhost:3000/back"}
EMBEDDED = {"ui_mode": "embedded_page", "return_url": "http://localhost:3000/ok?session={CHECKOUT_SESSION_ID}"}
STAYING = {"ui_mode": "embedded_page", "redirect_on_completion": "never"}
LINE = {"price_data": {"currency": "usd", "unit_amount": 900, "product_data": {"name": "Mug"}}, "quantity": 1}
PAYMENT = {"mode": "payment", "line_items": [LINE]}
MONTHLY = {"mode": "subscription", "line_items": [{"price": "price_sandbox_monthly", "quantity": 1}]}


@pytest.fixture
def client(sandbox: Sandbox) -> Any:
    return sandbox.client()


def opened(client: Any, **parameters: Any) -> Any:
    return client.v1.checkout.sessions.create(parameters)


class TestSetup:
    def test_a_card_is_saved_and_nothing_charged(self, client: Any, sandbox: Sandbox) -> None:
        customer = client.v1.customers.create({"email": "a@example.com"}).id
        session = opened(client, mode="setup", customer=customer, currency="usd", **HOSTED)
        page = f"/pay/{session.id}"

        refused = sandbox.call("POST", f"{page}/save", data={"card": "pm_card_chargeDeclined"})
        assert "Your card was declined." in refused.text
        taken = sandbox.call("POST", f"{page}/save", data={"card": "pm_card_mastercard"}, allow_redirects=False)

        assert taken.headers["Location"] == "http://localhost:3000/ok"
        session = client.v1.checkout.sessions.retrieve(session.id, {"expand": ["setup_intent.payment_method"]})
        intent = session.setup_intent
        assert (session.status, session.payment_status, intent.status) == (
            "complete",
            "no_payment_required",
            "succeeded",
        )
        assert (intent.payment_method.card.brand, intent.payment_method.customer) == ("mastercard", customer)
        assert client.v1.setup_intents.retrieve(intent.id).payment_method == intent.payment_method.id
        assert client.v1.customers.retrieve(customer).invoice_settings.default_payment_method is None
        assert client.v1.payment_intents.list().data == []
        assert newest_types(client, 5) == [
            "setup_intent.created",
            "setup_intent.setup_failed",
            "setup_intent.succeeded",
            "payment_method.attached",
            "checkout.session.completed",
        ]

    def test_it_needs_a_customer_and_a_currency_and_ends_with_its_session(self, client: Any, sandbox: Sandbox) -> None:
        customer = client.v1.customers.create().id
        assert refusal_of(opened, client, mode="setup", currency="usd", **HOSTED).param == "customer"
        assert refusal_of(opened, client, mode="setup", customer=customer, **HOSTED).param == "currency"
        session = opened(client, mode="setup", customer=customer, allowed_payment_method_types=["card"], **HOSTED)
        client.v1.checkout.sessions.expire(session.id)
        assert client.v1.setup_intents.retrieve(session.setup_intent).status == "canceled"
        assert sandbox.call("POST", f"/_sandbox/checkout/{session.id}/save").status_code == 400


class TestEmbedded:
    def test_it_is_shown_to_whoever_knows_the_secret_and_leads_on_at_the_end(
        self, client: Any, sandbox: Sandbox
    ) -> None:
        session = opened(client, **PAYMENT, **EMBEDDED)
        assert (session.url, session.success_url, session.redirect_on_completion) == (None, None, "always")

        page = sandbox.call("GET", "/embedded", params={"client_secret": session.client_secret})
        assert f'clientSecret: "{session.client_secret}"' in page.text
        inside = sandbox.call("GET", f"/embedded/{session.client_secret}").text
        assert f'action="/pay/{session.id}/pay" target="_top"' in inside
        assert "/cancel" not in inside
        assert sandbox.call("GET", f"/embedded/{session.id}_secret_x").status_code == 404
        paid = sandbox.call("POST", f"/pay/{session.id}/pay", allow_redirects=False)
        assert paid.headers["Location"] == f"http://localhost:3000/ok?session={session.id}"

    def test_it_stays_where_it_is_when_asked_to(self, client: Any, sandbox: Sandbox) -> None:
        session = opened(client, **PAYMENT, **STAYING)
        assert "_top" not in sandbox.call("GET", f"/embedded/{session.client_secret}").text
        assert "checkout complete" in sandbox.call("POST", f"/pay/{session.id}/pay").text
        assert client.v1.checkout.sessions.retrieve(session.id).payment_status == "paid"


class TestOptions:
    @pytest.mark.parametrize(
        ("parameters", "param"),
        [
            ({**PAYMENT, **EMBEDDED, "cancel_url": "http://localhost"}, "cancel_url"),
            ({**PAYMENT, **EMBEDDED, "success_url": "http://localhost"}, "success_url"),
            ({**PAYMENT, **STAYING, "return_url": "http://localhost"}, "return_url"),
            ({**PAYMENT, "ui_mode": "embedded_page"}, "return_url"),
            ({**PAYMENT, **HOSTED, "redirect_on_completion": "never"}, "redirect_on_completion"),
            ({**PAYMENT, **HOSTED, "allow_promotion_codes": True, "discounts": [{"coupon": "c"}]}, "discounts"),
            ({**PAYMENT, **HOSTED, "expires_at": 1}, "expires_at"),
            ({**PAYMENT, **HOSTED, "locale": "xx"}, "locale"),
            ({**PAYMENT, **HOSTED, "custom_text": {"submit": {"message": "x" * 1201}}}, "custom_text[submit][message]"),
            ({**MONTHLY, **HOSTED, "invoice_creation": {"enabled": True}}, "invoice_creation"),
            (
                {**MONTHLY, **HOSTED, "subscription_data": {"trial_period_days": 731}},
                "subscription_data[trial_period_days]",
            ),
            (
                {**PAYMENT, **HOSTED, "payment_intent_data": {"receipt_email": "nobody"}},
                "payment_intent_data[receipt_email]",
            ),
        ],
    )
    def test_one_that_doesnt_fit_is_refused(self, client: Any, parameters: dict[str, Any], param: str) -> None:
        assert refusal_of(opened, client, **parameters).param == param

    def test_they_are_shown(self, client: Any, sandbox: Sandbox) -> None:
        session = opened(
            client, **PAYMENT, **HOSTED, custom_text={"submit": {"message": "Welcome"}}, locale="de",
            allow_promotion_codes=True, automatic_tax={"enabled": True}, client_reference_id="order-7",
        )  # fmt: skip
        assert session.custom_text.submit.message == "Welcome"
        assert (session.locale, session.client_reference_id, session.allow_promotion_codes) == ("de", "order-7", True)
        assert session.automatic_tax.enabled
        assert "Welcome" in sandbox.call("GET", f"/pay/{session.id}").text

    def test_tax_needs_an_address_of_a_known_customer(self, client: Any) -> None:
        customer, _ = saved(client)
        taxed = {**PAYMENT, **HOSTED, "customer": customer, "automatic_tax": {"enabled": True}}
        assert refusal_of(opened, client, **taxed).code == "customer_tax_location_invalid"
        assert opened(client, **taxed, customer_update={"address": "auto"}).customer == customer

    def test_a_payment_saves_its_method_and_leaves_an_invoice(self, client: Any, sandbox: Sandbox) -> None:
        session = opened(
            client, **PAYMENT, **HOSTED, payment_intent_data={"setup_future_usage": "off_session"},
            invoice_creation={"enabled": True, "invoice_data": {"description": "Mugs"}},
        )  # fmt: skip
        paid = sandbox.control(f"checkout/{session.id}/pay", card="pm_card_authenticationRequired")

        (method,) = client.v1.customers.payment_methods.list(paid["customer"]).data
        assert method.card.last4 == "3184"
        invoice = client.v1.invoices.retrieve(paid["invoice"], {"expand": ["payments"]})
        assert (invoice.status, invoice.total, invoice.description) == ("paid", 900, "Mugs")
        assert invoice.payments.data[0].payment.payment_intent == paid["payment_intent"]

    def test_a_trial_costs_nothing_at_first(self, client: Any, sandbox: Sandbox) -> None:
        session = opened(client, **MONTHLY, **HOSTED, subscription_data={"trial_period_days": 7})
        paid = sandbox.control(f"checkout/{session.id}/pay")
        subscription = client.v1.subscriptions.retrieve(paid["subscription"])
        assert (session.amount_total, paid["payment_status"]) == (0, "no_payment_required")
        assert (subscription.status, subscription.trial_end - subscription.trial_start) == ("trialing", 7 * 24 * 3600)


class TestPortal:
    def test_it_removes_a_method_and_makes_one_the_default(self, client: Any, sandbox: Sandbox) -> None:
        customer, first = saved(client)
        second = client.v1.payment_methods.attach("pm_card_mastercard", {"customer": customer}).id
        session = client.v1.billing_portal.sessions.create(
            {"customer": customer, "return_url": "http://localhost:3000/account"}
        )
        page = session.url.removeprefix(sandbox.url)
        assert "Visa 4242" in sandbox.call("GET", page).text

        sandbox.call("POST", f"{page}/{second}/default")
        shown = sandbox.call("POST", f"{page}/{first}/remove").text

        assert "Visa 4242" not in shown
        assert "http://localhost:3000/account" in shown
        assert client.v1.customers.retrieve(customer).invoice_settings.default_payment_method == second
        _, of_another = saved(client)
        assert sandbox.call("POST", f"{page}/{of_another}/remove").status_code == 404
        assert refusal_of(client.v1.billing_portal.sessions.create, {"customer": "cus_1"}).code == "resource_missing"
