"""Two years of a monthly subscription: payments, statistics and the stand-in's books agree to the cent."""

import random
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection

from app.services import Services
from tests.books import objects_of
from tests.services.events.test_renewals import Subscriber
from tests.services.reconciliation.test_subscriptions import reconcile
from tests.services.subscriptions.test_actions import Owner
from tests.stand_ins import StandIns

Json = dict[str, Any]
MONTH_SECONDS = 365 * 24 * 3600 // 12
DECLINED = {5: ["retry"], 11: ["fail", "retry"], 17: ["fail", "fail"]}
UPGRADED, REFUNDED, DISPUTED, MONTHS = 12, 7, 15, 23


def live(owner: Owner) -> None:
    """Play 24 months: the first is paid at the checkout."""
    for month in range(1, MONTHS + 1):
        owner.stand_ins.control("clock", advance=MONTH_SECONDS // 2)
        if month == UPGRADED:
            changed = owner.ask("change", priceId=owner.dearer(), proration="always_invoice")
            assert changed.status_code == 200, changed.json
        owner.stand_ins.control("clock", advance=MONTH_SECONDS // 2)
        owner.act("renew", fail=month in DECLINED)
        for tried in DECLINED.get(month, ()):
            owner.act("retry", fail=tried == "fail")
        if month == REFUNDED:
            owner.stand_ins.control(f"charges/{newest_intent(owner)}/refund", amount=700)
        if month == DISPUTED:
            dispute = owner.stand_ins.control(f"charges/{newest_intent(owner)}/dispute", amount=1000)
            owner.stand_ins.control(f"disputes/{dispute['id']}/lose")
    owner.ask("cancel")
    owner.act("renew")


def newest_intent(owner: Owner) -> str:
    return str(objects_of(owner.stand_ins, "payment_intent")[0]["id"])


def booked(owner: Owner) -> Json:
    """What the stand-in's own objects say came in, went back and was lost, and how often a card was declined."""
    charges = objects_of(owner.stand_ins, "charge")
    invoices = [each for each in objects_of(owner.stand_ins, "invoice") if each["total"]]
    return {
        "payments": len(invoices),
        "gross": sum(charge["amount_captured"] for charge in charges),
        "refunded": sum(refund["amount"] for refund in objects_of(owner.stand_ins, "refund")),
        "disputed": sum(dispute["amount"] for dispute in objects_of(owner.stand_ins, "dispute")),
        "amounts": Counter(invoice["amount_paid"] for invoice in invoices if invoice["status"] == "paid"),
        "failures": Counter(charge["payment_intent"] for charge in charges if charge["status"] == "failed").total(),
    }


def booked_by_month(owner: Owner) -> dict[str, Counter[str]]:
    """Of each month of the stand-in's clock, what came in, went back and was disputed in it."""
    months: dict[str, Counter[str]] = {}
    for kind, amount in (("charge", "amount_captured"), ("refund", "amount"), ("dispute", "amount")):
        for each in objects_of(owner.stand_ins, kind):
            month = datetime.fromtimestamp(each["created"], UTC).strftime("%Y-%m-01")
            months.setdefault(month, Counter())[kind] += each[amount]
    return {month: +sums for month, sums in months.items() if +sums}


def told_by_month(owner: Owner) -> dict[str, Counter[str]]:
    """The same, as callers are told by statistics."""
    names = {"charge": "grossInCents", "refund": "refundedInCents", "dispute": "disputedInCents"}
    months = {}
    for period in owner.client.get("/stats?appId=shop&groupBy=month").json["periods"]:
        (usd,) = period["currencies"]
        months[period["start"][:10]] = +Counter({kind: usd[name] for kind, name in names.items()})
    return {month: sums for month, sums in months.items() if sums}


def told(owner: Owner) -> Json:
    """The same, as callers are told by statistics and lists."""
    stats = owner.client.get("/stats?appId=shop").json
    (usd,) = stats["currencies"]
    received = [payment["amountReceivedInCents"] for payment in owner.payments()]
    assert stats["totalPayments"] == len(owner.payments())
    assert usd["grossInCents"] == sum(received)
    return {
        "payments": usd["payments"],
        "gross": usd["grossInCents"],
        "refunded": usd["refundedInCents"],
        "disputed": usd["disputedInCents"],
        "amounts": Counter(cents for cents in received if cents),
        "failures": stats["failureCount"],
    }


@pytest.mark.parametrize("way", ["webhooks in order", "webhooks in any order", "reconciliation"])
def test_two_years_agree_to_the_cent(
    client: FlaskClient, stand_ins: StandIns, services: Services, db: Connection, way: str
) -> None:
    """Three declined months, of which one is never paid; an upgrade, a refund, a lost dispute, and an end."""
    owner = Owner(client, stand_ins, services)
    first = [each for each in owner.told() if "invoice" not in each["type"]]
    owner.deliver(first)
    live(owner)
    events = owner.told()
    if way == "reconciliation":
        reconcile(services, db, days_ago=31)
    else:
        if "any" in way:
            random.Random(3).shuffle(events)
        owner.deliver(events)

    books = booked(owner)
    assert told(owner) == books
    assert told_by_month(owner) == booked_by_month(owner)
    assert len(told_by_month(owner)) == MONTHS
    (total,) = owner.client.get("/summary/by-org/org_1?appId=shop").json["totals"]
    assert total == {
        "currency": "usd",
        "payments": books["payments"],
        "grossInCents": books["gross"],
        "refundedInCents": books["refunded"],
        "disputedInCents": books["disputed"],
        "lostInCents": books["disputed"],
        "netInCents": books["gross"] - books["refunded"] - books["disputed"],
    }
    assert told(owner)["payments"] == 1 + MONTHS + 1
    statuses = Counter(payment["status"] for payment in owner.payments())
    assert statuses == {"succeeded": 22, "failed": 1, "partially_refunded": 1, "disputed": 1}
    subscription = owner.shown_now()
    assert (subscription["status"], subscription["endedAt"] is not None) == ("canceled", True)
    assert {payment["subscriptionStatus"] for payment in owner.payments()} == {"canceled"}


def test_payments_of_each_month_are_dated_by_their_invoice(owner_of_two: Subscriber) -> None:
    dates = [payment["createdAt"][:7] for payment in owner_of_two.payments()]
    assert len(set(dates)) == len(dates)


@pytest.fixture
def owner_of_two(client: FlaskClient, stand_ins: StandIns, services: Services) -> Subscriber:
    subscriber = Subscriber(client, stand_ins, services)
    for _ in range(2):
        stand_ins.control("clock", advance=MONTH_SECONDS + 2 * 24 * 3600)
        subscriber.act("renew")
    subscriber.deliver(subscriber.told())
    return subscriber
