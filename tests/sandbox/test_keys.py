"""The stand-in of key-service, and the keys that it hands out."""

import pytest
import requests
import stripe

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
