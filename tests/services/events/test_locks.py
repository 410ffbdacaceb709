"""Events that compete for a payment: at the same time in two processes, by two paths, or between two payments."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, create_engine, text

from app.config import Settings
from app.services import Services
from app.services.events.receive import receive_event
from app.services.events.stripe_event import Event
from app.services.reconciliation.waiting_events import rejoin_waiting_events
from tests.databases import WAITING
from tests.factories import checkout, intent
from tests.services.events.test_receive import deliver_all
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import API_KEY, WebProcess
from tests.webhooks import SECRET, deliver, event, paid_intent

PROCESSES = 2
# So many can wait at once, each on a connection of its own: even if one process gets all of them.
AT_ONCE = 16
# Less than PostgreSQL lets a statement wait for a lock.
MOST_SECONDS_HELD = 2.0

_DEADLOCKS = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")


def paid(client: FlaskClient) -> str:
    """The intent of a payment of 2,000 that was paid."""
    created = client.post("/payment-intent/create", json=intent(orgId=...)).json
    assert (
        deliver(client, event("payment_intent.succeeded", paid_intent(created["paymentIntentId"]))).status_code == 200
    )
    return str(created["paymentIntentId"])


def refunds_of(intent_id: str, count: int) -> list[dict[str, Any]]:
    """Events of which each changes what the payment comes to: refunds of one cent."""
    of_intent = {"object": "refund", "amount": 1, "status": "succeeded", "payment_intent": intent_id}
    return [event("refund.created", {"id": f"re_{number}_{intent_id}", **of_intent}) for number in range(count)]


def deliver_at_once(web: WebProcess, told: list[dict[str, Any]], *, db: Connection, settings: Settings) -> None:
    """Have all of these wait for their payments' rows, each in a transaction that has begun, and then let them go.

    So they meet whatever the machine is doing: who doesn't wait for the row reads before the others have committed.
    """
    holder = create_engine(settings.database_url)
    with ThreadPoolExecutor(1) as threads:
        with holder.begin() as connection:
            connection.execute(text("SELECT 1 FROM payments FOR NO KEY UPDATE"))
            delivery = threads.submit(deliver_all, web, told, threads=len(told))
            until_they_wait(delivery, len(told), db)
        delivery.result(60)
    holder.dispose()


def until_they_wait(delivery: "Future[None]", count: int, db: Connection) -> None:
    wait_until(lambda: delivery.done() or db.execute(WAITING).scalar_one(), seconds=30, what="one that waits")
    try:
        wait_until(lambda: db.execute(WAITING).scalar_one() >= count, seconds=MOST_SECONDS_HELD, what="all to wait")
    except AssertionError:
        # On a machine that is busy with others, some come later.
        assert db.execute(WAITING).scalar_one() >= count / 2


@pytest.fixture(scope="class")
def two_processes(database_url: str, stand_ins_process: StandIns) -> Iterator[WebProcess]:
    """The service in two processes, of which neither meets a deadlock."""
    environment = {
        "STRIPE_SERVICE_DATABASE_URL": database_url,
        "STRIPE_SERVICE_API_KEY": API_KEY,
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "WEB_CONCURRENCY": str(PROCESSES),
        "DB_POOL_SIZE": str(AT_ONCE),
        **stand_ins_process.environment,
    }
    engine = create_engine(database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        before = connection.execute(_DEADLOCKS).scalar_one()
        with WebProcess.start(environment) as web:
            yield web
        # A backend has told what it counted once it has ended.
        assert connection.execute(_DEADLOCKS).scalar_one() == before
    engine.dispose()


class TestLock:
    """Each fails when `LOCK` is FOR UPDATE, for which the insert's KEY SHARE is waited: two events wait for each other.

    Each fails as well when `LOCK` doesn't lock: what was told at the same time isn't in the sum of whoever writes last.
    """

    def test_two_payments_lose_none_of_the_events_that_come_at_once(
        self, two_processes: WebProcess, settings: Settings, client: FlaskClient, db: Connection
    ) -> None:
        of_each = [refunds_of(paid(client), AT_ONCE // 2) for _ in range(2)]
        told = [each for pair in zip(*of_each, strict=True) for each in pair]
        deliver_at_once(two_processes, told, db=db, settings=settings)

        found = db.execute(text("SELECT amount_refunded_in_cents, refund_count, status FROM payments")).all()
        assert [tuple(row) for row in found] == [(AT_ONCE // 2, AT_ONCE // 2, "partially_refunded")] * 2

    def test_a_payment_loses_none_of_fifty_events(
        self, two_processes: WebProcess, settings: Settings, client: FlaskClient, db: Connection
    ) -> None:
        told = refunds_of(paid(client), 50)
        deliver_all(two_processes, told[:40], threads=AT_ONCE)
        deliver_at_once(two_processes, told[40:], db=db, settings=settings)

        found = db.execute(text("SELECT amount_refunded_in_cents, refund_count, status FROM payments")).one()
        assert tuple(found) == (50, 50, "partially_refunded")


def status_of(client: FlaskClient, payment_id: str) -> tuple[str, int]:
    shown = client.get(f"/status/{payment_id}").json["payment"]
    return shown["status"], shown["amountRefundedInCents"]


def told_of(kind: str, stripe_object: dict[str, Any], name: str) -> Event:
    return Event(f"evt_{name}", kind, 1, stripe_object)


REFUND = {"id": "re_1", "object": "refund", "amount": 500, "status": "succeeded", "payment_intent": "pi_x"}
REFUNDED = told_of("refund.created", REFUND, "refunded")
PAID = told_of("payment_intent.succeeded", paid_intent("pi_x", amount_received=4000), "paid")


# As `receive_event` does it for an app.
STORE_AS_THE_APP = text(
    "INSERT INTO stripe_events (app_id, id, payment_id, type, created, object, refs)"
    " VALUES ('shop', 'evt_failed', CAST(:payment_id AS uuid), 'payment_intent.payment_failed', 1,"
    " CAST(:object AS jsonb), '{pi_x}')"
)


class TestTwoPaths:
    """Webhooks come by the path that all apps share, and reconciliation brings the same events by their apps' own."""

    @pytest.mark.parametrize(
        ("paths", "stored"), [((None, "shop", None), [""]), (("shop", None, "shop"), ["shop", ""])]
    )
    def test_an_event_is_stored_once_by_each_and_folded_once(
        self, client: FlaskClient, services: Services, db: Connection, paths: list[str | None], stored: list[str]
    ) -> None:
        """Fails when an app's path, which the app may forge, keeps out what Stripe says by the path that all share."""
        created = client.post("/payment-intent/create", json=intent()).json
        failed = told_of("payment_intent.payment_failed", paid_intent(created["paymentIntentId"]), "failed")
        for app_id in paths:
            receive_event(failed, app_id=app_id, services=services)

        found = text("SELECT app_id FROM stripe_events WHERE id NOT LIKE 'op_%' ORDER BY received_at")
        assert list(db.execute(found).scalars()) == stored
        assert len(client.get(f"/status/{created['paymentId']}").json["events"]["failures"]) == 1


class TestJoin:
    """Stripe's word comes by the path that all apps share, while the app's own path is storing the same event."""

    @pytest.mark.parametrize("finds", ["by its metadata", "once the payment learns its id"])
    def test_it_meets_nothing_of_what_another_transaction_is_storing(
        self, client: FlaskClient, services: Services, settings: Settings, db: Connection, finds: str
    ) -> None:
        """Fails when a joined event becomes its app's: it then waits for the other, to be as good as stored twice.

        The other holds a share of the payment's row, and takes the row itself when the join is over.
        """
        created = client.post("/checkout/create", json=checkout()).json
        metadata = {"paymentId": created["paymentId"]} if finds == "by its metadata" else {}
        shown = paid_intent("pi_x", amount=4000, currency="usd", metadata=metadata)
        failed = told_of("payment_intent.payment_failed", shown, "failed")
        session = {"id": created["sessionId"], "object": "checkout.session", "payment_intent": "pi_x"}
        completed = told_of("checkout.session.completed", session | {"payment_status": "unpaid"}, "completed")
        holder = create_engine(settings.database_url)
        with holder.begin() as other:
            other.execute(STORE_AS_THE_APP, {"payment_id": created["paymentId"], "object": json.dumps(shown)})
            receive_event(failed, app_id=None, services=services)
            receive_event(completed, app_id=None, services=services)
            other.execute(text("SELECT 1 FROM payments FOR NO KEY UPDATE"))
        holder.dispose()

        of_shop = text("SELECT app_id, payment_id::text FROM stripe_events WHERE id = 'evt_failed' ORDER BY app_id")
        stored = [tuple(row) for row in db.execute(of_shop)]
        assert stored == [("", created["paymentId"]), ("shop", created["paymentId"])]
        assert len(client.get(f"/status/{created['paymentId']}").json["events"]["failures"]) == 1


class TestOwner:
    def test_no_app_takes_the_events_of_another_apps_payment(self, client: FlaskClient, services: Services) -> None:
        """An app with a webhook secret of its own tells us that its checkout was paid with the intent of another's.

        Fails when a webhook of the path that all apps share goes to one of several payments by the app's name.
        """
        ours = client.post("/payment-intent/create", json=intent(appId="shop")).json
        theirs = client.post("/checkout/create", json=checkout(appId="other")).json
        session = {"id": theirs["sessionId"], "object": "checkout.session", "payment_status": "paid"}
        claim = told_of("checkout.session.completed", session | {"payment_intent": ours["paymentIntentId"]}, "claim")
        receive_event(claim, app_id="other", services=services)

        assert (
            deliver(client, event("payment_intent.succeeded", paid_intent(ours["paymentIntentId"]))).status_code == 200
        )

        assert status_of(client, ours["paymentId"])[0] == "succeeded"

    def test_what_was_joined_by_its_metadata_is_stored_once(self, client: FlaskClient, db: Connection) -> None:
        """Fails when it became its app's, and Stripe's second try is stored beside it as nobody's."""
        created = client.post("/checkout/create", json=checkout()).json
        shown = paid_intent("pi_x", amount=4000, currency="usd", metadata={"paymentId": created["paymentId"]})
        failed = event("payment_intent.payment_failed", shown)
        for _ in range(2):
            assert deliver(client, failed).status_code == 200

        assert db.execute(text("SELECT count(*) FROM stripe_events WHERE id LIKE 'evt_%'")).scalar_one() == 1

    def test_what_was_joined_by_an_id_stays_joined(
        self, client: FlaskClient, services: Services, db: Connection
    ) -> None:
        """One invoice can be paid with two intents, of which the second is known by the invoice only.

        Fails when it is taken for one that was joined by its metadata: it is detached, found again, and so for ever.
        """
        items = [{"priceId": "price_sandbox_monthly", "quantity": 1}]
        created = client.post("/checkout/create", json=checkout(mode="subscription", lineItems=items)).json
        invoice = {"id": "in_1", "object": "invoice", "subscription": "sub_1", "payment_intent": "pi_1"}
        invoice |= {"billing_reason": "subscription_create", "amount_paid": 2000}
        session = {"id": created["sessionId"], "object": "checkout.session", "payment_status": "paid"}
        for told in (
            event("checkout.session.completed", session | {"subscription": "sub_1", "invoice": "in_1"}),
            event("invoice.paid", invoice),
            event("payment_intent.succeeded", paid_intent("pi_2", invoice="in_1")),
        ):
            assert deliver(client, told).status_code == 200

        assert db.execute(text("SELECT count(*) FROM stripe_events WHERE payment_id IS NULL")).scalar_one() == 0
        assert sum(look.joined for look in rejoin_waiting_events(services)) == 0

    def test_the_last_of_more_than_two_thousand_events_is_folded(self, client: FlaskClient, db: Connection) -> None:
        """Somebody tries stolen cards on one intent, and then it is paid.

        Fails when a limit leaves out what Stripe answered, without which nothing is folded, or what was told last.
        """
        created = client.post("/payment-intent/create", json=intent()).json
        declined = {"id": created["paymentIntentId"], "object": "payment_intent", "status": "requires_payment_method"}
        db.execute(
            text("INSERT INTO stripe_events (app_id, id, payment_id, type, created, object, refs)"
                 " SELECT 'shop', 'evt_declined_' || n, CAST(:payment_id AS uuid), 'payment_intent.payment_failed', n,"
                 " CAST(:declined AS jsonb), ARRAY[:intent_id] FROM generate_series(1, 2100) n"),
            {"payment_id": created["paymentId"], "declined": json.dumps(declined), "intent_id": declined["id"]},
        )  # fmt: skip
        assert deliver(client, event("payment_intent.succeeded", paid_intent(declined["id"]))).status_code == 200

        assert status_of(client, created["paymentId"])[0] == "succeeded"
