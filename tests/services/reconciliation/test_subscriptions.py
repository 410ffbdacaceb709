"""Subscriptions and renewals whose webhooks were lost, or that began before anybody followed them."""

from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from app.services.operators.replay import replay_all
from app.services.reconciliation.reconcile import reconcile_apps
from app.services.reconciliation.subscriptions import AskedAbout, ask_about_subscriptions
from tests.services.events.test_renewals import LIFE, Subscriber, forget_what_was_told
from tests.stand_ins import StandIns
from tests.webhooks import event

Json = dict[str, Any]


@pytest.fixture
def subscriber(client: FlaskClient, stand_ins: StandIns, services: Services) -> Subscriber:
    return Subscriber(client, stand_ins, services)


def ask(services: Services, db: Connection) -> list[AskedAbout]:
    """Ask as if all that is to be asked for were due."""
    db.execute(text("UPDATE subscriptions SET recheck_at = now() WHERE recheck_at IS NOT NULL"))
    return list(ask_about_subscriptions(services, command="flask worker"))


def reconcile(services: Services, db: Connection, *, days_ago: int) -> None:
    db.execute(text("UPDATE payments SET created_at = now() - interval '1 hour' WHERE kind = 'checkout_session'"))
    db.execute(text("DELETE FROM event_cursors"))
    cursor = (
        "INSERT INTO event_cursors (app_id, reconciled_until, lease_token, lease_until)"
        " VALUES ('shop', now() - make_interval(days => :days), gen_random_uuid(), now())"
    )
    db.execute(text(cursor), {"days": days_ago})
    assert [app.error for app in reconcile_apps(services, command="flask reconcile")] == [None]


def known(subscriber: Subscriber) -> Json:
    """What callers are told of a subscription and its payments, less when we heard it."""
    subscription = subscriber.client.get(f"/subscriptions/{subscriber.id}?appId=shop").json["subscription"]
    payments = {payment["id"]: {**payment, "updatedAt": None, "createdAt": None} for payment in subscriber.payments()}
    for payment in payments.values():
        # Which intent is to pay an invoice, objects say before events do.
        if payment["status"] != "succeeded":
            payment["stripePaymentIntentId"] = None
    failures = sorted(len(subscriber.happened_to(payment)["failures"]) for payment in payments.values())
    return {"subscription": subscription, "payments": payments, "failures": failures}


class TestAskAboutSubscriptions:
    def test_it_settles_a_tie_that_events_leave(self, subscriber: Subscriber, db: Connection) -> None:
        """Fails when what was read isn't dated by Stripe's clock, or a second reading of the same is no fact."""
        subscriber.deliver(subscriber.told())
        shown = next(e["data"]["object"] for e in subscriber.told() if e["type"] == "customer.subscription.updated")
        assert ask(subscriber.services, db) == []
        second = shown["created"] + 100
        for status in ("past_due", "unpaid"):
            subscriber.deliver([event("customer.subscription.updated", shown | {"status": status}, created=second)])
        assert db.execute(text("SELECT recheck_at - now() < interval '3 seconds' FROM subscriptions")).scalar_one()

        assert ask(subscriber.services, db) == [AskedAbout(subscriber.id)]
        subscriber.stand_ins.control("clock", advance=200)
        assert ask(subscriber.services, db) == [AskedAbout(subscriber.id)]
        assert known(subscriber)["subscription"]["status"] == "active"
        assert ask(subscriber.services, db) == []

    def test_what_stripe_does_not_answer_is_put_off(self, subscriber: Subscriber, db: Connection) -> None:
        subscriber.deliver([each for each in subscriber.told() if each["data"]["object"]["object"] != "subscription"])
        subscriber.stand_ins.fault("stripe", "status", status=503, path="/v1/invoices")
        (asked,) = ask(subscriber.services, db)
        assert asked.error == "Stripe answered 503"
        assert list(ask_about_subscriptions(subscriber.services, command="flask worker")) == []
        assert ask(subscriber.services, db) == [AskedAbout(subscriber.id)]


class TestLostWebhooks:
    @pytest.mark.parametrize("days_ago", [1, 31], ids=["events", "objects"])
    def test_reconciliation_alone_comes_to_the_same(
        self, subscriber: Subscriber, db: Connection, days_ago: int
    ) -> None:
        for action, options in LIFE:
            subscriber.act(action, **options)
        subscriber.deliver(subscriber.told())
        by_webhooks = known(subscriber)
        forget_what_was_told(db)

        reconcile(subscriber.services, db, days_ago=days_ago)
        assert known(subscriber) == by_webhooks

    def test_the_end_is_found_where_events_are_listed_no_more(self, subscriber: Subscriber, db: Connection) -> None:
        subscriber.deliver(subscriber.told())
        subscriber.act("renew")
        subscriber.act("end")
        reconcile(subscriber.services, db, days_ago=31)
        assert known(subscriber)["subscription"]["status"] == "canceled"
        assert [origin for origin, *_ in subscriber.shown()] == ["checkout", "renewal"]


class TestTakeUp:
    def test_one_that_began_before_it_was_followed_is_taken_up(self, subscriber: Subscriber, db: Connection) -> None:
        """As the version before has left it: its first payment, and renewals that found none."""
        for action, options in LIFE:
            subscriber.act(action, **options)
        subscriber.deliver(subscriber.told())
        followed = known(subscriber)
        for statement in (
            "DELETE FROM app_events",
            "DELETE FROM money_movements",
            "DELETE FROM subscriptions",
            "DELETE FROM stripe_objects USING payments WHERE payment_id = payments.id AND kind = 'renewal'",
            "DELETE FROM stripe_events USING payments WHERE payment_id = payments.id AND payments.kind = 'renewal'",
            "DELETE FROM stripe_events WHERE object ->> 'object' = 'subscription'",
            "DELETE FROM payments WHERE kind = 'renewal'",
        ):
            db.execute(text(statement))

        list(replay_all(after=None, services=subscriber.services))
        assert list(ask_about_subscriptions(subscriber.services, command="flask worker")) == [AskedAbout(subscriber.id)]
        assert known(subscriber) == followed
