"""Asking what has become of payments."""

import uuid
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from flask.testing import FlaskClient
from marshmallow import Schema
from sqlalchemy import Connection, text

from app.request_context import EXTENSION_KEY
from app.schemas.stats import StatsSchema, SummarySchema
from app.schemas.status import PaymentDetailsSchema, PaymentPageSchema
from tests.factories import checkout, intent
from tests.stand_ins import StandIns
from tests.webhooks import deliver, event

PAYMENT_FIELDS = {
    "id", "orgId", "runId", "parentRunId", "brandId", "appId", "campaignId", "stripePaymentIntentId",
    "stripeCheckoutSessionId", "stripeSubscriptionId", "stripeCustomerId", "amountInCents", "currency", "status",
    "description", "metadata", "amountReceivedInCents", "amountRefundedInCents", "createdAt", "updatedAt", "tracking",
    "origin", "captureMethod", "stripeInvoiceId", "amountReturnedInCents", "subscriptionStatus",
}  # fmt: skip


NOTHING = {
    "totalPayments": 0, "totalAmountInCents": 0, "successCount": 0, "failureCount": 0, "refundCount": 0,
    "disputeCount": 0, "currencies": [],
}  # fmt: skip


def create(client: FlaskClient, **changes: Any) -> str:
    return str(client.post("/payment-intent/create", json=intent(**changes)).json["paymentId"])


def pay(client: FlaskClient, payment_id: str, **fields: Any) -> str:
    """Let Stripe tell that a payment intent succeeded; return its id."""
    intent_id = client.get(f"/status/{payment_id}").json["payment"]["stripePaymentIntentId"]
    paid = {"id": intent_id, "object": "payment_intent", "amount_received": 2000, "currency": "usd", **fields}
    deliver(client, event("payment_intent.succeeded", paid))
    return str(intent_id)


def is_described_by(schema: Schema, answer: Any) -> bool:
    """Whether the schema reads an answer and would write the same: nothing is missing, too much, or of another kind."""
    return bool(orjson.loads(orjson.dumps(schema.dump(flattened(schema.load(answer))))) == answer)


def flattened(loaded: Any) -> Any:
    """What was read, with a payment's tracking beside its other columns, as the database has it."""
    if isinstance(loaded, list):
        return [flattened(each) for each in loaded]
    if not isinstance(loaded, dict):
        return loaded
    return {key: flattened(value) for key, value in loaded.items()} | loaded.get("tracking", {})


class TestShowPayment:
    def test_it_shows_the_whole_payment(self, client: FlaskClient, stand_ins: StandIns) -> None:
        payment_id = create(
            client, brandId="b", campaignId="c", description="Shoes", metadata={"order": "7"}, currency="eur"
        )
        answer = client.get(f"/status/{payment_id}").json

        (run_id,) = stand_ins.runs()
        assert set(answer["payment"]) == PAYMENT_FIELDS
        shown = {key: answer["payment"][key] for key in ("id", "orgId", "runId", "brandId", "campaignId", "appId")}
        assert shown == {
            "id": payment_id, "orgId": "org_1", "runId": run_id, "brandId": "b", "campaignId": "c", "appId": "shop"
        }  # fmt: skip
        assert (answer["payment"]["amountInCents"], answer["payment"]["currency"]) == (2000, "eur")
        assert (answer["payment"]["description"], answer["payment"]["metadata"]) == ("Shoes", {"order": "7"})
        assert answer["payment"]["createdAt"].endswith("+00:00")
        assert answer["payment"]["tracking"] == {"state": "complete", "error": None}
        assert answer["events"] == {"successes": [], "failures": [], "refunds": [], "disputes": []}

    def test_it_shows_each_entry_once_in_its_latest_state(self, client: FlaskClient) -> None:
        payment_id = create(client)
        intent_id = pay(client, payment_id, latest_charge="ch_1")
        charge = {"id": "ch_1", "object": "charge", "payment_intent": intent_id, "receipt_url": "https://r.test/1"}
        deliver(client, event("charge.updated", charge))
        refund = {"id": "re_1", "object": "refund", "payment_intent": intent_id, "charge": "ch_1", "amount": 500,
                  "currency": "usd", "created": 1_700_000_000, "reason": "requested_by_customer"}  # fmt: skip
        deliver(client, event("refund.created", refund | {"status": "pending"}))
        deliver(client, event("refund.updated", refund | {"status": "succeeded"}))
        dispute = {"id": "du_1", "object": "dispute", "payment_intent": intent_id, "charge": "ch_1", "amount": 2000,
                   "currency": "usd", "created": 1_700_000_000, "reason": "fraudulent"}  # fmt: skip
        deliver(client, event("charge.dispute.created", dispute | {"status": "needs_response"}, created=1))
        deliver(client, event("charge.dispute.closed", dispute | {"status": "won"}, created=2))

        answer = client.get(f"/status/{payment_id}").json
        (success,) = answer["events"]["successes"]
        assert (success["stripePaymentIntentId"], success["stripeChargeId"]) == (intent_id, "ch_1")
        assert (success["amountInCents"], success["receiptUrl"]) == (2000, "https://r.test/1")
        assert answer["events"]["refunds"] == [
            {"id": "re_1", "stripeRefundId": "re_1", "stripePaymentIntentId": intent_id, "stripeChargeId": "ch_1",
             "amountInCents": 500, "currency": "usd", "reason": "requested_by_customer", "status": "succeeded",
             "createdAt": "2023-11-14T22:13:20+00:00"}
        ]  # fmt: skip
        (dispute_shown,) = answer["events"]["disputes"]
        assert (dispute_shown["stripeDisputeId"], dispute_shown["status"]) == ("du_1", "won")
        assert answer["payment"]["status"] == "partially_refunded"

    def test_its_answer_is_as_described(self, client: FlaskClient) -> None:
        payment_id = create(client, description='\u2603 "shoes"\n', metadata={"order_id": "7", "o\\": "\u00e9"})
        intent_id = pay(client, payment_id, latest_charge="ch_1", currency=None)
        failed = {"id": intent_id, "object": "payment_intent", "last_payment_error": {"code": "c", "message": "m"}}
        deliver(client, event("payment_intent.payment_failed", failed))
        reversal = {"payment_intent": intent_id, "charge": "ch_1", "amount": 500, "currency": "usd", "status": "won"}
        deliver(client, event("refund.created", reversal | {"id": "re_1", "object": "refund"}))
        deliver(client, event("charge.dispute.closed", reversal | {"id": "du_1", "object": "dispute"}))

        answer = client.get(f"/status/{payment_id}").json

        assert is_described_by(PaymentDetailsSchema(), answer)
        assert [len(answer["events"][kind]) for kind in ("successes", "failures", "refunds", "disputes")] == [1] * 4
        assert answer["payment"]["metadata"] == {"order_id": "7", "o\\": "\u00e9"}
        assert answer["payment"]["description"] == '\u2603 "shoes"\n'

    def test_its_times_are_in_utc_whatever_the_zone_of_the_server(self, client: FlaskClient, db: Connection) -> None:
        payment_id = create(client)
        db.execute(text("UPDATE payments SET created_at = '2026-01-02T03:04:05.000006Z'"))
        name = db.execute(text("SELECT current_database()")).scalar_one()
        db.execute(text(f"ALTER DATABASE {name} SET timezone = 'Asia/Kolkata'"))
        client.application.extensions[EXTENSION_KEY].database.engine.dispose()
        try:
            shown = client.get(f"/status/{payment_id}").json["payment"]["createdAt"]
        finally:
            db.execute(text(f"ALTER DATABASE {name} RESET timezone"))
        assert shown == "2026-01-02T03:04:05.000006+00:00"

    @pytest.mark.parametrize(
        "payment_id", ["00000000-0000-4000-8000-000000000000", "7", "x" * 500, "%00", "caf\u00e9", "..%2f"]
    )
    def test_it_answers_404_for_any_other_id(self, client: FlaskClient, payment_id: str) -> None:
        response = client.get(f"/status/{payment_id}")

        assert response.status_code == 404

    def test_it_says_so(self, client: FlaskClient) -> None:
        assert client.get(f"/status/{uuid.uuid4()}").json["error"] == "Payment not found"

    def test_it_keeps_no_client_secret(self, client: FlaskClient, db: Connection) -> None:
        created = client.post("/payment-intent/create", json=intent()).json
        secret = created["clientSecret"]
        assert secret not in client.get(f"/status/{created['paymentId']}").text
        for table in ("payments", "stripe_events"):
            dump = db.execute(text(f"SELECT string_agg(t::text, '') FROM {table} t")).scalar() or ""
            assert "_secret_" not in dump


class TestLists:
    def test_it_lists_an_organisation_newest_first(self, client: FlaskClient) -> None:
        made = [create(client) for _ in range(5)]
        create(client, orgId="org_2")

        page = client.get("/status/by-org/org_1").json
        assert is_described_by(PaymentPageSchema(), page)
        assert [payment["id"] for payment in page["payments"]] == made[::-1]
        assert set(page["payments"][0]) == PAYMENT_FIELDS
        assert page["nextCursor"] is None

    def test_its_cursor_stays_right_while_payments_are_added(self, client: FlaskClient) -> None:
        """Fails when pages are counted from the start instead of from a position."""
        made = [create(client) for _ in range(7)]
        seen: list[str] = []
        cursor = ""
        while True:
            page = client.get("/status/by-org/org_1", query_string={"limit": 2, "cursor": cursor or None}).json
            seen += [payment["id"] for payment in page["payments"]]
            create(client)
            cursor = page["nextCursor"]
            if not cursor:
                break
        assert seen == made[::-1]

    def test_it_keeps_apart_payments_that_were_made_at_the_same_time(self, client: FlaskClient, db: Connection) -> None:
        made = {create(client) for _ in range(6)}
        db.execute(text("UPDATE payments SET created_at = '2026-01-01T00:00:00Z'"))
        seen: list[str] = []
        cursor = None
        while cursor is not None or not seen:
            page = client.get("/status/by-org/org_1", query_string={"limit": 1, "cursor": cursor}).json
            seen += [payment["id"] for payment in page["payments"]]
            cursor = page["nextCursor"]
        assert (len(seen), set(seen)) == (6, made)

    def test_it_finds_a_run_whether_it_is_ours_or_the_callers(self, client: FlaskClient, stand_ins: StandIns) -> None:
        callers = stand_ins.new_run()
        child, charged = create(client, runId=callers), create(client, orgId=..., runId=callers)
        ours = client.get(f"/status/{child}").json["payment"]["runId"]

        assert [each["id"] for each in client.get(f"/status/by-run/{callers}").json["payments"]] == [charged, child]
        assert [each["id"] for each in client.get(f"/status/by-run/{ours}").json["payments"]] == [child]
        paged = client.get(f"/status/by-run/{callers}", query_string={"limit": 1}).json
        rest = client.get(f"/status/by-run/{callers}", query_string={"limit": 1, "cursor": paged["nextCursor"]}).json
        assert [each["id"] for each in (*paged["payments"], *rest["payments"])] == [charged, child]

    def test_it_leaves_out_what_was_rejected(self, client: FlaskClient) -> None:
        client.post("/checkout/create", json=checkout(lineItems=[{"priceId": "price_1", "quantity": 1}]))

        assert client.get("/status/by-org/org_1").json == {"payments": [], "nextCursor": None}
        assert client.get("/stats").json["totalPayments"] == 0

    @pytest.mark.parametrize(
        "query", ["limit=0", "limit=501", "limit=x", "limit=1.5", "cursor=x", "cursor=%00", "cursor=" + "a" * 201]
    )
    def test_it_refuses_a_page_that_is_none(self, client: FlaskClient, query: str) -> None:
        response = client.get(f"/status/by-org/org_1?{query}")

        assert response.status_code == 400
        assert list(response.json["details"]["fieldErrors"]) == [query.split("=")[0]]

    @pytest.mark.parametrize("limit", [1, 500])
    def test_it_takes_a_page_within_its_bounds(self, client: FlaskClient, limit: int) -> None:
        assert client.get(f"/status/by-org/org_1?limit={limit}").status_code == 200

    def test_it_answers_an_empty_list_for_an_organisation_without_payments(self, client: FlaskClient) -> None:
        for path in ("by-org/nobody", "by-run/none", "by-org/a%00b"):
            assert client.get(f"/status/{path}").json == {"payments": [], "nextCursor": None}


class TestNames:
    @pytest.mark.parametrize("name", ["team/x é", "/x", "a//b/", "100%", "a?b#c", "..x", "a b"])
    def test_it_finds_an_organisation_and_a_run_by_any_name(
        self, client: FlaskClient, stand_ins: StandIns, name: str
    ) -> None:
        payment_id = create(client, orgId=name, runId=name)
        for path in ("by-org", "by-run"):
            found = client.get(f"/status/{path}/{quote(name, safe='')}").json
            assert [payment["id"] for payment in found["payments"]] == [payment_id]
        assert client.get("/stats", query_string={"orgId": name}).json["totalPayments"] == 1

    @pytest.mark.parametrize("field", ["orgId", "runId"])
    def test_it_refuses_one_that_no_path_can_hold(self, client: FlaskClient, field: str) -> None:
        response = client.post("/payment-intent/create", json=intent(**{field: "a\nb"}))

        assert response.status_code == 400
        assert list(response.json["details"]["fieldErrors"]) == [field]


class TestStats:
    def test_it_counts_and_sums_by_currency(self, client: FlaskClient) -> None:
        intent_id = pay(client, create(client))
        create(client, currency="eur", amountInCents=700)
        refund = {"object": "refund", "payment_intent": intent_id, "status": "succeeded", "currency": "usd"}
        deliver(client, event("refund.created", refund | {"id": "re_1", "amount": 500}))
        dispute = {"id": "du_1", "object": "dispute", "payment_intent": intent_id, "amount": 300, "status": "lost"}
        deliver(client, event("charge.dispute.closed", dispute))
        failed = {"id": intent_id, "object": "payment_intent"}
        deliver(client, event("payment_intent.payment_failed", failed, created=1))

        assert is_described_by(StatsSchema(), client.get("/stats").json)
        assert client.get("/stats").json == {
            "totalPayments": 2, "totalAmountInCents": 2700, "successCount": 1, "failureCount": 1, "refundCount": 1,
            "disputeCount": 1,
            "currencies": [
                {"currency": "eur", "payments": 1, "grossInCents": 0, "refundedInCents": 0, "disputedInCents": 0,
                 "netInCents": 0},
                {"currency": "usd", "payments": 1, "grossInCents": 2000, "refundedInCents": 500,
                 "disputedInCents": 300, "netInCents": 1200},
            ],
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("filters", "count"),
        [
            ({}, 3),
            ({"orgId": "org_1"}, 2),
            ({"clerkOrgId": "org_1"}, 2),
            ({"orgId": "org_1", "clerkOrgId": "org_9"}, 2),
            ({"orgId": None}, 3),
            ({"brandId": "b"}, 1),
            ({"appId": "other"}, 1),
            ({"campaignId": "c"}, 1),
            ({"orgId": "org_1", "appId": "other"}, 0),
            ({"orgId": "nobody"}, 0),
            ({"runIds": []}, 0),
            ({"runIds": ["no-run"]}, 0),
        ],
    )
    def test_it_counts_what_matches_every_filter(
        self, client: FlaskClient, filters: dict[str, Any], count: int
    ) -> None:
        create(client, brandId="b")
        create(client, campaignId="c")
        create(client, orgId="org_2", appId="other")

        assert client.post("/stats", json=filters).json["totalPayments"] == count
        if filters.get("runIds") != []:
            given = {name: value for name, value in filters.items() if value is not None}
            assert client.get("/stats", query_string=given).json["totalPayments"] == count

    def test_it_refuses_a_filter_that_it_does_not_know_though_it_is_null(self, client: FlaskClient) -> None:
        response = client.post("/stats", json={"": None, "orgId": "org_1"})
        assert (response.status_code, response.json["code"]) == (400, "unknown_filter")

    @pytest.mark.parametrize("by", ["org", "run"])
    def test_it_lists_nothing_of_a_name_with_a_line_end(self, client: FlaskClient, by: str) -> None:
        assert client.get(f"/status/by-{by}/a%0Ab").json == {"payments": [], "nextCursor": None}

    def test_it_refuses_a_filter_in_the_query_of_a_post(self, client: FlaskClient) -> None:
        response = client.post("/stats?orgId=org_1", json={})
        assert (response.status_code, response.json["code"]) == (400, "unknown_filter")

    @pytest.mark.parametrize("filters", [{"unheardOf": 1}, {"org_id": "org_1", "appId": "shop"}, {"": ""}])
    def test_it_refuses_a_filter_that_it_does_not_know(self, client: FlaskClient, filters: dict[str, Any]) -> None:
        """Fails when it is dropped: a wider question would be answered than was asked."""
        by_query = [getattr(client, method)("/stats", query_string=filters) for method in ("get", "post")]
        for response in (client.post("/stats", json=filters), *by_query):
            assert (response.status_code, response.json["code"]) == (400, "unknown_filter")
            assert next(iter(filters)) in response.json["error"]

    def test_it_finds_payments_by_runs(self, client: FlaskClient, stand_ins: StandIns) -> None:
        callers = stand_ins.new_run()
        create(client, runId=callers)
        create(client)
        create(client)
        (mine,) = [run for run in stand_ins.runs().values() if run.get("parentRunId") == callers]

        assert client.post("/stats", json={"runIds": [callers, mine["id"]]}).json["totalPayments"] == 1
        assert client.get(f"/stats?runIds={callers}&runIds=x").json["totalPayments"] == 1
        assert client.get(f"/stats?runIds={callers},x").json["totalPayments"] == 1

    @pytest.mark.parametrize("body", [b"", b"{}"])
    def test_it_needs_no_filter(self, client: FlaskClient, body: bytes) -> None:
        assert client.post("/stats", data=body, content_type="application/json").json == NOTHING
        assert client.post("/stats").json == NOTHING

    @pytest.mark.parametrize(
        "body", [{"orgId": 1}, {"orgId": "o" * 201}, {"runIds": "r"}, {"runIds": [1]}, {"runIds": ["r"] * 1001},
                 {"appId": "a\x00"}, {"orgId": ""}, {"brandId": ""}, {"runIds": [""]}]
    )  # fmt: skip
    def test_it_refuses_filters_that_are_none(self, client: FlaskClient, body: dict[str, Any]) -> None:
        response = client.post("/stats", json=body)

        assert response.status_code == 400
        assert list(response.json["details"]["fieldErrors"]) == list(body)

    @pytest.mark.parametrize("body", [{"runIds": ["", "r"]}, {"clerkOrgId": ""}, {"campaignId": ""}])
    def test_it_refuses_an_empty_filter(self, client: FlaskClient, body: dict[str, Any]) -> None:
        response = client.post("/stats", json=body)

        assert response.status_code == 400
        assert list(response.json["details"]["fieldErrors"]) == list(body)

    def test_it_counts_the_runs_before_it_reads_them(self, client: FlaskClient) -> None:
        for response in (
            client.post("/stats", json={"runIds": [""] * 1001}),
            client.get("/stats", query_string={"runIds": "," * 1000}),
        ):
            assert response.status_code == 400
            assert response.json["details"]["fieldErrors"] == {"runIds": ["Longer than maximum length 1000."]}


class TestSummary:
    def test_it_sums_what_an_organisation_has_paid(self, client: FlaskClient) -> None:
        intent_id = pay(client, create(client))
        pay(client, create(client, orgId="org_2"))
        create(client, currency="eur")
        dispute = {"object": "dispute", "payment_intent": intent_id}
        deliver(client, event("charge.dispute.closed", dispute | {"id": "du_1", "amount": 300, "status": "lost"}))
        held = dispute | {"id": "du_2", "amount": 200, "status": "needs_response"}
        deliver(client, event("charge.dispute.created", held))
        refund = {"object": "refund", "id": "re_1", "payment_intent": intent_id, "status": "succeeded", "amount": 500}
        deliver(client, event("refund.created", refund))

        answer = client.get("/summary/by-org/org_1").json

        assert is_described_by(SummarySchema(), answer)
        nothing = dict.fromkeys(("grossInCents", "refundedInCents", "disputedInCents", "lostInCents", "netInCents"), 0)
        assert answer == {
            "orgId": "org_1",
            "totals": [
                {"currency": "eur", "payments": 1, **nothing},
                {"currency": "usd", "payments": 1, "grossInCents": 2000, "refundedInCents": 500,
                 "disputedInCents": 500, "lostInCents": 300, "netInCents": 1000},
            ],
        }  # fmt: skip

    def test_it_narrows_by_app_and_time(self, client: FlaskClient, db: Connection) -> None:
        create(client)
        db.execute(text("UPDATE payments SET created_at = '2026-01-01T00:00:00Z'"))
        create(client)
        create(client, appId="other")
        client.post("/checkout/create", json=checkout(lineItems=[{"priceId": "price_1", "quantity": 1}]))

        def payments(**query: str) -> int:
            totals = client.get("/summary/by-org/org_1", query_string=query).json["totals"]
            return sum(each["payments"] for each in totals)

        assert (payments(), payments(appId="shop"), payments(appId="other")) == (3, 2, 1)
        assert payments(before="2026-01-01T00:00:00Z") == 0
        assert payments(before="2026-01-01T00:00:00.000001Z") == 1
        assert payments(before="2026-01-02") == 1

    @pytest.mark.parametrize("org_id", ["nobody", "a%00b", "a%0Ab", "team%2Fx"])
    def test_it_is_empty_for_an_organisation_without_payments(self, client: FlaskClient, org_id: str) -> None:
        assert client.get(f"/summary/by-org/{org_id}").json["totals"] == []

    @pytest.mark.parametrize("query", ["before=", "before=x", "before=1&before=2", "appId="])
    def test_it_refuses_a_question_that_is_none(self, client: FlaskClient, query: str) -> None:
        response = client.get(f"/summary/by-org/org_1?{query}")
        assert response.status_code == 400
        assert list(response.json["details"]["fieldErrors"]) == [query.partition("=")[0]]


class TestQueries:
    @pytest.mark.parametrize(
        "path",
        [
            *(f"/stats?{name}=" for name in ("runIds", "orgId", "clerkOrgId", "brandId", "appId", "campaignId")),
            *(f"/stats?{name}=a&{name}=b" for name in ("orgId", "clerkOrgId", "brandId", "appId", "campaignId")),
            *(f"/stats?runIds={runs}" for runs in (",", "a,", ",a", "a,,b", "a&runIds=")),
            *(f"/status/by-{what}/a?limit=1&limit=2" for what in ("org", "run")),
            *(f"/status/by-{what}/a?limit=" for what in ("org", "run")),
            *(f"/status/by-{what}/a?cursor=a&cursor=b" for what in ("org", "run")),
            *(f"/{path}?appId=" for path in ("products/a", "prices/a", "prices/by-product/a", "coupons/a")),
            *(f"/{path}?appId=a&appId=b" for path in ("products/a", "prices/a", "prices/by-product/a", "coupons/a")),
        ],
    )
    def test_none_is_taken_when_a_field_is_empty_or_given_twice(
        self, client: FlaskClient, stand_ins: StandIns, path: str
    ) -> None:
        """Fails when one of two values is dropped: another question would be answered than was asked."""
        response = client.get(path)

        assert response.status_code == 400
        assert list(response.json["details"]["fieldErrors"]) == [path.partition("?")[2].partition("=")[0]]
        assert stand_ins.ledger() == []
