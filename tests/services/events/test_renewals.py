"""Renewals: each later invoice of a subscription is one payment, whichever event tells of it first."""

import random
import uuid
from typing import Any
from unittest.mock import patch

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from app.services.events.receive import fold_again, receive_event
from app.services.events.renewals import renewal_id
from app.services.events.stripe_event import read_event
from app.services.reconciliation.waiting_events import rejoin_waiting_events
from tests.factories import checkout
from tests.stand_ins import StandIns
from tests.webhooks import deliver, event

Json = dict[str, Any]
MONTHLY = [{"priceId": "price_sandbox_monthly", "quantity": 1}]
WHOSE = {"orgId": "org_1", "brandId": "brand_1", "campaignId": "campaign_1"}


class Subscriber:
    """A subscription of one of our checkouts, and all that Stripe tells of it; nothing is delivered by itself."""

    def __init__(self, client: FlaskClient, stand_ins: StandIns, services: Services, **changes: Any) -> None:
        self.client, self.stand_ins, self.services = client, stand_ins, services
        run = stand_ins.new_run()
        body = checkout(**{"mode": "subscription", "lineItems": MONTHLY, "runId": run, **WHOSE, **changes})
        made = client.post("/checkout/create", json=body).json
        self.payment_id, self.run, self.session_id = made["paymentId"], run, made["sessionId"]
        self.id = stand_ins.control(f"checkout/{self.session_id}/pay")["subscription"]

    def act(self, action: str, **options: Any) -> Json:
        return self.stand_ins.control(f"subscriptions/{self.id}/{action}", **options)

    def told(self) -> list[Json]:
        return self.stand_ins.events()

    def deliver(self, told: list[Json]) -> None:
        assert {deliver(self.client, each).status_code for each in told} <= {200}

    def payments(self) -> list[Json]:
        """The organisation's, the first first."""
        listed = self.client.get("/status/by-org/org_1").json["payments"]
        return sorted(listed, key=lambda payment: (payment["origin"], payment["createdAt"], payment["id"]))

    def shown(self) -> list[tuple[str, str, int, int]]:
        return sorted(
            (each["origin"], each["status"], each["amountInCents"], each["amountReceivedInCents"])
            for each in self.payments()
        )

    def happened_to(self, payment: Json) -> Json:
        return dict(self.client.get(f"/status/{payment['id']}").json["events"])


@pytest.fixture
def subscriber(client: FlaskClient, stand_ins: StandIns, services: Services) -> Subscriber:
    return Subscriber(client, stand_ins, services)


def forget_what_was_told(db: Connection) -> None:
    """Leave the checkout as it was before anybody paid."""
    for statement in (
        "DELETE FROM app_events",
        "DELETE FROM money_movements",
        "DELETE FROM stripe_objects WHERE id NOT LIKE 'cs_%'",
        "DELETE FROM stripe_events WHERE id NOT LIKE 'op_%'",
        "DELETE FROM subscriptions",
        "DELETE FROM payments WHERE kind = 'renewal'",
        "UPDATE payments SET stripe_subscription_id = NULL, stripe_invoice_id = NULL, stripe_payment_intent_id = NULL,"
        " status = 'checkout_created'",
    ):
        db.execute(text(statement))


PAID, FIRST = ("renewal", "succeeded", 2000, 2000), ("checkout", "succeeded", 2000, 2000)


class TestBeginRenewal:
    def test_it_is_a_payment_for_whom_the_first_one_was(self, subscriber: Subscriber) -> None:
        subscriber.act("renew")
        subscriber.deliver(subscriber.told())

        first, renewal = subscriber.payments()
        assert subscriber.shown() == [FIRST, PAID]
        assert renewal["id"] == str(renewal_id("shop", renewal["stripeInvoiceId"]))
        same = ("appId", "orgId", "brandId", "campaignId", "parentRunId", "stripeSubscriptionId", "stripeCustomerId")
        assert {name: renewal[name] for name in same} == {name: first[name] for name in same}
        assert (renewal["tracking"], renewal["runId"]) == ({"state": "none", "error": None}, None)
        details = subscriber.client.get(f"/status/{renewal['id']}").json
        assert [success["amountInCents"] for success in details["events"]["successes"]] == [2000]

    @pytest.mark.parametrize("old_shapes", [False, True])
    def test_it_is_one_state_in_any_order_and_with_duplicates(
        self, subscriber: Subscriber, db: Connection, *, old_shapes: bool
    ) -> None:
        """Fails when a renewal that comes before the first payment knows its subscription isn't adopted."""
        subscriber.stand_ins.control("accounts", key="sk_test_sandbox_shop", oldShapes=old_shapes)
        for action, options in LIFE:
            subscriber.act(action, **options)
        told, found = subscriber.told(), []
        for seed in range(4):
            forget_what_was_told(db)
            chance = random.Random(seed)
            order = [*told, *chance.sample(told, 5)]
            if seed:
                chance.shuffle(order)
            subscriber.deliver(order)
            found.append(
                [(payment | {"updatedAt": None}, subscriber.happened_to(payment)) for payment in subscriber.payments()]
            )

        assert found == [found[0]] * 4
        assert subscriber.shown() == [FIRST, ("renewal", "failed", 2000, 0), PAID, PAID]
        assert sorted(len(events["failures"]) for _, events in found[0]) == [0, 0, 1, 2]

    def test_an_invoice_of_nothing_is_no_payment(self, subscriber: Subscriber) -> None:
        subscriber.act("renew")
        told = subscriber.told()
        for each in told:
            if each["type"].startswith("invoice."):
                each["data"]["object"] |= {"amount_due": 0, "amount_paid": 0, "total": 0}
        subscriber.deliver(told)
        assert [origin for origin, *_ in subscriber.shown()] == ["checkout"]

    def test_refunds_and_disputes_of_it_are_its_own(self, subscriber: Subscriber) -> None:
        subscriber.act("renew")
        subscriber.deliver(subscriber.told())
        renewal = subscriber.payments()[1]
        subscriber.stand_ins.control(f"charges/{renewal['stripePaymentIntentId']}/refund", amount=700)
        subscriber.stand_ins.control(f"charges/{renewal['stripePaymentIntentId']}/dispute", amount=1000)
        subscriber.deliver(subscriber.told())

        first, renewal = subscriber.payments()
        assert (first["status"], renewal["status"], renewal["amountRefundedInCents"]) == ("succeeded", "disputed", 700)
        by_id = subscriber.client.get(f"/status/by-stripe-id/{renewal['stripeInvoiceId']}?appId=shop").json
        assert by_id["payment"]["id"] == renewal["id"]

    @pytest.mark.parametrize(
        ("actions", "shown"),
        [
            ([("renew", {"ask": True})], ("requires_action", 2000, 0)),
            ([("renew", {"fail": True}), ("settle_outside", {})], ("succeeded", 2000, 2000)),
            ([("renew", {"fail": True}), ("void_invoice", {})], ("canceled", 2000, 0)),
        ],
    )
    def test_it_may_be_asked_for_paid_outside_or_called_off(
        self, subscriber: Subscriber, actions: list[tuple[str, Json]], shown: tuple[str, int, int]
    ) -> None:
        for action, options in actions:
            subscriber.act(action, **options)
        subscriber.deliver(subscriber.told())
        assert subscriber.shown() == [FIRST, ("renewal", *shown)]

    def test_two_intents_may_pay_it(self, subscriber: Subscriber) -> None:
        subscriber.deliver(subscriber.told())
        details = {"subscription": subscriber.id, "metadata": {}}
        shown = {"id": "in_p", "object": "invoice", "billing_reason": "subscription_cycle", "amount_due": 2000}
        invoice = shown | {"currency": "usd", "created": 7, "parent": {"subscription_details": details}}
        told = [event("invoice.paid", invoice | {"amount_paid": 2000})]
        for number, cents in enumerate((1500, 500)):
            intent = {"id": f"pi_{number}", "object": "payment_intent", "amount": cents, "amount_received": cents}
            paying = {"object": "invoice_payment", "id": f"inpay_{number}", "invoice": "in_p"}
            told += [
                event("invoice_payment.paid", paying | {"payment": {"payment_intent": f"pi_{number}"}}),
                event("payment_intent.succeeded", intent | {"status": "succeeded"}),
            ]
        subscriber.deliver(told[::-1])
        assert subscriber.shown() == [FIRST, PAID]
        assert len(subscriber.happened_to(subscriber.payments()[1])["successes"]) == 2

    def test_another_app_cannot_begin_one(self, subscriber: Subscriber, db: Connection) -> None:
        subscriber.act("renew")
        told = subscriber.told()
        subscriber.deliver([each for each in told if each["type"] == "checkout.session.completed"])
        for each in told:
            receive_event(read_event(each), app_id="other", services=subscriber.services)
        assert [origin for origin, *_ in subscriber.shown()] == ["checkout"]

    def test_it_is_whole_when_its_event_is_stored(self, subscriber: Subscriber) -> None:
        """Fails when it is begun only once its event has been committed: the process may die in between."""
        first = subscriber.told()
        subscriber.deliver(first)
        subscriber.act("renew")
        paid = [each for each in subscriber.told()[len(first) :] if each["type"] == "invoice.paid"]
        with patch("app.services.events.receive.adopt_events_that_wait_for", lambda ids, services: []):
            subscriber.deliver(paid)
        assert subscriber.shown() == [FIRST, PAID]

    def test_the_first_invoice_is_none_whatever_is_said_of_it(self, subscriber: Subscriber) -> None:
        told = subscriber.told()
        subscriber.deliver(told)
        first = next(each["data"]["object"] for each in told if each["type"] == "invoice.paid")
        subscriber.deliver([event("invoice.paid", first | {"billing_reason": "manual"})])
        assert subscriber.shown() == [FIRST]

    def test_what_waits_for_its_subscription_is_not_its_own(self, subscriber: Subscriber, db: Connection) -> None:
        subscriber.act("renew")
        subscriber.deliver(subscriber.told())
        db.execute(text("UPDATE stripe_events SET payment_id = NULL WHERE object ->> 'object' = 'subscription'"))
        fold_again(uuid.UUID(subscriber.payments()[1]["id"]), services=subscriber.services)
        owners = text("SELECT DISTINCT payment_id FROM stripe_events WHERE object ->> 'object' = 'subscription'")
        assert [owner and str(owner) for owner in db.execute(owners).scalars()] == [None]

    def test_those_that_waited_when_a_process_died_are_adopted(self, subscriber: Subscriber, db: Connection) -> None:
        """Fails when only the events that teach an id look for what waits for it."""
        subscriber.act("renew")
        told = subscriber.told()
        with patch("app.services.events.receive.adopt_events_that_wait_for", lambda ids, services: []):
            subscriber.deliver([*told[::-1]])
        assert [origin for origin, *_ in subscriber.shown()] == ["checkout"]
        while any(look.joined for look in rejoin_waiting_events(subscriber.services)):
            pass
        assert subscriber.shown() == [FIRST, PAID]


LIFE: list[tuple[str, Json]] = [
    ("renew", {}),
    ("renew", {"fail": True}),
    ("retry", {"fail": True}),
    ("retry", {}),
    ("renew", {"fail": True}),
]
