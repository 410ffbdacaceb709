"""Many subscriptions that renew in one minute: Stripe tells all of it to two processes, and none is lost."""

import random
import statistics
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.models import PaymentKind
from tests.lives import SESSION, SUBSCRIPTION, Life
from tests.services.events.test_receive import insert_taken
from tests.soak import amount
from tests.subscription_lives import SubscriptionLife
from tests.web import WebProcess
from tests.webhooks import event, try_to_deliver

Json = dict[str, Any]
SUBSCRIPTIONS = amount(40, 10_000)
EVENTS_A_SECOND = 200
CENTS = 2000


def begun(number: int) -> list[Json]:
    """What tells that a checkout was paid, and which subscription is its own."""
    life = SubscriptionLife()
    life.pay()
    session = {"id": f"{SESSION}_{number}", "object": "checkout.session", "payment_status": "paid"}
    paid = session | {"amount_total": CENTS, "currency": "usd", "subscription": f"{SUBSCRIPTION}_{number}"}
    told = [(each.type, dict(each.object) | {"id": f"{SUBSCRIPTION}_{number}"}) for each in life.events]
    return [event("checkout.session.completed", paid), *(event(*each, created=7) for each in told[-1:])]


def renewed(number: int) -> list[Json]:
    """What tells that one has renewed."""
    life = SubscriptionLife()
    life.pay()
    life.renew()
    subscription = dict(life.shape) | {"id": f"{SUBSCRIPTION}_{number}"}
    details = {"subscription": subscription["id"], "metadata": {}}
    invoice = {"id": f"in_{number}", "object": "invoice", "billing_reason": "subscription_cycle", "currency": "usd"}
    invoice |= {"amount_due": CENTS, "amount_paid": CENTS, "created": 7, "parent": {"subscription_details": details}}
    intent = {"id": f"pi_{number}", "object": "payment_intent", "amount": CENTS, "amount_received": CENTS}
    paying = {"id": f"inpay_{number}", "object": "invoice_payment", "invoice": invoice["id"]}
    charge = {"id": f"ch_{number}", "object": "charge", "amount": CENTS, "payment_intent": intent["id"]}
    return [
        event("customer.subscription.updated", subscription),
        event("invoice.paid", invoice),
        event("invoice_payment.paid", paying | {"payment": {"payment_intent": intent["id"]}}),
        event("payment_intent.succeeded", intent | {"currency": "usd", "status": "succeeded"}),
        event("charge.succeeded", charge | {"status": "succeeded", "captured": True}),
    ]


@pytest.mark.soak
def test_none_is_lost(web: WebProcess, client: FlaskClient, db: Connection) -> None:
    """Fails when two events of one renewal, or a renewal and its subscription, work without each other."""
    for number in range(SUBSCRIPTIONS):
        life = Life(PaymentKind.CHECKOUT_SESSION, subscription=True)
        insert_taken(db, str(uuid.uuid4()), life, number)
    everybody = range(SUBSCRIPTIONS)
    with ThreadPoolExecutor(16) as pool:
        first = [each for number in everybody for each in begun(number)]
        assert set(pool.map(lambda each: try_to_deliver(web, each), first)) == {200}

        told = [each for number in everybody for each in renewed(number)]
        random.Random(7).shuffle(told)
        began_at, latencies = time.monotonic(), []

        def send(at: int) -> int:
            time.sleep(max(0.0, began_at + at / EVENTS_A_SECOND - time.monotonic()))
            sent_at = time.monotonic()
            status = try_to_deliver(web, told[at])
            latencies.append(time.monotonic() - sent_at)
            return status

        assert set(pool.map(send, range(len(told)))) == {200}
    took, p99 = time.monotonic() - began_at, statistics.quantiles(latencies, n=100)[98]
    print(f"{len(told)} events in {took:.1f} s, p99 {p99 * 1000:.0f} ms")

    renewals = db.execute(text("SELECT status, amount_received_in_cents FROM payments WHERE kind = 'renewal'")).all()
    assert [tuple(each) for each in renewals] == [("succeeded", CENTS)] * SUBSCRIPTIONS
    assert db.execute(text("SELECT count(*) FROM stripe_events WHERE payment_id IS NULL")).scalar_one() == 0
    followed = text("SELECT status, recheck_at FROM subscriptions")
    assert {tuple(each) for each in db.execute(followed)} == {("active", None)}
