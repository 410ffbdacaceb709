"""The stand-in of key-service, and the keys that it hands out."""

import pytest
import requests
import stripe

from app.sandbox.settings import SandboxSettings
from tests.sandbox.conftest import Sandbox, running_sandbox

HEADERS = {
    "X-API-Key": "sandbox-key-service",
    "X-Caller-Service": "stripe",
    "X-Caller-Method": "POST",
    "X-Caller-Path": "/checkout/create",
}
INTENT = {"amount": 500, "currency": "usd"}


def ask(sandbox: Sandbox, app_id: str, *, provider: str = "stripe", **headers: str) -> requests.Response:
    path = f"/key-service/internal/app-keys/{provider}/decrypt"
    return sandbox.call("GET", path, params={"appId": app_id}, headers=HEADERS | headers)


class TestDecrypt:
    def test_every_app_has_a_key_of_its_own(self, sandbox: Sandbox) -> None:
        assert ask(sandbox, "shop").json() == {"provider": "stripe", "key": "sk_test_sandbox_shop"}
        assert ask(sandbox, "shop", provider="stripe-webhook").json()["key"] == "whsec_sandbox_shop"
        assert ask(sandbox, "a-b").json()["key"] != ask(sandbox, "a_b").json()["key"]
        assert sandbox.ledger("key-service")[0]["callerPath"] == "/checkout/create"

    @pytest.mark.parametrize(
        ("headers", "status"),
        [({"X-API-Key": "wrong"}, 401), ({"X-Caller-Path": ""}, 400), ({"X-Caller-Method": ""}, 400)],
    )
    def test_it_is_refused_when_a_header_is_wrong(self, sandbox: Sandbox, headers: dict[str, str], status: int) -> None:
        assert ask(sandbox, "shop", **headers).status_code == status

    def test_an_app_can_have_no_key(self, sandbox: Sandbox) -> None:
        sandbox.control("keys", appId="shop", key=None)
        assert ask(sandbox, "shop").status_code == 404

    def test_all_apps_have_the_key_that_the_settings_name(self) -> None:
        with running_sandbox(SANDBOX_STRIPE_KEY="sk_test_given") as sandbox:
            assert ask(sandbox, "shop").json()["key"] == "sk_test_given"


class TestLiveKeys:
    SENTENCE = "A live key must never be given to a stand-in: use one of test mode."

    @pytest.mark.parametrize("key", ["sk_live_1234567890", "rk_live_1234567890"])
    def test_stripe_refuses_one(self, sandbox: Sandbox, key: str) -> None:
        answer = sandbox.call("POST", "/v1/payment_intents", data=INTENT, auth=(key, ""))

        assert answer.status_code == 401
        assert self.SENTENCE in answer.json()["error"]["message"]
        assert "1234" not in answer.text
        assert sandbox.read("state")["accounts"] == {}

    def test_key_service_takes_none(self, sandbox: Sandbox) -> None:
        answer = sandbox.call("POST", "/_sandbox/keys", json={"appId": "shop", "key": "sk_live_1234567890"})

        assert (answer.status_code, answer.json()) == (400, {"error": self.SENTENCE})
        assert ask(sandbox, "shop").json()["key"].startswith("sk_test_")

    @pytest.mark.parametrize("key", ["sk_live_1234567890", "rk_live_1234567890"])
    def test_the_settings_refuse_one_at_the_start(self, key: str) -> None:
        with pytest.raises(ValueError, match=r"^SANDBOX_STRIPE_KEY is a live key, which must never") as refusal:
            SandboxSettings.from_environment({"SANDBOX_STRIPE_KEY": key})
        assert key not in str(refusal.value)


class TestRotation:
    def test_a_new_key_opens_the_same_account_and_a_revoked_one_nothing(self, sandbox: Sandbox) -> None:
        former = ask(sandbox, "shop").json()["key"]
        intent = sandbox.client(former).v1.payment_intents.create(INTENT)

        sandbox.control("keys", appId="shop", key="sk_test_new")
        sandbox.control("keys/revoke", key=former)

        assert ask(sandbox, "shop").json()["key"] == "sk_test_new"
        assert sandbox.client("sk_test_new").v1.payment_intents.retrieve(intent.id).id == intent.id
        with pytest.raises(stripe.AuthenticationError):
            sandbox.client(former).v1.payment_intents.retrieve(intent.id)

    @pytest.mark.parametrize("key", ["", "pk_test_1", "nonsense"])
    def test_what_is_no_secret_key_opens_nothing(self, sandbox: Sandbox, key: str) -> None:
        answer = sandbox.call("GET", "/v1/payment_intents", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "invalid_request_error"


class TestStore:
    def test_a_key_is_stored_replaced_and_deleted(self, sandbox: Sandbox) -> None:
        provider = "stripe-service-events:1f0e"
        assert ask(sandbox, "shop", provider=provider).status_code == 404
        for key in ("whsec_one", "whsec_two"):
            body = {"appId": "shop", "provider": provider, "apiKey": key}
            assert sandbox.call("POST", "/key-service/internal/app-keys", json=body, headers=HEADERS).ok
            assert ask(sandbox, "shop", provider=provider).json()["key"] == key
        path = f"/key-service/internal/app-keys/{provider}"
        assert sandbox.call("DELETE", path, params={"appId": "shop"}, headers=HEADERS).ok
        assert ask(sandbox, "shop", provider=provider).status_code == 404
