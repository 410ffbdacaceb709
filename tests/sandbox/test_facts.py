"""What the stand-ins' page says of itself, tried on the stand-ins."""

import pytest
import stripe

from app.sandbox.facts import Fact, all_facts, service_url
from app.sandbox.settings import SandboxSettings
from tests.sandbox.conftest import Sandbox

KEYS = ("stripe_key", "service_api_key", "webhook_secret", "key_service_api_key", "runs_service_api_key")


def facts(settings: SandboxSettings | None = None) -> dict[str, Fact]:
    told = all_facts(settings or SandboxSettings(), own_url="http://127.0.0.1:3012")
    return {fact.name: fact for fact in told}


class TestServiceUrl:
    def test_it_is_where_webhooks_go(self) -> None:
        assert service_url(SandboxSettings(webhook_url="http://127.0.0.1:80/webhooks/stripe")) == "http://127.0.0.1:80"


class TestAllFacts:
    def test_the_prices_are_in_every_account(self, sandbox: Sandbox) -> None:
        for name in ("Price, once", "Price, each month"):
            (price,) = facts()[name].words
            found = sandbox.client().v1.prices.retrieve(price)
            assert (found.unit_amount, found.currency) == (2000, "usd")

    @pytest.mark.parametrize(
        ("name", "status"),
        [("Cards that pay", "succeeded"), ("Cards whose bank asks the customer", "requires_action")],
    )
    def test_a_card_does_what_is_said_of_it(self, sandbox: Sandbox, name: str, status: str) -> None:
        assert {self.pay(sandbox, card) for card in facts()[name].words} == {status}

    def test_a_card_that_is_declined_is_declined(self, sandbox: Sandbox) -> None:
        for card in facts()["Cards that are declined"].words:
            with pytest.raises(stripe.CardError):
                self.pay(sandbox, card)

    def pay(self, sandbox: Sandbox, card: str) -> str:
        wanted = {"amount": 100, "currency": "usd", "payment_method": card, "confirm": True}
        return str(sandbox.client().v1.payment_intents.create({**wanted, "return_url": "http://127.0.0.1/"}).status)

    def test_it_shows_no_key_that_somebody_has_set(self) -> None:
        told = facts(SandboxSettings(**{name: f"{name}-of-somebody" for name in KEYS}))

        assert "of-somebody" not in str(told)
        assert told["X-API-Key of callers"].note == "the one of STRIPE_SERVICE_API_KEY"
