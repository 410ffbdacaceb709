"""Creating payments: what is sent to whom, in which order, and what the caller hears."""

import uuid
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from tests.factories import checkout, intent
from tests.stand_ins import StandIns

CHECKOUT, INTENT = "/checkout/create", "/payment-intent/create"
BODIES = {CHECKOUT: checkout, INTENT: intent}
COSTS = {CHECKOUT: "stripe-checkout-session", INTENT: "stripe-payment-intent"}
TASKS = {CHECKOUT: "create-checkout-session", INTENT: "create-payment-intent"}
EFFECTS = {CHECKOUT: "checkout.session.create", INTENT: "payment_intent.create"}

both_routes = pytest.mark.parametrize("path", [CHECKOUT, INTENT])


def stripe_objects(stand_ins: StandIns, kind: str) -> list[dict[str, Any]]:
    accounts = stand_ins.state()["accounts"].values()
    return [stripe_object for account in accounts for stripe_object in account["objects"].get(kind, [])]


def row(db: Connection) -> Any:
    return db.execute(text("SELECT * FROM operations JOIN payments USING (id)")).one()


class TestCreate:
    @both_routes
    def test_it_creates_run_object_cost_and_completes_in_this_order(
        self, client: FlaskClient, stand_ins: StandIns, db: Connection, path: str
    ) -> None:
        response = client.post(path, json=BODIES[path]())

        assert response.status_code == 200
        assert stand_ins.effects() == ["run.create", EFFECTS[path], "costs.add", "run.update"]
        (run,) = stand_ins.runs().values()
        assert run["status"] == "completed"
        assert run["taskName"] == TASKS[path]
        assert [(cost["costName"], cost["quantity"]) for cost in run["costs"]] == [(COSTS[path], 1)]
        assert row(db).step == "finished"
        assert row(db).run_id == run["id"]

    def test_it_answers_a_checkout_with_the_page_of_stripe(self, client: FlaskClient, stand_ins: StandIns) -> None:
        response = client.post(CHECKOUT, json=checkout())

        (session,) = stripe_objects(stand_ins, "checkout.session")
        assert response.json == {
            "success": True,
            "paymentId": response.json["paymentId"],
            "sessionId": session["id"],
            "url": session["url"],
        }
        assert uuid.UUID(response.json["paymentId"])
        assert session["success_url"] == checkout()["successUrl"]
        assert session["amount_total"] == 4000

    def test_it_answers_an_intent_with_its_client_secret(self, client: FlaskClient, stand_ins: StandIns) -> None:
        response = client.post(INTENT, json=intent(currency="EUR", description="Shoes"))

        (created,) = stripe_objects(stand_ins, "payment_intent")
        assert response.json == {
            "success": True,
            "paymentId": response.json["paymentId"],
            "paymentIntentId": created["id"],
            "clientSecret": created["client_secret"],
            "status": "requires_payment_method",
        }
        assert (created["amount"], created["currency"], created["description"]) == (2000, "eur", "Shoes")
        assert created["automatic_payment_methods"]["enabled"] is True

    @both_routes
    def test_it_puts_its_own_ids_over_the_callers_metadata(
        self, client: FlaskClient, stand_ins: StandIns, path: str
    ) -> None:
        response = client.post(path, json=BODIES[path](metadata={"order": "7", "paymentId": "mine", "appId": "other"}))

        kind = "checkout.session" if path == CHECKOUT else "payment_intent"
        (created,) = stripe_objects(stand_ins, kind)
        (run_id,) = stand_ins.runs()
        assert created["metadata"] == {
            "order": "7",
            "paymentId": response.json["paymentId"],
            "appId": "shop",
            "runId": run_id,
            "orgId": "org_1",
        }

    def test_it_sends_the_customer_alone_when_both_are_given(self, client: FlaskClient, stand_ins: StandIns) -> None:
        client.post(CHECKOUT, json=checkout(customerId="cus_unknown", customerEmail="ada@example.com"))
        response = client.post(CHECKOUT, json=checkout(customerEmail="ada@example.com"))

        assert response.status_code == 200
        (session,) = stripe_objects(stand_ins, "checkout.session")
        assert session["customer_email"] == "ada@example.com"

    def test_it_creates_a_subscription_checkout(self, client: FlaskClient, stand_ins: StandIns) -> None:
        items = [{"priceId": "price_sandbox_monthly", "quantity": 1}]
        response = client.post(CHECKOUT, json=checkout(mode="subscription", lineItems=items))

        assert response.status_code == 200, response.json
        (session,) = stripe_objects(stand_ins, "checkout.session")
        assert session["mode"] == "subscription"

    @both_routes
    def test_it_tells_key_service_its_route_as_a_template(
        self, client: FlaskClient, stand_ins: StandIns, path: str
    ) -> None:
        client.post(path, json=BODIES[path](), headers={"X-Request-ID": "request-7"})

        (entry,) = stand_ins.ledger("key-service")
        assert (entry["callerPath"], entry["requestId"]) == (path, "request-7")
        assert {entry["requestId"] for entry in stand_ins.ledger("runs-service")} == {"request-7"}


class TestIgnoredFields:
    def test_it_names_what_it_does_not_know_and_logs_no_value(
        self, client: FlaskClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        response = client.post(INTENT, json=intent(curency="eur", nothing=None, metadata={"free": "x"}))

        assert response.json["ignoredFields"] == ["curency"]
        (line,) = [record for record in caplog.records if record.name == "app.web"]
        assert (line.levelname, line.getMessage()) == ("WARNING", "fields of the request were ignored: curency")

    def test_it_names_what_is_nested(self, client: FlaskClient) -> None:
        items = [
            {"priceId": "price_sandbox", "quantity": 1},
            {"priceId": "price_sandbox", "quantity": 1, "coupon": "A"},
        ]
        response = client.post(CHECKOUT, json=checkout(lineItems=items))

        assert response.json["ignoredFields"] == ["lineItems.1.coupon"]

    @both_routes
    def test_it_leaves_the_list_out_when_everything_is_known(self, client: FlaskClient, path: str) -> None:
        assert "ignoredFields" not in client.post(path, json=BODIES[path]()).json

    def test_it_names_what_this_request_held_when_the_answer_is_given_again(self, client: FlaskClient) -> None:
        headers = {"Idempotency-Key": "once"}
        first = client.post(INTENT, json=intent(curency="eur"), headers=headers)
        again = client.post(INTENT, json=intent(ammount=1), headers=headers)
        without = client.post(INTENT, json=intent(), headers=headers)

        assert again.json == {**first.json, "ignoredFields": ["ammount"]}
        assert without.json == {name: value for name, value in first.json.items() if name != "ignoredFields"}

    def test_it_repeats_few_and_not_all_of_a_long_one(
        self, client: FlaskClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        response = client.post(INTENT, json=intent(**{f"{number:03}" + "x" * 500: 1 for number in range(100)}))

        assert response.json["ignoredFields"] == [f"{number:03}" + "x" * 97 for number in range(20)]
        (line,) = [record for record in caplog.records if record.name == "app.web"]
        assert len(line.getMessage()) < 300


class TestWhichRun:
    def test_it_makes_a_child_of_the_callers_run_when_an_organisation_is_given(
        self, client: FlaskClient, stand_ins: StandIns, db: Connection
    ) -> None:
        parent = stand_ins.new_run()
        client.post(INTENT, json=intent(runId=parent))

        runs = stand_ins.runs()
        ours = runs[row(db).run_id]
        assert (ours["parentRunId"], row(db).parent_run_id) == (parent, parent)
        assert (runs[parent]["status"], ours["status"]) == ("running", "completed")

    def test_it_calls_the_callers_run_wrong_when_runs_service_knows_no_such_parent(
        self, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        response = client.post(INTENT, json=intent(runId="1b671a64-40d5-491e-99b0-da01ff1f3341"))

        assert (response.status_code, response.json["code"]) == (400, "invalid_request")
        assert response.json["details"]["fieldErrors"] == {"runId": ["runs-service knows no such run."]}
        assert stand_ins.effects() == []

    def test_it_calls_nothing_of_the_callers_wrong_when_the_parent_exists(
        self, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        parent = stand_ins.new_run()
        stand_ins.fault("runs-service", "status", method="POST", status=400)

        assert client.post(INTENT, json=intent(runId=parent)).status_code == 502

    def test_it_makes_a_run_without_parent_when_the_callers_is_no_uuid(
        self, client: FlaskClient, stand_ins: StandIns, db: Connection
    ) -> None:
        assert client.post(INTENT, json=intent(runId="nightly-7")).status_code == 200

        (ours,) = stand_ins.runs().values()
        assert ours["parentRunId"] is None
        assert row(db).parent_run_id == "nightly-7"

    def test_it_charges_the_callers_run_and_never_ends_it_when_no_organisation_is_given(
        self, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        run_id = stand_ins.new_run()
        client.post(INTENT, json=intent(orgId=..., runId=run_id))

        (run,) = stand_ins.runs().values()
        assert run["status"] == "running"
        assert [cost["costName"] for cost in run["costs"]] == ["stripe-payment-intent"]

    def test_it_tracks_nothing_when_neither_is_given(self, client: FlaskClient, stand_ins: StandIns) -> None:
        response = client.post(INTENT, json=intent(orgId=...))

        assert stand_ins.effects() == ["payment_intent.create"]
        status = client.get(f"/status/{response.json['paymentId']}").json
        assert status["payment"]["tracking"] == {"state": "none", "error": None}

    @pytest.mark.parametrize("run_id", ["..", "../x", "a/b?c#d", "%2e%2e"])
    def test_it_fails_the_tracking_when_the_callers_run_is_unknown(
        self, client: FlaskClient, stand_ins: StandIns, run_id: str
    ) -> None:
        response = client.post(INTENT, json=intent(orgId=..., runId=run_id))

        assert response.status_code == 200
        tracking = client.get(f"/status/{response.json['paymentId']}").json["payment"]["tracking"]
        assert tracking["state"] == "failed"
        assert "404" in tracking["error"]


class TestRefusals:
    def test_it_answers_400_when_the_app_has_no_key(self, client: FlaskClient, stand_ins: StandIns) -> None:
        stand_ins.control("keys", appId="shop", key=None)

        response = client.post(INTENT, json=intent())

        assert response.status_code == 400
        assert response.json["error"] == "No Stripe key configured for appId 'shop'"
        assert [entry["service"] for entry in stand_ins.ledger()] == ["key-service"]

    def test_it_gives_stripes_message_and_fails_the_run_when_stripe_calls_it_invalid(
        self, client: FlaskClient, stand_ins: StandIns, db: Connection
    ) -> None:
        response = client.post(CHECKOUT, json=checkout(lineItems=[{"priceId": "price_1", "quantity": 1}]))

        assert response.status_code == 400
        assert response.json["error"] == "No such price: 'price_1'"
        assert response.json["code"] == "resource_missing"
        assert [run["status"] for run in stand_ins.runs().values()] == ["failed"]
        assert (row(db).status, row(db).step) == ("rejected", "finished")

    def test_it_answers_402_when_the_card_is_declined(self, client: FlaskClient, stand_ins: StandIns) -> None:
        error = {"type": "card_error", "code": "card_declined", "message": "Your card was declined."}
        stand_ins.fault("stripe", "json", method="POST", status=402, body={"error": error})

        response = client.post(INTENT, json=intent())

        assert (response.status_code, response.json["code"]) == (402, "card_declined")
        assert response.json["error"] == "Your card was declined."

    def test_it_answers_429_and_keeps_nothing_when_stripe_limits_the_rate(
        self, client: FlaskClient, stand_ins: StandIns, db: Connection
    ) -> None:
        stand_ins.fault("stripe", "status", method="POST", status=429)
        headers = {"Idempotency-Key": "once"}

        response = client.post(INTENT, json=intent(), headers=headers)
        again = client.post(INTENT, json=intent(), headers=headers)

        assert (response.status_code, response.json["code"]) == (429, "stripe_rate_limited")
        assert int(response.headers["Retry-After"]) > 0
        assert again.status_code == 200
        assert [run["status"] for run in stand_ins.runs().values()] == ["completed"]
        assert stand_ins.effects().count("run.create") == 1

    def test_it_never_shows_a_key_that_stripe_repeats(self, client: FlaskClient, stand_ins: StandIns) -> None:
        message = "Invalid: sk_live_abc123 and pi_1_secret_xyz9"
        error = {"type": "invalid_request_error", "message": message}
        stand_ins.fault("stripe", "json", method="POST", status=400, body={"error": error})

        assert client.post(INTENT, json=intent()).json["error"] == "Invalid: [redacted] and [redacted]"


class TestOutages:
    def test_it_asks_nothing_of_stripe_when_the_run_can_not_be_made(
        self, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        stand_ins.fault("runs-service", "status", method="POST", status=500)

        response = client.post(INTENT, json=intent())

        assert response.status_code == 502
        assert response.json["error"] == "Failed to create run in runs-service"
        assert stand_ins.ledger("stripe") == []

    @pytest.mark.parametrize(
        ("service", "fault", "status"),
        [
            ("key-service", {"kind": "status", "status": 500}, 502),
            ("key-service", {"kind": "status", "status": 401}, 502),
            ("key-service", {"kind": "status", "status": 503}, 503),
            ("key-service", {"kind": "html"}, 502),
            ("key-service", {"kind": "json", "body": [1]}, 502),
            ("key-service", {"kind": "redirect"}, 502),
            ("runs-service", {"kind": "status", "status": 400}, 502),
            ("runs-service", {"kind": "status", "status": 503}, 503),
            ("runs-service", {"kind": "html"}, 502),
            ("runs-service", {"kind": "json", "body": [1], "status": 201}, 502),
            ("runs-service", {"kind": "redirect"}, 502),
            ("runs-service", {"kind": "half_body"}, 503),
            ("runs-service", {"kind": "reset"}, 503),
            ("stripe", {"kind": "status", "status": 500}, 502),
            ("stripe", {"kind": "status", "status": 503}, 503),
            ("stripe", {"kind": "status", "status": 401}, 502),
            ("stripe", {"kind": "html"}, 502),
            ("stripe", {"kind": "html", "status": 500}, 502),
            ("stripe", {"kind": "json", "body": [1]}, 502),
            ("stripe", {"kind": "json", "body": {"object": "customer", "id": "cus_1"}}, 502),
            ("stripe", {"kind": "json", "body": {"error": "nope"}, "status": 400}, 502),
            ("stripe", {"kind": "redirect"}, 502),
            ("stripe", {"kind": "half_body"}, 503),
            ("stripe", {"kind": "reset"}, 503),
        ],
        ids=str,
    )
    def test_it_names_the_upstream_and_can_be_tried_again(
        self, client: FlaskClient, stand_ins: StandIns, service: str, fault: dict[str, Any], status: int
    ) -> None:
        stand_ins.fault(service, times=0, **fault)
        headers = {"Idempotency-Key": "once"}

        response = client.post(INTENT, json=intent(), headers=headers)
        stand_ins.heal()
        again = client.post(INTENT, json=intent(), headers=headers)

        assert response.status_code == status, response.json
        name = {"stripe": "Stripe"}.get(service, service)
        assert name in response.json["error"]
        assert ("Retry-After" in response.headers) == (status == 503)
        assert again.status_code == 200
        assert stand_ins.effects().count("payment_intent.create") == 1

    def test_it_uses_a_new_key_when_stripe_refuses_the_cached_one(
        self, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        client.post(INTENT, json=intent())
        old_key = "sk_test_sandbox_shop"
        stand_ins.control("keys/revoke", key=old_key)
        stand_ins.control("keys", appId="shop", key="sk_test_fresh")

        assert client.post(INTENT, json=intent()).status_code == 200

    def test_it_answers_200_and_shows_the_tracking_as_pending_when_the_cost_is_not_taken(
        self, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        stand_ins.fault("runs-service", "status", path="/costs$", status=502)

        response = client.post(INTENT, json=intent())

        assert response.status_code == 200
        tracking = client.get(f"/status/{response.json['paymentId']}").json["payment"]["tracking"]
        assert tracking == {"state": "pending", "error": "runs-service answered 502"}

    def test_it_fails_the_tracking_and_still_ends_the_run_when_the_cost_is_refused_for_good(
        self, client: FlaskClient, stand_ins: StandIns
    ) -> None:
        stand_ins.fault("runs-service", "status", path="/costs$", status=422)

        response = client.post(INTENT, json=intent())

        tracking = client.get(f"/status/{response.json['paymentId']}").json["payment"]["tracking"]
        assert tracking["state"] == "failed"
        assert "422" in tracking["error"]
        assert [run["status"] for run in stand_ins.runs().values()] == ["completed"]


class TestIdempotencyKey:
    @both_routes
    def test_it_gives_the_first_answer_again(self, client: FlaskClient, stand_ins: StandIns, path: str) -> None:
        headers = {"Idempotency-Key": "once"}
        first = client.post(path, json=BODIES[path](), headers=headers)
        again = client.post(path, json=BODIES[path](), headers=headers)

        assert (again.status_code, again.json) == (200, first.json)
        assert stand_ins.effects() == ["run.create", EFFECTS[path], "costs.add", "run.update"]

    def test_it_takes_the_same_body_in_other_words_for_the_same(self, client: FlaskClient) -> None:
        headers = {"Idempotency-Key": "once"}
        first = client.post(INTENT, json=intent(), headers=headers)
        again = client.post(INTENT, json=intent(currency="USD", description=None, ignored=1), headers=headers)

        assert again.json == {**first.json, "ignoredFields": ["ignored"]}

    def test_it_gives_a_refusal_again(self, client: FlaskClient, stand_ins: StandIns) -> None:
        body, headers = checkout(lineItems=[{"priceId": "price_1", "quantity": 1}]), {"Idempotency-Key": "once"}
        first = client.post(CHECKOUT, json=body, headers=headers)
        calls = len(stand_ins.ledger())
        again = client.post(CHECKOUT, json=body, headers=headers)

        assert again.status_code == 400
        assert (again.json["error"], again.json["code"]) == (first.json["error"], first.json["code"])
        assert len(stand_ins.ledger()) == calls

    @pytest.mark.parametrize("change", [{"amountInCents": 2001}, {"metadata": {"a": "b"}}, {"orgId": "org_2"}])
    def test_it_refuses_another_body(self, client: FlaskClient, change: dict[str, Any]) -> None:
        headers = {"Idempotency-Key": "once"}
        client.post(INTENT, json=intent(), headers=headers)
        response = client.post(INTENT, json=intent(**change), headers=headers)

        assert (response.status_code, response.json["code"]) == (422, "idempotency_key_reused")

    def test_it_refuses_another_route(self, client: FlaskClient) -> None:
        headers = {"Idempotency-Key": "once"}
        client.post(INTENT, json=intent(), headers=headers)

        assert client.post(CHECKOUT, json=checkout(), headers=headers).status_code == 422

    def test_it_is_scoped_to_the_app(self, client: FlaskClient) -> None:
        headers = {"Idempotency-Key": "once"}
        first = client.post(INTENT, json=intent(), headers=headers)
        other = client.post(INTENT, json=intent(appId="other"), headers=headers)

        assert other.status_code == 200
        assert other.json["paymentId"] != first.json["paymentId"]

    def test_it_answers_409_while_the_first_is_being_worked_on(self, client: FlaskClient, db: Connection) -> None:
        headers = {"Idempotency-Key": "once"}
        client.post(INTENT, json=intent(), headers=headers)
        db.execute(
            text("UPDATE operations SET answer = NULL, answer_status = NULL, step = 'asked',"
                 " lease_until = now() + interval '1 minute'")
        )  # fmt: skip
        response = client.post(INTENT, json=intent(), headers=headers)

        assert (response.status_code, response.json["code"]) == (409, "idempotency_key_in_use")
        assert int(response.headers["Retry-After"]) > 0

    @pytest.mark.parametrize(
        "fault", [{"kind": "reset", "executed": True}, {"kind": "half_body", "executed": True}], ids=str
    )
    def test_it_goes_on_from_where_an_outage_stopped_the_first(
        self, client: FlaskClient, stand_ins: StandIns, db: Connection, fault: dict[str, Any]
    ) -> None:
        stand_ins.fault("stripe", method="POST", **fault)
        headers = {"Idempotency-Key": "once"}

        assert client.post(INTENT, json=intent(), headers=headers).status_code == 503
        payment_id = str(row(db).id)
        again = client.post(INTENT, json=intent(), headers=headers)

        assert (again.status_code, again.json["paymentId"]) == (200, payment_id)
        assert stand_ins.effects() == ["run.create", "payment_intent.create", "costs.add", "run.update"]

    def test_it_does_not_take_a_later_rate_limit_for_news_of_the_first_try(
        self, client: FlaskClient, stand_ins: StandIns, db: Connection
    ) -> None:
        """Taking the ask back whenever a try wasn't executed would forget the earlier one that was."""
        stand_ins.fault("stripe", "reset", method="POST", executed=True)
        stand_ins.fault("stripe", "status", method="POST", status=429)
        headers = {"Idempotency-Key": "once"}

        assert client.post(INTENT, json=intent(), headers=headers).status_code == 503
        assert client.post(INTENT, json=intent(), headers=headers).status_code == 429
        assert row(db).step == "asked"
        assert client.post(INTENT, json=intent(), headers=headers).status_code == 200
        assert stand_ins.effects().count("payment_intent.create") == 1
