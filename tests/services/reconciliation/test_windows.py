"""Windows of reconciliation: what was read of a list of events isn't read again, wherever the reading stopped."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import IntegrityError

from app.config import Settings
from app.services import Services
from app.services.reconciliation import reconcile as module
from app.services.reconciliation.reconcile import EVENT_TYPES, Reconciled, Window, reconcile_apps
from tests.factories import intent
from tests.stand_ins import StandIns
from tests.waiting import wait_until

PAGE = 5
CURSOR = text("SELECT * FROM event_cursors WHERE app_id = :app_id")
STORED = text("SELECT count(*) FROM stripe_events WHERE id LIKE 'evt_%'")


@pytest.fixture(autouse=True)
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.services.upstreams.stripe.PAGE_SIZE", PAGE)


@pytest.fixture
def live(client: FlaskClient, stand_ins: StandIns) -> Callable[..., int]:
    """Has much happen to an app's payment while no webhook arrives; the value is how many pages that makes."""

    def live(app_id: str = "shop") -> int:
        made = client.post("/payment-intent/create", json=intent(appId=app_id, orgId=...)).json["paymentIntentId"]
        stand_ins.control(f"intents/{made}/pay")
        for _ in range(6):
            stand_ins.control(f"charges/{made}/refund", amount=1)
        stand_ins.control(f"charges/{made}/dispute")
        return pages_of(stand_ins, app_id)

    return live


def events_of(stand_ins: StandIns, app_id: str) -> list[dict[str, Any]]:
    (account,) = [each for each in stand_ins.state()["accounts"].values() if app_id in each["apps"]]
    return [told for told in account["objects"]["event"] if told["type"] in EVENT_TYPES]


def pages_of(stand_ins: StandIns, app_id: str) -> int:
    """How many pages it takes to list all of an app's events, of the first types and of the others."""
    groups = Counter(EVENT_TYPES.index(told["type"]) // module.MAX_TYPES for told in events_of(stand_ins, app_id))
    assert min(groups[0], groups[1]) > 0
    return sum(-(-groups[group] // PAGE) for group in (0, 1))


def pages_listed(stand_ins: StandIns) -> int:
    """How many pages of events Stripe has answered so far."""
    listed = [entry for entry in stand_ins.ledger("stripe") if entry["path"] == "/v1/events"]
    return sum(entry["status"] == 200 for entry in listed)


def reconcile(services: Services) -> dict[str, Reconciled]:
    return {one.app_id: one for one in reconcile_apps(services, command="flask reconcile")}


def cursor(db: Connection, app_id: str = "shop") -> Any:
    return db.execute(CURSOR, {"app_id": app_id}).one()


@pytest.fixture
def left_window(services: Services, stand_ins: StandIns, live: Callable[..., int]) -> None:
    """An app's window that was left in its middle: of its pages, two were read."""
    live()
    stand_ins.fault("stripe", "status", status=429, path="/v1/events", skip=2)
    done = reconcile(services)["shop"]
    assert (done.listed, done.objects_read) == (2 * PAGE, False)


@contextmanager
def locked_payment(settings: Settings, app_id: str) -> Iterator[None]:
    """Another transaction holds an app's payment."""
    holder = create_engine(settings.database_url)
    with holder.begin() as connection:
        connection.execute(text("SELECT 1 FROM payments WHERE app_id = :app_id FOR UPDATE"), {"app_id": app_id})
        yield
    holder.dispose()


class TestResume:
    def test_each_page_is_read_once_though_stripe_refuses_each_in_turn(
        self, services: Services, stand_ins: StandIns, db: Connection, live: Callable[..., int]
    ) -> None:
        """Fails when a place isn't kept with each page, or isn't gone back to."""
        pages = live()
        assert pages >= 4
        for refused in range(pages):
            stand_ins.fault("stripe", "status", status=429, path="/v1/events", skip=min(refused, 1))
            assert "rate limiting" in str(reconcile(services)["shop"].error)
            assert cursor(db).reconciled_until is None

        done = reconcile(services)["shop"]

        assert (done.error, done.listed <= PAGE) == (None, True)
        assert pages_listed(stand_ins) == pages
        assert db.execute(STORED).scalar_one() == len(events_of(stand_ins, "shop"))

    def test_the_pages_before_a_late_one_that_is_refused_are_not_read_again(
        self, services: Services, stand_ins: StandIns, live: Callable[..., int]
    ) -> None:
        pages = live()
        stand_ins.fault("stripe", "status", status=429, path="/v1/events", skip=pages - 1)
        assert reconcile(services)["shop"].error
        assert pages_listed(stand_ins) == pages - 1

        assert reconcile(services)["shop"].error is None
        assert pages_listed(stand_ins) == pages

    def test_only_the_whole_window_moves_the_cursor_and_to_where_the_first_pass_began(
        self, services: Services, stand_ins: StandIns, db: Connection, left_window: None, live: Callable[..., int]
    ) -> None:
        """Fails when the cursor moves to the end of a later pass: what happened in between would be read by none."""
        window_until = cursor(db).window_until
        live()

        reconcile(services)

        left = cursor(db)
        assert (left.reconciled_until, left.window_since, left.types_left) == (window_until, None, None)
        assert db.execute(STORED).scalar_one() < len(events_of(stand_ins, "shop"))
        assert reconcile(services)["shop"].error is None
        assert db.execute(STORED).scalar_one() == len(events_of(stand_ins, "shop"))

    def test_a_window_of_which_nothing_was_read_is_begun_anew(
        self, services: Services, stand_ins: StandIns, db: Connection, live: Callable[..., int]
    ) -> None:
        live()
        stand_ins.fault("stripe", "status", status=429, path="/v1/events")

        reconcile(services)

        assert cursor(db).window_until is None

    def test_it_is_begun_anew_where_stripe_no_longer_lists_the_event_to_go_on_after(
        self, services: Services, stand_ins: StandIns, db: Connection, left_window: None
    ) -> None:
        """Fails when the place is kept: each pass would be refused for ever."""
        db.execute(text("UPDATE event_cursors SET last_event_id = 'evt_gone'"))

        assert reconcile(services)["shop"].error == "No such object: 'evt_gone'"
        assert reconcile(services)["shop"].error is None
        assert db.execute(STORED).scalar_one() == len(events_of(stand_ins, "shop"))

    def test_it_asks_for_the_types_that_were_left_whatever_this_version_asks_for(
        self,
        services: Services,
        stand_ins: StandIns,
        db: Connection,
        left_window: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Fails when a place is a number of a list that the next version may have changed."""
        monkeypatch.setattr(module, "EVENT_TYPES", tuple(reversed(EVENT_TYPES)))

        assert reconcile(services)["shop"].error is None
        assert db.execute(STORED).scalar_one() == len(events_of(stand_ins, "shop"))

    def test_a_cursor_that_the_version_before_has_moved_meanwhile_does_not_go_back(
        self, services: Services, stand_ins: StandIns, db: Connection, left_window: None
    ) -> None:
        db.execute(text("UPDATE event_cursors SET reconciled_until = now()"))
        moved = cursor(db).reconciled_until

        assert reconcile(services)["shop"].error is None
        assert cursor(db).reconciled_until == moved

    def test_the_objects_are_read_where_the_window_has_become_too_old_meanwhile(
        self, services: Services, stand_ins: StandIns, db: Connection, left_window: None
    ) -> None:
        db.execute(text("UPDATE event_cursors SET window_since = now() - interval '31 days'"))

        assert reconcile(services)["shop"].objects_read


class TestStop:
    def test_it_stops_between_two_events_and_goes_on_behind_the_last_one(
        self,
        services: Services,
        stand_ins: StandIns,
        db: Connection,
        live: Callable[..., int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Fails when a page is received to its end, or read again."""
        pages, received = live(), list[str]()
        receive = module.receive_event

        def receive_seven(event: Any, **options: Any) -> Any:
            received.append(event.id)
            if len(received) == PAGE + 2:
                services.stop.set()
            return receive(event, **options)

        monkeypatch.setattr(module, "receive_event", receive_seven)
        assert reconcile(services)["shop"].error == "stopped before the end"
        assert len(received) == PAGE + 2
        services.stop.is_set = False

        assert reconcile(services)["shop"].error is None
        assert len(received) == len(set(received)) == len(events_of(stand_ins, "shop"))
        # Where a page begins elsewhere, one more may be needed.
        assert pages_listed(stand_ins) <= pages + 2


class TestLock:
    def test_a_payment_that_is_locked_stops_no_other_app(
        self,
        services: Services,
        settings: Settings,
        db: Connection,
        live: Callable[..., int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Fails when one app's lock is taken for an outage of the database."""
        monkeypatch.setattr("app.database._BEGIN", "BEGIN; SET LOCAL lock_timeout = '200ms'; ")
        for app_id in ("first", "second"):
            live(app_id)

        with locked_payment(settings, "first"):
            done = reconcile(services)
        assert done["first"].error == "the database did not do it in time"
        assert done["second"].error is None

        assert {one.error for one in reconcile(services).values()} == {None}


class TestHang:
    def test_apps_whose_lists_hang_delay_no_other(
        self, services: Services, stand_ins: StandIns, db: Connection, live: Callable[..., int]
    ) -> None:
        """Fails when apps are reconciled one after another."""
        for app_id in ("first", "second", "third"):
            live(app_id)
        stand_ins.fault("stripe", "delay", path="/v1/events", seconds=30, executed=True, times=2)
        done = text("SELECT count(*) FROM event_cursors WHERE reconciled_until IS NOT NULL")

        with ThreadPoolExecutor(1) as threads:
            reconciling = threads.submit(reconcile, services)
            wait_until(lambda: db.execute(done).scalar_one() == 1, seconds=15, what="the third app")
            stand_ins.reset()
            assert len(reconciling.result(60)) == 3

    def test_the_others_have_another_turn_while_an_app_takes_longer_than_theirs(
        self, services: Services, stand_ins: StandIns, db: Connection, live: Callable[..., int]
    ) -> None:
        """Fails when the next turn begins with the end of the slowest app."""
        live("slow")
        stand_ins.fault("stripe", "delay", path="/v1/events", seconds=30, executed=True)
        done = reconcile_apps(services, command="flask worker", again_after_seconds=0.1)
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(next, done)
            held = text("SELECT 1 FROM event_cursors WHERE lease_until > now()")
            wait_until(lambda: db.execute(held).all(), seconds=15, what="the app that hangs")
            live("shop")

            assert first.result(60).app_id == "shop"
            stand_ins.reset()
            assert "slow" in {one.app_id for one in done}


class TestWindow:
    def test_what_is_left_of_it_shrinks_with_each_event_and_each_list(self) -> None:
        until = datetime.fromisoformat("2026-01-02T00:00:00+00:00")
        window = Window(until - timedelta(days=1), until)
        shares = [window.share_left]
        for hours in (6, 12):
            event = module.read_event(
                {
                    "id": "evt_1",
                    "type": "charge.updated",
                    "created": int((until - timedelta(hours=hours)).timestamp()),
                    "data": {"object": {}},
                }
            )
            window.pass_over(event)
            shares.append(window.share_left)
        window.end_types()
        shares.append(window.share_left)
        window.end_types()

        assert shares == [1.0, 32 / 37, 27 / 37, 17 / 37]
        assert window.share_left == 0

    @pytest.mark.parametrize("columns", ["window_since = now()", "last_event_id = 'evt_1'", "types_left = '{}'"])
    def test_the_database_keeps_no_part_of_one(
        self, client: FlaskClient, services: Services, db: Connection, live: Callable[..., int], columns: str
    ) -> None:
        live()
        reconcile(services)
        with pytest.raises(IntegrityError):
            db.execute(text(f"UPDATE event_cursors SET {columns}"))
