"""Reconciliation: webhooks that were all lost change nothing in the end."""

import itertools
import json
import uuid
from datetime import timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from app.services import Services
from app.services.operators.unreadable_events import list_unreadable_events
from app.services.reconciliation.reconcile import EVENT_TYPES, Reconciled, reconcile_apps
from app.services.reconciliation.waiting_events import (
    UNMATCHED_KEPT,
    Rejoined,
    delete_old_waiting_events,
    rejoin_waiting_events,
)
from tests.factories import checkout, intent
from tests.soak import amount
from tests.stand_ins import StandIns
from tests.webhooks import deliver, event, paid_intent

MONTHLY = [{"priceId": "price_sandbox_monthly", "quantity": 1}]


def reconcile(services: Services, db: Connection) -> dict[str, Reconciled]:
    db.execute(text("UPDATE event_cursors SET lease_until = now()"))
    return {one.app_id: one for one in reconcile_apps(services, command="flask reconcile")}


def objects(stand_ins: StandIns, app_id: str, kind: str) -> list[dict[str, Any]]:
    (account,) = [each for each in stand_ins.state()["accounts"].values() if app_id in each["apps"]]
    return list(account["objects"].get(kind, []))


def live(client: FlaskClient, stand_ins: StandIns, app_id: str, count: int) -> None:
    """Payments of all sorts, and what customers and banks do with them, while no webhook arrives."""
    lives = itertools.cycle(range(8))
    for number in itertools.islice(lives, count):
        if number % 2:
            made = client.post("/payment-intent/create", json=intent(appId=app_id)).json["paymentIntentId"]
            act = f"intents/{made}"
        else:
            body = (
                checkout(appId=app_id, mode="subscription", lineItems=MONTHLY)
                if number == 4
                else checkout(appId=app_id)
            )
            made = client.post("/checkout/create", json=body).json["sessionId"]
            act = f"checkout/{made}"
        for action in {
            0: ["decline", "pay"],
            1: ["pay", "refund"],
            2: ["expire"],
            3: ["decline"],
            4: ["pay"],
            5: ["pay", "dispute"],
            6: ["pay_later", "fail_later"],
            7: ["authorize", "cancel"],
        }[number]:
            if action == "refund":
                stand_ins.control(f"charges/{made}/refund", amount=700)
            elif action == "dispute":
                stand_ins.control(f"charges/{made}/dispute")
            else:
                stand_ins.control(f"{act}/{action}")


def state(client: FlaskClient, db: Connection) -> dict[str, Any]:
    """What callers are told of every payment, less the time of the last change."""
    told = {}
    for payment_id in db.execute(text("SELECT id FROM payments ORDER BY created_at")).scalars():
        answer = client.get(f"/status/{payment_id}").json
        answer["payment"].pop("updatedAt")
        told[str(payment_id)] = answer
    return told


def without_times_and_ids(told: dict[str, Any]) -> dict[str, Any]:
    """Snapshots can't tell when something happened, nor the id of the event that told it."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items() if key not in ("createdAt", "id")}
        return [clean(inner) for inner in value] if isinstance(value, list) else value

    return {payment_id: clean(answer) for payment_id, answer in told.items()}


@pytest.mark.soak
class TestAllWebhooksLost:
    # Of each of two apps.
    PAYMENTS = amount(16, 250)

    def test_it_gives_the_state_that_no_loss_gives_and_a_second_pass_stores_nothing(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        """Fails when a type of event that the fold reads isn't asked for."""
        for app_id in ("shop", "other"):
            live(client, stand_ins, app_id, self.PAYMENTS)

        first = reconcile(services, db)
        after = state(client, db)
        second = reconcile(services, db)

        assert {one.error for one in (*first.values(), *second.values())} == {None}
        assert all(one.stored > 4 * self.PAYMENTS for one in first.values())
        assert [one.stored for one in second.values()] == [0, 0]
        for app_id in ("shop", "other"):
            for told in objects(stand_ins, app_id, "event"):
                assert deliver(client, told).status_code == 200
        assert state(client, db) == after
        assert {answer["payment"]["status"] for answer in after.values()} == {
            "succeeded", "partially_refunded", "expired", "failed", "disputed", "canceled"
        }  # fmt: skip

    def test_it_reads_the_objects_where_the_events_are_no_longer_listed(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        """One app's cursor is 31 days old: Stripe lists none of its events any more."""
        for app_id in ("shop", "other"):
            live(client, stand_ins, app_id, self.PAYMENTS)
        lost = [told for app_id in ("shop", "other") for told in objects(stand_ins, app_id, "event")]
        assert reconcile(services, db)["shop"].error is None
        db.execute(text("DELETE FROM stripe_events WHERE app_id = 'other'"))
        db.execute(
            text("UPDATE payments SET status = CASE kind WHEN 'payment_intent' THEN 'requires_payment_method'"
                 " ELSE 'checkout_created' END, amount_received_in_cents = 0, amount_refunded_in_cents = 0,"
                 " amount_disputed_in_cents = 0, success_count = 0, failure_count = 0, refund_count = 0,"
                 " dispute_count = 0, stripe_subscription_id = NULL, stripe_invoice_id = NULL, stripe_charge_id = NULL,"
                 " stripe_payment_intent_id = CASE kind WHEN 'payment_intent' THEN stripe_payment_intent_id END"
                 " WHERE app_id = 'other'")
        )  # fmt: skip
        db.execute(
            text("UPDATE event_cursors SET reconciled_until = now() - interval '31 days' WHERE app_id = 'other'")
        )
        stand_ins.control("clock", advance=int(timedelta(days=31).total_seconds()))

        first = reconcile(services, db)
        after = state(client, db)

        assert first["other"].error is None
        assert first["other"].objects_read
        db.execute(
            text("UPDATE event_cursors SET reconciled_until = now() - interval '31 days' WHERE app_id = 'other'")
        )
        # A subscription may have been back where it was: a look at one in another second is a fact.
        subscriptions = len(objects(stand_ins, "other", "subscription"))
        shop, other = (one.stored for one in reconcile(services, db).values())
        assert shop == 0
        assert other <= subscriptions
        for told in lost:
            assert deliver(client, json.loads(json.dumps(told))).status_code == 200
        assert without_times_and_ids(state(client, db)) == without_times_and_ids(after)

    def test_it_goes_on_with_the_other_apps_when_one_fails(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        for app_id in ("shop", "other"):
            live(client, stand_ins, app_id, 1)
        stand_ins.control("keys", appId="other", key=None)
        services.keys._keys.clear()

        done = reconcile(services, db)

        assert done["shop"].error is None
        assert "No Stripe key" in str(done["other"].error)
        assert (
            db.execute(text("SELECT reconciled_until FROM event_cursors WHERE app_id = 'other'")).scalar_one() is None
        )

    def test_it_passes_over_what_is_no_event_and_hides_no_other(
        self,
        client: FlaskClient,
        services: Services,
        stand_ins: StandIns,
        db: Connection,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Unreadable things on a first page, in its middle and at its end, and an event on the second."""
        made = client.post("/payment-intent/create", json=intent()).json
        paid = [
            event(f"payment_intent.{kind}", paid_intent(made["paymentIntentId"])) for kind in ("created", "succeeded")
        ]
        odd = [{"id": "evt_odd", "object": "event", "created": "now"}, None, "evt_text", []]
        secret = {"client_secret": "pi_1_secret_1", "id": "evt_odd_too"}
        page = {"object": "list", "data": [odd[0], paid[0], *odd[1:]], "has_more": True}
        stand_ins.fault("stripe", "json", method="GET", path="/v1/events", body=page)
        last_page = {"object": "list", "data": [odd[0], secret, paid[1]], "has_more": False}
        stand_ins.fault("stripe", "json", method="GET", path="/v1/events", body=last_page)

        done = reconcile(services, db)["shop"]

        assert (done.error, done.unreadable, done.listed - done.stored) == (None, 6, 1)
        kept = [shown["listed"] for shown in list_unreadable_events(services=services)]
        assert kept == [{"id": "evt_odd_too"}, *odd[::-1]]
        assert client.get(f"/status/{made['paymentId']}").json["payment"]["status"] == "succeeded"
        assert "Stripe lists 'evt_odd' for app shop, which is no event" in caplog.messages

    def test_one_process_has_an_app_to_itself(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        live(client, stand_ins, "shop", 1)
        pass_one = reconcile_apps(services, command="flask reconcile")
        claimed = next(pass_one)
        db.execute(text("UPDATE event_cursors SET lease_until = now() + interval '1 minute'"))

        assert claimed.app_id == "shop"
        assert list(reconcile_apps(services, command="flask worker")) == []

    def test_it_asks_for_at_most_20_types_a_call_and_for_all_that_matter(self) -> None:
        assert len(EVENT_TYPES) == len(set(EVENT_TYPES)) == 37


class TestWaitingEvents:
    def test_it_joins_what_a_crash_left_unjoined(self, client: FlaskClient, services: Services, db: Connection) -> None:
        created = client.post("/payment-intent/create", json=intent()).json
        paid = {"id": created["paymentIntentId"], "object": "payment_intent", "amount_received": 2000}
        deliver(client, event("payment_intent.succeeded", paid))
        db.execute(text("UPDATE stripe_events SET payment_id = NULL"))
        db.execute(text("UPDATE payments SET status = 'requires_payment_method'"))

        assert sum(look.joined for look in rejoin_waiting_events(services)) == 1
        assert client.get(f"/status/{created['paymentId']}").json["payment"]["status"] == "succeeded"
        assert sum(look.joined for look in rejoin_waiting_events(services)) == 0

    @pytest.mark.parametrize(("days", "deleted"), [(UNMATCHED_KEPT.days - 1, 0), (UNMATCHED_KEPT.days + 1, 1)])
    def test_it_lets_go_of_events_without_a_payment_after_90_days(
        self, client: FlaskClient, services: Services, db: Connection, days: int, deleted: int
    ) -> None:
        created = client.post("/payment-intent/create", json=intent()).json
        deliver(
            client, event("payment_intent.processing", {"id": created["paymentIntentId"], "object": "payment_intent"})
        )
        deliver(client, event("customer.created", {"id": "cus_1", "object": "customer"}))
        db.execute(text("UPDATE stripe_events SET received_at = now() - :days * interval '1 day'"), {"days": days})

        assert sum(delete_old_waiting_events(services)) == deleted
        left = text("SELECT count(*) FROM stripe_events WHERE id NOT LIKE 'op_%'")
        assert db.execute(left).scalar_one() == 2 - deleted

    def test_a_payment_that_is_locked_is_put_off_and_stops_no_other(
        self, client: FlaskClient, services: Services, db: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when a lock is taken for an outage of the database, which ends the look at all that waits."""
        monkeypatch.setattr("app.database._BEGIN", "BEGIN; SET LOCAL lock_timeout = '200ms'; ")
        locked, free = (client.post("/payment-intent/create", json=intent()).json for _ in range(2))
        for created in (locked, free):
            deliver(client, event("payment_intent.succeeded", paid_intent(created["paymentIntentId"])))
        db.execute(text("UPDATE stripe_events SET payment_id = NULL WHERE id LIKE 'evt_%'"))
        with services.database.engine.connect() as holder:
            lock = text("SELECT 1 FROM payments WHERE id = :id FOR UPDATE")
            holder.exec_driver_sql("BEGIN")
            holder.execute(lock, {"id": locked["paymentId"]})
            looks = list(rejoin_waiting_events(services))
            holder.exec_driver_sql("ROLLBACK")

        assert looks == [Rejoined(1, (uuid.UUID(locked["paymentId"]),))]
        assert list(rejoin_waiting_events(services)) == [Rejoined(1)]

    def test_the_database_away_ends_the_look(
        self, client: FlaskClient, services: Services, db: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when every error is taken for a lock: each payment would be tried while nothing can be had."""
        created = client.post("/payment-intent/create", json=intent()).json
        deliver(client, event("payment_intent.succeeded", paid_intent(created["paymentIntentId"])))
        db.execute(text("UPDATE stripe_events SET payment_id = NULL WHERE id LIKE 'evt_%'"))
        monkeypatch.setattr("app.database._BEGIN", "BEGIN; SELECT pg_terminate_backend(pg_backend_pid()); ")

        with pytest.raises(OperationalError):
            list(rejoin_waiting_events(services))

    def test_an_old_one_that_is_being_joined_is_passed_over(
        self, client: FlaskClient, services: Services, db: Connection
    ) -> None:
        """Fails when who deletes waits for who joins: that one may wait for another row of these in turn."""
        for name in ("cus_1", "cus_2"):
            deliver(client, event("customer.created", {"id": name, "object": "customer"}))
        db.execute(text("UPDATE stripe_events SET received_at = now() - interval '91 days'"))
        with services.database.engine.connect() as joining:
            joining.exec_driver_sql("BEGIN")
            joining.exec_driver_sql("SELECT 1 FROM stripe_events WHERE object->>'id' = 'cus_1' FOR NO KEY UPDATE")
            assert list(delete_old_waiting_events(services)) == [1]
            joining.exec_driver_sql("ROLLBACK")

        assert list(delete_old_waiting_events(services)) == [1]
