"""Sums by period: they agree with all else that is told of the same payments, and count money when it moved."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from app.services.operators.replay import replay_all
from tests.bench.plans import explain, reads_whole_table
from tests.databases import dispose
from tests.factories import intent
from tests.services.events.test_receive import LIVES, payments_and_their_events
from tests.webhooks import deliver, event, paid_intent

MONEY = ("payments", "grossInCents", "refundedInCents", "disputedInCents", "netInCents")
# Each as a checkout, as an intent and as a subscription.
COUNT = 3 * len(LIVES)


def at(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())


def pay(client: FlaskClient, day: str, **changes: Any) -> str:
    """Let a payment be paid on a day; return its intent."""
    made = client.post("/payment-intent/create", json=intent(**changes)).json
    deliver(client, event("payment_intent.succeeded", paid_intent(made["paymentIntentId"]), created=at(day)))
    return str(made["paymentIntentId"])


def refund(client: FlaskClient, intent_id: str, day: str, amount: int, *, status: str = "succeeded") -> None:
    told = {"id": f"re_{amount}", "object": "refund", "payment_intent": intent_id, "amount": amount, "currency": "usd"}
    deliver(client, event(f"refund.{status}", told | {"status": status, "created": at(day)}))


def periods(client: FlaskClient, **query: str) -> dict[str, dict[str, int]]:
    """What is told of each period, by the day on which it starts; only what isn't nothing, and dollars only."""
    answer = client.get("/stats", query_string={"groupBy": "month", **query}).json
    told = {period["start"][:10]: period["currencies"] for period in answer["periods"]}
    return {day: {name: dollars[name] for name in MONEY if dollars[name]} for day, (dollars,) in told.items()}


class TestAgreement:
    @pytest.fixture
    def payment_ids(self, client: FlaskClient, db: Connection) -> list[str]:
        lives, told = payments_and_their_events(COUNT, db)
        for each in told:
            assert deliver(client, each).status_code == 200
        return list(lives)

    def test_all_that_is_told_of_payments_comes_to_the_same(self, client: FlaskClient, payment_ids: list[str]) -> None:
        """Fails when a movement is missing, twice, or more than what became of its payment."""
        shown = [client.get(f"/status/{payment_id}").json["payment"] for payment_id in payment_ids]
        (total,) = client.get("/summary/by-org/org_1").json["totals"]
        assert total["payments"] == COUNT
        assert total["grossInCents"] == sum(payment["amountReceivedInCents"] for payment in shown)
        assert total["refundedInCents"] == sum(payment["amountRefundedInCents"] for payment in shown)
        returned = sum(payment["amountReturnedInCents"] for payment in shown)
        assert total["lostInCents"] + total["refundedInCents"] == returned
        assert 0 < total["lostInCents"] <= total["disputedInCents"]

        expected = {name: total[name] for name in MONEY}
        for filters in ({}, {"appId": "shop"}, {"orgId": "org_1"}, {"orgId": "org_1", "appId": "shop"}):
            for unit in ("day", "week", "month"):
                answer = client.post("/stats", json={**filters, "groupBy": unit}).json
                (currency,) = answer["currencies"]
                by_period = Counter[str]()
                for period in answer["periods"]:
                    by_period.update({name: period["currencies"][0][name] for name in MONEY})
                assert by_period == expected
                assert {name: currency[name] for name in MONEY} == expected


class TestPeriods:
    @pytest.fixture
    def server_elsewhere(self, app: Flask, db: Connection) -> Iterator[None]:
        """The database is in another time zone, for connections that are made from now on."""
        name = db.execute(text("SELECT current_database()")).scalar_one()
        db.execute(text(f"ALTER DATABASE {name} SET timezone TO 'Asia/Tokyo'"))
        dispose(app)
        yield
        db.execute(text(f"ALTER DATABASE {name} RESET timezone"))
        dispose(app)

    @pytest.mark.usefixtures("server_elsewhere")
    def test_money_counts_when_it_moved_and_a_payment_when_it_was_made(
        self, client: FlaskClient, db: Connection
    ) -> None:
        """Fails when a month is one of the server's time zone."""
        intent_id = pay(client, "2026-01-31T23:59:59")
        db.execute(text("UPDATE payments SET created_at = '2025-12-31T12:00:00Z'"))
        refund(client, intent_id, "2026-02-01T00:00:00", 500)
        refund(client, intent_id, "2026-04-01T00:00:00", 300)
        dispute = {"id": "du_1", "object": "dispute", "payment_intent": intent_id, "amount": 200, "status": "lost"}
        deliver(client, event("charge.dispute.closed", dispute | {"created": at("2026-03-09")}))

        assert periods(client) == {
            "2025-12-01": {"payments": 1},
            "2026-01-01": {"grossInCents": 2000, "netInCents": 2000},
            "2026-02-01": {"refundedInCents": 500, "netInCents": -500},
            "2026-03-01": {"disputedInCents": 200, "netInCents": -200},
            "2026-04-01": {"refundedInCents": 300, "netInCents": -300},
        }
        assert list(periods(client, groupBy="week")) == [
            "2025-12-29", "2026-01-26", "2026-03-09", "2026-03-30"
        ]  # fmt: skip
        assert list(periods(client, groupBy="day", orgId="org_1"))[:2] == ["2025-12-31", "2026-01-31"]

    def test_a_refund_that_came_back_is_no_movement(self, client: FlaskClient) -> None:
        intent_id = pay(client, "2026-01-01")
        refund(client, intent_id, "2026-02-01", 500)
        assert "2026-02-01" in periods(client)
        refund(client, intent_id, "2026-02-01", 500, status="failed")
        assert "2026-02-01" not in periods(client)

    def test_they_are_those_between_two_times(self, client: FlaskClient, db: Connection) -> None:
        """Of payments that were made before as well: a refund of last year's is this year's money."""
        refund(client, pay(client, "2026-01-01"), "2026-02-01", 500)
        db.execute(text("UPDATE payments SET created_at = '2026-01-01T00:00:00Z'"))

        assert list(periods(client, **{"from": "2026-01-01", "to": "2026-02-01T00:00:00Z"})) == ["2026-01-01"]
        assert periods(client, **{"from": "2026-01-01T00:00:01Z"}) == {
            "2026-02-01": {"refundedInCents": 500, "netInCents": -500}
        }
        assert periods(client, to="2026-01-01") == {}

    def test_each_filter_narrows_them(self, client: FlaskClient) -> None:
        pay(client, "2026-01-01", brandId="b")
        pay(client, "2026-02-01", appId="other")
        pay(client, "2026-03-01", orgId="org_2", campaignId="c")

        def received_in(**filters: str) -> list[str]:
            return [day for day, told in periods(client, **filters).items() if "grossInCents" in told]

        assert received_in(brandId="b") == received_in(orgId="org_1", appId="shop") == ["2026-01-01"]
        assert received_in(appId="other") == ["2026-02-01"]
        assert received_in(orgId="org_2") == received_in(appId="shop", campaignId="c") == ["2026-03-01"]
        assert received_in(orgId="org_2", brandId="b") == received_in(runIds="x") == []

    def test_there_are_none_where_nobody_asks(self, client: FlaskClient) -> None:
        assert "periods" not in client.get("/stats").json
        assert client.get("/stats?groupBy=day").json["periods"] == []


class TestTimes:
    def test_statistics_are_of_payments_that_were_made_between(self, client: FlaskClient, db: Connection) -> None:
        client.post("/payment-intent/create", json=intent())
        db.execute(text("UPDATE payments SET created_at = '2026-01-01T00:00:00Z'"))
        client.post("/payment-intent/create", json=intent())

        def count(**query: str) -> int:
            by_body = client.post("/stats", json=query).json["totalPayments"]
            assert client.get("/stats", query_string=query).json["totalPayments"] == by_body
            return int(by_body)

        assert count(**{"from": "2026-01-01T00:00:00Z"}) == 2
        assert count(**{"from": "2026-01-01T00:00:00.000001Z"}) == 1
        assert (count(to="2026-01-01"), count(to="2026-01-02")) == (0, 1)
        assert count(**{"from": "0001-01-01T00:00:00+14:00", "to": "9999-12-31T23:59:59-14:00"}) == 2

    @pytest.mark.parametrize(
        ("field", "query"),
        [
            ("from", {"from": "yesterday"}),
            ("to", {"to": ""}),
            ("to", {"from": "2026-01-01", "to": "2026-01-01T00:00:00Z"}),
            ("groupBy", {"groupBy": "year"}),
            ("groupBy", {"groupBy": ""}),
        ],
    )
    def test_what_is_no_time_and_no_unit_is_refused(
        self, client: FlaskClient, field: str, query: dict[str, str]
    ) -> None:
        for response in (client.get("/stats", query_string=query), client.post("/stats", json=query)):
            assert response.status_code == 400
            assert list(response.json["details"]["fieldErrors"]) == [field]


class TestMovements:
    def test_a_replay_writes_those_of_older_payments(
        self, client: FlaskClient, services: Services, db: Connection
    ) -> None:
        refund(client, pay(client, "2026-01-01"), "2026-02-01", 500)
        before = periods(client)
        db.execute(text("DELETE FROM money_movements"))
        db.execute(text("UPDATE payments SET movements_digest = NULL"))
        assert len(periods(client)) == 1

        list(replay_all(after=None, services=services))

        assert periods(client) == before

    def test_they_are_left_alone_by_an_event_that_moves_no_money(self, client: FlaskClient, db: Connection) -> None:
        """Fails when they are written with every event."""
        intent_id = pay(client, "2026-01-01")
        rows = text("SELECT xmin, * FROM money_movements")
        before = db.execute(rows).all()
        charge = {"id": "ch_1", "object": "charge", "payment_intent": intent_id, "status": "succeeded"}
        deliver(client, event("charge.succeeded", charge))

        assert len(before) == 1
        assert db.execute(rows).all() == before


ROWS = 5_000
PAID = (
    "INSERT INTO payments (id, kind, app_id, org_id, brand_id, status, stripe_payment_intent_id, currency, created_at)"
    " SELECT gen_random_uuid(), 'payment_intent', 'app_' || n % 20, 'org_' || n % 50, 'brand_' || n % 500, 'succeeded',"
    f" 'pi_' || n, 'usd', now() - n * interval '1 hour' FROM generate_series(1, {ROWS}) AS n",
    "INSERT INTO money_movements (payment_id, number, app_id, org_id, occurred_at, kind, amount_in_cents, currency)"
    " SELECT id, 1, app_id, org_id, created_at, 'received', 500, 'usd' FROM payments",
    "VACUUM (ANALYZE) payments", "VACUUM (ANALYZE) money_movements",
)  # fmt: skip


class TestPlans:
    @pytest.mark.parametrize("filters", ["appId=app_1", "orgId=org_1", "orgId=org_1&appId=app_1", "brandId=brand_1"])
    @pytest.mark.parametrize("times", ["", "&from=2026-01-01"])
    def test_no_table_is_read_as_a_whole(
        self, client: FlaskClient, services: Services, db: Connection, filters: str, times: str
    ) -> None:
        for statement in PAID:
            db.execute(text(statement))

        plans = explain(services.database.engine, lambda: client.get(f"/stats?groupBy=day&{filters}{times}"))

        assert len([plan for plan in plans if "money_movements" in plan]) == 1
        assert [plan for plan in plans if reads_whole_table(plan)] == []
