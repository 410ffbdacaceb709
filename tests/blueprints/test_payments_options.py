"""What a checkout and an intent may be asked for besides: what Stripe is sent, what callers hear, what is refused."""

import logging
import time
from datetime import UTC, datetime
from typing import Any, get_args, get_type_hints

import orjson
import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text
from stripe.params.checkout import SessionCreateParams

from app.sandbox.stripe.parameters import UNIMPORTED_NAMES
from app.schemas.checkout import LOCALES
from app.services.payments import kinds
from tests.factories import checkout, intent
from tests.stand_ins import StandIns

CHECKOUT, INTENT = "/checkout/create", "/payment-intent/create"
MONTHLY = [{"priceId": "price_sandbox_monthly", "quantity": 1}]
SHIRT = {"currency": "EUR", "unitAmountInCents": 1500, "productName": "T-shirt"}
RETURN_URL = "https://shop.test/back?session={CHECKOUT_SESSION_ID}"
KEY = {"Idempotency-Key": "order-7"}


def in_seconds(seconds: int) -> str:
    return datetime.fromtimestamp(int(time.time()) + seconds, UTC).isoformat()


def embedded(**changes: Any) -> dict[str, Any]:
    """A valid checkout on a page of the app's own."""
    page = {"uiMode": "embedded", "returnUrl": RETURN_URL, "successUrl": ..., "cancelUrl": ...}
    return checkout(**(page | changes))


def priced(**changes: Any) -> list[dict[str, Any]]:
    return [{"priceData": SHIRT | changes, "quantity": 1}]


def sent_to_stripe(db: Connection) -> dict[str, Any]:
    """What Stripe was asked with, less what every payment is."""
    params = orjson.loads(bytes(db.execute(text("SELECT stripe_params FROM operations")).scalar_one()))
    kept = {name: value for name, value in params.items() if name not in ("metadata", "payment_intent_data")}
    kept.get("subscription_data", {}).pop("metadata", None)
    return kept


class TestWhatStripeIsAsked:
    def test_it_is_asked_for_every_option_of_a_payment(self, client: FlaskClient, db: Connection) -> None:
        expires_at = in_seconds(3600)
        item = {"priceData": SHIRT, "quantity": 2, "adjustableQuantity": {"min": 1, "max": 5}}
        body = checkout(
            lineItems=[item, {"priceData": SHIRT, "quantity": 1, "adjustableQuantity": {}}],
            customText={"submit": "Thank you", "afterSubmit": "Welcome"}, locale="pt-BR", allowPromotionCodes=True,
            automaticTax=True, expiresAt=expires_at, clientReferenceId="cart-7", invoiceCreation=True,
            customerCreation="always",
        )  # fmt: skip
        response = client.post(CHECKOUT, json=body)

        assert response.status_code == 200, response.json
        assert "ignoredFields" not in response.json
        price = {"currency": "eur", "unit_amount": 1500, "product_data": {"name": "T-shirt"}}
        adjustable = {"enabled": True, "minimum": 1, "maximum": 5}
        assert sent_to_stripe(db) == {
            "mode": "payment",
            "line_items": [
                {"price_data": price, "quantity": 2, "adjustable_quantity": adjustable},
                {"price_data": price, "quantity": 1, "adjustable_quantity": {"enabled": True}},
            ],
            "success_url": body["successUrl"],
            "cancel_url": body["cancelUrl"],
            "custom_text": {"submit": {"message": "Thank you"}, "after_submit": {"message": "Welcome"}},
            "locale": "pt-BR",
            "allow_promotion_codes": True,
            "automatic_tax": {"enabled": True},
            "invoice_creation": {"enabled": True},
            "expires_at": int(datetime.fromisoformat(expires_at).timestamp()),
            "client_reference_id": "cart-7",
            "customer_creation": "always",
        }

    def test_it_is_asked_for_a_trial(self, client: FlaskClient, db: Connection) -> None:
        recurring = {"interval": "month", "intervalCount": 3}
        body = embedded(mode="subscription", trialDays=730, lineItems=priced(recurring=recurring))
        response = client.post(CHECKOUT, json=body)

        assert response.status_code == 200, response.json
        sent = sent_to_stripe(db)
        assert sent["subscription_data"] == {"trial_period_days": 730}
        assert sent["line_items"][0]["price_data"]["recurring"] == {"interval": "month", "interval_count": 3}

    def test_it_is_asked_for_no_more_than_before_where_all_is_the_default(
        self, client: FlaskClient, db: Connection
    ) -> None:
        """And that is the same request: a retry by a client of another version is given the same answer."""
        off = dict.fromkeys(("allowPromotionCodes", "automaticTax", "invoiceCreation"), False)
        first = client.post(CHECKOUT, json=checkout(), headers=KEY)
        again = client.post(CHECKOUT, json=checkout(uiMode="hosted", customText={}, **off), headers=KEY)

        assert again.json == first.json
        assert set(sent_to_stripe(db)) == {"mode", "line_items", "success_url", "cancel_url"}

    def test_it_is_asked_for_a_receipt_and_words_on_the_statement(self, client: FlaskClient, db: Connection) -> None:
        body = intent(receiptEmail="ada@example.com", statementDescriptorSuffix="x" * 22)
        assert client.post(INTENT, json=body).status_code == 200
        sent = sent_to_stripe(db)
        assert (sent["receipt_email"], sent["statement_descriptor_suffix"]) == ("ada@example.com", "x" * 22)

    def test_every_language_of_its_own_is_known(self) -> None:
        hint = get_type_hints(SessionCreateParams, localns=UNIMPORTED_NAMES)["locale"]
        assert set(LOCALES) == {value for choice in get_args(hint) for value in get_args(choice)}


class TestEmbeddedPage:
    def test_it_is_answered_with_a_secret_that_nobody_keeps(
        self, client: FlaskClient, stand_ins: StandIns, db: Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        first = client.post(CHECKOUT, json=embedded(redirectOnCompletion="always"), headers=KEY)
        again = client.post(CHECKOUT, json=embedded(), headers=KEY)

        assert first.status_code == 200, first.json
        secret = first.json["clientSecret"]
        assert secret.startswith(first.json["sessionId"])
        assert first.json["url"] is None
        assert again.json == first.json
        assert stand_ins.effects().count("checkout.session.create") == 1
        assert sent_to_stripe(db)["ui_mode"] == "embedded_page"
        for table in ("operations", "payments", "stripe_events"):
            dump = db.execute(text(f"SELECT string_agg(t::text, '') FROM {table} t")).scalar_one()
            assert secret.rpartition("_")[2] not in dump
        assert secret not in caplog.text

    def test_it_may_never_leave_the_page(self, client: FlaskClient, db: Connection) -> None:
        response = client.post(CHECKOUT, json=embedded(redirectOnCompletion="never", returnUrl=...))

        assert response.status_code == 200, response.json
        assert sent_to_stripe(db)["redirect_on_completion"] == "never"

    def test_a_hosted_one_has_none_and_is_answered_again_without_stripe(
        self, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        first = client.post(CHECKOUT, json=checkout(), headers=KEY)
        asked = len(stand_ins.ledger("stripe"))

        assert client.post(CHECKOUT, json=checkout(), headers=KEY).json == first.json
        assert "clientSecret" not in first.json
        assert len(stand_ins.ledger("stripe")) == asked


INVALID: list[tuple[str, dict[str, Any]]] = [
    ("lineItems", checkout(lineItems=[{"quantity": 1}])),
    ("lineItems", checkout(lineItems=[{"priceId": "price_sandbox", "priceData": SHIRT, "quantity": 1}])),
    ("lineItems", checkout(lineItems=priced(currency=None))),
    ("lineItems", checkout(lineItems=priced(currency="eu"))),
    ("lineItems", checkout(lineItems=priced(unitAmountInCents=0))),
    ("lineItems", checkout(lineItems=priced(unitAmountInCents=1.5))),
    ("lineItems", checkout(lineItems=priced(unitAmountInCents=100_000_000))),
    ("lineItems", checkout(lineItems=priced(productName=""))),
    ("lineItems", checkout(lineItems=priced(productName="n\x00"))),
    ("lineItems", checkout(lineItems=priced(recurring={"interval": "hour"}))),
    ("lineItems", checkout(lineItems=[{**MONTHLY[0], "adjustableQuantity": {"min": 3, "max": 2}}])),
    ("lineItems", checkout(lineItems=[{**MONTHLY[0], "adjustableQuantity": {"min": 100}}])),
    ("lineItems", checkout(lineItems=[{**MONTHLY[0], "adjustableQuantity": {"max": 1_000_000}}])),
    ("lineItems", checkout(lineItems=[{**MONTHLY[0], "adjustableQuantity": {"max": 0}}])),
    ("uiMode", checkout(uiMode="custom")),
    ("returnUrl", checkout(returnUrl=RETURN_URL)),
    ("redirectOnCompletion", checkout(redirectOnCompletion="always")),
    ("redirectOnCompletion", embedded(redirectOnCompletion="sometimes")),
    ("returnUrl", embedded(returnUrl=...)),
    ("returnUrl", embedded(returnUrl="/back")),
    ("returnUrl", embedded(redirectOnCompletion="never")),
    ("returnUrl", embedded(redirectOnCompletion="if_required", returnUrl=None)),
    ("successUrl", embedded(successUrl="https://shop.test/ok")),
    ("cancelUrl", embedded(cancelUrl="https://shop.test/cart")),
    ("customText", checkout(customText={"submit": "s" * 1201})),
    ("customText", checkout(customText={"afterSubmit": "s\x00"})),
    ("customText", checkout(customText="Thank you")),
    ("locale", checkout(locale="xx")),
    ("allowPromotionCodes", checkout(allowPromotionCodes=True, discounts=[{"coupon": "C"}])),
    ("allowPromotionCodes", checkout(allowPromotionCodes="true")),
    ("automaticTax", checkout(automaticTax=1)),
    ("invoiceCreation", checkout(invoiceCreation=True, mode="subscription")),
    ("captureMethod", checkout(captureMethod="manual", mode="subscription")),
    ("trialDays", checkout(trialDays=7)),
    ("trialDays", checkout(trialDays=0, mode="subscription")),
    ("trialDays", checkout(trialDays=731, mode="subscription")),
    ("customerCreation", checkout(customerCreation="if_required")),
    ("customerCreation", checkout(customerCreation="always", mode="subscription")),
    ("customerCreation", checkout(customerCreation="always", customerId="cus_1")),
    ("clientReferenceId", checkout(clientReferenceId="c" * 201)),
    ("expiresAt", checkout(expiresAt="tomorrow")),
    ("expiresAt", checkout(expiresAt=1_900_000_000)),
    ("expiresAt", checkout(expiresAt=in_seconds(29 * 60))),
    ("expiresAt", checkout(expiresAt=in_seconds(25 * 3600))),
    ("receiptEmail", intent(receiptEmail="nope")),
    ("statementDescriptorSuffix", intent(statementDescriptorSuffix="")),
    ("statementDescriptorSuffix", intent(statementDescriptorSuffix="x" * 23)),
    *(("statementDescriptorSuffix", intent(statementDescriptorSuffix=f"a{sign}")) for sign in "<>\\'\"*\x00"),
]


class TestRules:
    @pytest.mark.parametrize(("field", "body"), INVALID)
    def test_it_asks_nobody_when_one_is_broken(
        self, client: FlaskClient, stand_ins: StandIns, field: str, body: dict[str, Any]
    ) -> None:
        response = client.post(INTENT if "amountInCents" in body else CHECKOUT, json=body)

        assert (response.status_code, response.json["code"]) == (400, "invalid_request")
        assert list(response.json["details"]["fieldErrors"]) == [field]
        assert stand_ins.ledger() == []

    def test_it_names_all_that_are(self, client: FlaskClient) -> None:
        body = embedded(returnUrl=..., trialDays=1, successUrl="https://shop.test/ok")
        errors = client.post(CHECKOUT, json=body).json["details"]["fieldErrors"]
        assert set(errors) == {"returnUrl", "trialDays", "successUrl"}

    def test_a_retry_is_answered_when_the_time_has_come_near(
        self, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when a retry of what was accepted is checked by the clock of another moment."""
        body = checkout(expiresAt=in_seconds(3600))
        first = client.post(CHECKOUT, json=body, headers=KEY)
        monkeypatch.setattr(kinds, "SHORTEST_LIFETIME_SECONDS", 2 * 3600)

        assert client.post(CHECKOUT, json=body, headers=KEY).json == first.json
        assert client.post(CHECKOUT, json=body).status_code == 400
