"""The stand-in's webhook endpoints, driven by Stripe's own SDK, and the keys that key-service is given."""

from typing import Any

import pytest
import stripe

from tests.sandbox.conftest import TIMEOUT_SECONDS, Receiver, Sandbox
from tests.sandbox.test_keys import HEADERS, ask

INTENT = {"amount": 500, "currency": "usd"}
OLD_VERSION = "2025-03-31.basil"


def endpoint(url: str, **fields: Any) -> dict[str, Any]:
    return {"url": url, "enabled_events": ["payment_intent.created"], **fields}


class TestWebhookEndpoints:
    def test_its_secret_is_in_the_answer_to_its_creation_alone(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        made = client.v1.webhook_endpoints.create(endpoint("https://a.example.com", metadata={"service": "us"}))

        assert made.secret.startswith("whsec_")
        (listed,) = client.v1.webhook_endpoints.list().data
        assert "secret" not in listed
        assert (listed.id, listed.status, listed.metadata.to_dict()) == (made.id, "enabled", {"service": "us"})

    def test_it_can_be_changed_but_for_its_version(self, sandbox: Sandbox) -> None:
        endpoints = sandbox.client().v1.webhook_endpoints
        made = endpoints.create(endpoint("https://a.example.com", metadata={"kept": "1", "gone": "2"}))

        changes = {"url": "https://b.example.com", "enabled_events": ["*"], "disabled": True, "metadata": {"gone": ""}}
        changed = endpoints.update(made.id, changes)
        with pytest.raises(stripe.InvalidRequestError, match="unknown parameter"):
            endpoints.update(made.id, {"api_version": OLD_VERSION})

        assert (changed.url, changed.status, changed.enabled_events) == ("https://b.example.com", "disabled", ["*"])
        assert changed.metadata.to_dict() == {"kept": "1"}

    def test_an_account_has_sixteen_at_most(self, sandbox: Sandbox) -> None:
        endpoints = sandbox.client().v1.webhook_endpoints
        made = [endpoints.create(endpoint(f"https://a.example.com/{number}")) for number in range(16)]

        with pytest.raises(stripe.InvalidRequestError, match="maximum of 16"):
            endpoints.create(endpoint("https://a.example.com/17"))
        assert endpoints.delete(made[0].id).deleted
        assert endpoints.create(endpoint("https://a.example.com/17")).id

    def test_it_is_sent_what_it_asks_for_in_its_version_and_signed_with_its_secret(
        self, sandbox: Sandbox, receiver: Receiver
    ) -> None:
        sandbox.control("webhooks", mode="deliver", endpoints=[])
        client = sandbox.client()
        made = client.v1.webhook_endpoints.create(endpoint(receiver.url, api_version=OLD_VERSION))
        intent = client.v1.payment_intents.create(INTENT)
        client.v1.payment_intents.cancel(intent.id)

        body, signature = receiver.received.get(timeout=TIMEOUT_SECONDS)
        told = stripe.Webhook.construct_event(body, signature, made.secret)
        assert (told.type, told.api_version, told.data.object.id) == ("payment_intent.created", OLD_VERSION, intent.id)
        assert client.v1.events.list().data[-1].api_version == stripe.api_version
        assert receiver.received.empty()


class TestAccount:
    def test_two_keys_can_open_one(self, sandbox: Sandbox) -> None:
        sandbox.control("keys", appId="till", key="sk_test_till", accountOf="shop")

        accounts = {sandbox.client(ask(sandbox, app).json()["key"]).v1.accounts.retrieve_current().id for app in "ab"}
        shared = {ask(sandbox, app).json()["key"] for app in ("shop", "till")}
        assert len(accounts) == len(shared) == 2
        assert len({sandbox.client(key).v1.accounts.retrieve_current().id for key in shared}) == 1


class TestKeys:
    def test_one_is_stored_replaced_listed_and_deleted(self, sandbox: Sandbox) -> None:
        path = "/key-service/internal/app-keys"
        for key in ("whsec_first", "whsec_second"):
            body = {"appId": "shop", "provider": "stripe-webhook", "apiKey": key}
            stored = sandbox.call("POST", path, json=body, headers=HEADERS)
            assert stored.json()["maskedKey"].endswith(key[-4:])

        assert ask(sandbox, "shop", provider="stripe-webhook").json()["key"] == "whsec_second"
        listed = sandbox.call("GET", path, params={"appId": "shop"}, headers=HEADERS).json()
        assert listed == {"keys": [{"provider": "stripe-webhook", "maskedKey": "whs...cond"}]}
        sandbox.call("DELETE", f"{path}/stripe-webhook", params={"appId": "shop"}, headers=HEADERS)
        assert ask(sandbox, "shop", provider="stripe-webhook").status_code == 404
