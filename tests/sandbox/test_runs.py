"""The stand-in of runs-service."""

from typing import Any

import pytest
import requests

from tests.sandbox.conftest import Sandbox

RUN = {"clerkOrgId": "org", "appId": "shop", "serviceName": "stripe-service", "taskName": "create-payment-intent"}
COSTS = {"items": [{"costName": "stripe-payment-intent", "quantity": 1}]}


def call(
    sandbox: Sandbox, method: str, path: str, *, key: str = "sandbox-runs-service", **options: Any
) -> requests.Response:
    return sandbox.call(method, f"/runs-service/v1/runs{path}", headers={"X-API-Key": key}, **options)


def create(sandbox: Sandbox, **changes: Any) -> Any:
    answer = call(sandbox, "POST", "", json=RUN | changes)
    assert answer.status_code == 201
    return answer.json()


class TestRuns:
    def test_it_lives_from_running_to_completed(self, sandbox: Sandbox) -> None:
        run = create(sandbox)
        assert run["status"] == "running"

        costs = call(sandbox, "POST", f"/{run['id']}/costs", json=COSTS)
        ended = [call(sandbox, "PATCH", f"/{run['id']}", json={"status": "completed"}).json() for _ in range(2)]

        assert costs.status_code == 201
        assert ended[0] == ended[1] == call(sandbox, "GET", f"/{run['id']}").json()
        assert [(cost["costName"], cost["quantity"]) for cost in ended[0]["costs"]] == [("stripe-payment-intent", 1)]
        effects = [entry["effect"] for entry in sandbox.ledger("runs-service")]
        assert effects == ["run.create", "costs.add", "run.update", "run.update", None]

    @pytest.mark.parametrize(
        "changes",
        [
            {"clerkOrgId": ""},
            {"taskName": None},
            {"parentRunId": "x"},
            {"parentRunId": "1b671a64-40d5-491e-99b0-da01ff1f3341"},
        ],
    )
    def test_it_is_refused_when_a_field_is_wrong(self, sandbox: Sandbox, changes: dict[str, Any]) -> None:
        assert call(sandbox, "POST", "", json=RUN | changes).status_code == 400

    def test_it_is_refused_without_the_key(self, sandbox: Sandbox) -> None:
        assert call(sandbox, "POST", "", json=RUN, key="wrong").status_code == 401

    def test_costs_are_refused_when_nobody_knows_them(self, sandbox: Sandbox) -> None:
        run = create(sandbox)
        unknown = {"items": [{"costName": "gold", "quantity": 1}]}
        assert call(sandbox, "POST", f"/{run['id']}/costs", json=unknown).status_code == 422
        assert call(sandbox, "POST", "/none/costs", json=COSTS).status_code == 404

    def test_they_are_listed_newest_first_by_page(self, sandbox: Sandbox) -> None:
        parent = create(sandbox, clerkOrgId="other")
        made = [create(sandbox, parentRunId=parent["id"])["id"] for _ in range(3)]
        query = {"clerkOrgId": "org", "status": "running", "startedAfter": parent["startedAt"], "limit": 2, "offset": 1}

        page = call(sandbox, "GET", "", params=query).json()

        assert [run["id"] for run in page["runs"]] == [made[1], made[0]]
        assert (page["limit"], page["offset"]) == (2, 1)

    def test_only_a_newer_version_honours_an_idempotency_key(self, sandbox: Sandbox) -> None:
        assert create(sandbox, idempotencyKey="k")["id"] != create(sandbox, idempotencyKey="k")["id"]

        sandbox.control("runs", honourIdempotencyKey=True)

        run = create(sandbox, idempotencyKey="k")
        assert create(sandbox, idempotencyKey="k")["id"] == run["id"]
        for _ in range(2):
            call(sandbox, "POST", f"/{run['id']}/costs", json=COSTS | {"idempotencyKey": "c"})
        assert len(call(sandbox, "GET", f"/{run['id']}").json()["costs"]) == 1
        assert [entry["replayed"] for entry in sandbox.ledger("runs-service")][-4:] == [True, False, True, False]
