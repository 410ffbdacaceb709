"""Who a request is from, as its headers say."""

import uuid
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.models import KeyScope
from app.services import Services
from app.services.access.keys import create_key
from tests.document import OPERATIONS
from tests.factories import checkout, intent
from tests.stand_ins import StandIns

IDENTITY = {"X-Org-Id": "org_7", "X-Brand-Id": "brand_7, brand_8", "X-Campaign-Id": "campaign_7"}
FIELDS = {"orgId": "org_7", "brandId": "brand_7", "campaignId": "campaign_7"}


def shown(client: FlaskClient, answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.json
    return dict(client.get(f"/status/{answer.json['paymentId']}").json["payment"])


class TestHeaders:
    @pytest.mark.parametrize(("path", "body"), [("/checkout/create", checkout), ("/payment-intent/create", intent)])
    def test_they_stand_in_for_fields(self, client: FlaskClient, stand_ins: StandIns, path: str, body: Any) -> None:
        run_id = stand_ins.new_run()
        made = client.post(path, json=body(orgId=...), headers={**IDENTITY, "X-Run-Id": run_id})
        payment = shown(client, made)
        assert {name: payment[name] for name in FIELDS} == FIELDS
        assert payment["parentRunId"] == run_id

    def test_a_caller_who_says_by_headers_alone_who_it_is_is_answered(
        self, app: Flask, client: FlaskClient, services: Services
    ) -> None:
        key = create_key("shop", name=None, scope=KeyScope.MONEY, services=services)["key"]
        headers = {"X-API-Key": key, **IDENTITY}
        made = app.test_client().post("/payment-intent/create", json={"amountInCents": 700}, headers=headers)
        assert shown(client, made)["appId"] == "shop"
        for path in ("/stats", "/status/by-org/org_7", f"/status/{made.json['paymentId']}"):
            assert app.test_client().get(path, headers=headers).status_code == 200

    @pytest.mark.parametrize("said", ["", None, "org_7"])
    def test_a_field_that_says_nothing_or_the_same_is_no_conflict(self, client: FlaskClient, said: str | None) -> None:
        assert shown(client, client.post("/payment-intent/create", json=intent(orgId=said), headers=IDENTITY))[
            "orgId"
        ] == ("org_7")

    @pytest.mark.parametrize(
        ("header", "field"),
        [("X-Org-Id", "orgId"), ("X-Run-Id", "runId"), ("X-Brand-Id", "brandId"), ("X-Campaign-Id", "campaignId")],
    )
    def test_two_that_contradict_are_refused(
        self, client: FlaskClient, stand_ins: StandIns, header: str, field: str
    ) -> None:
        answer = client.post("/payment-intent/create", json=intent(**{field: "one"}), headers={header: "another"})
        assert (answer.status_code, answer.json["code"]) == (400, "identity_conflict")
        assert header in answer.json["error"]
        assert stand_ins.ledger() == []

    @pytest.mark.parametrize("sent", ["x" * 201, "a\tb"])
    def test_what_holds_for_a_field_holds_for_its_header(self, client: FlaskClient, sent: str) -> None:
        answer = client.post("/payment-intent/create", json=intent(orgId=...), headers={"X-Org-Id": sent})
        assert (answer.status_code, list(answer.json["details"]["fieldErrors"])) == (400, ["orgId"])

    def test_they_may_hold_any_letters(self, client: FlaskClient) -> None:
        as_sent = "team/é".encode().decode("latin-1")
        made = client.post("/payment-intent/create", json=intent(orgId=...), headers={"X-Org-Id": as_sent})
        assert shown(client, made)["orgId"] == "team/é"

    def test_lists_and_statistics_are_narrowed_by_the_organisation(
        self, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        run_id = stand_ins.new_run()
        for org_id in ("org_1", "org_7"):
            client.post("/payment-intent/create", json=intent(orgId=org_id, runId=run_id, brandId="brand_1"))
        of_run = client.get(f"/status/by-run/{run_id}", headers=IDENTITY).json["payments"]
        assert [payment["orgId"] for payment in of_run] == ["org_7"]
        assert client.get("/stats?brandId=brand_1", headers=IDENTITY).json["totalPayments"] == 1
        assert client.post("/stats", json={"runIds": [run_id]}, headers=IDENTITY).json["totalPayments"] == 1
        for path in ("/status/by-org/org_1", "/summary/by-org/org_1", "/stats?orgId=org_1", "/stats?clerkOrgId=org_1"):
            assert client.get(path, headers=IDENTITY).json["code"] == "identity_conflict"

    def test_the_document_names_them(self) -> None:
        named = {each.path: {p["name"] for p in each.parameters if p["in"] == "header"} for each in OPERATIONS}
        assert {"X-Org-Id", "X-Run-Id", "X-Brand-Id", "X-Campaign-Id"} <= named["/checkout/create"]
        assert "X-Org-Id" in named["/stats"]

    def test_an_idempotency_key_tells_the_same_request_by_either(self, client: FlaskClient) -> None:
        key = {"Idempotency-Key": uuid.uuid4().hex}
        by_header = client.post("/payment-intent/create", json=intent(orgId=...), headers={**key, "X-Org-Id": "org_1"})
        by_field = client.post("/payment-intent/create", json=intent(orgId="org_1"), headers=key)
        assert by_header.json == by_field.json
