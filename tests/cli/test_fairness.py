"""`flask worker` as a process, while all that is asked for one app hangs: what is left of others is done meanwhile."""

import os
import pty
import signal
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from tests.cli.processes import Command
from tests.factories import intent
from tests.proxy import HangsFor
from tests.soak import amount
from tests.stand_ins import StandIns

FINISHED_OF = text("SELECT count(*) FROM operations WHERE app_id = :app_id AND step = 'finished'")
NEVER_TRIED = text("SELECT count(*) FROM operations WHERE app_id = 'slow' AND recovery_tries = 0 AND step = 'asked'")
PLACE = text("SELECT last_event_id FROM event_cursors WHERE app_id = 'shop'")

# Longer than a test waits, so that what hangs hangs to its end.
PATIENT = {"STRIPE_TIMEOUT_SECONDS": "60", "UPSTREAM_TIMEOUT_SECONDS": "60"}


@pytest.fixture
def hang_for(stand_ins: StandIns) -> Iterator[Callable[[bytes], HangsFor]]:
    """Puts a proxy before the stand-ins that never answers a message with a mark."""
    address = urlsplit(stand_ins.url)
    begun = []

    def hang(mark: bytes) -> HangsFor:
        running = HangsFor((str(address.hostname), int(address.port or 0)), mark).running()
        begun.append(running)
        return running.__enter__()  # type: ignore[return-value]

    yield hang
    for running in begun:
        running.__exit__(None, None, None)


def behind(proxy: HangsFor, environment: dict[str, str], **changes: str) -> dict[str, str]:
    """The environment of a process that reaches every stand-in through the proxy."""
    port = urlsplit(environment["STRIPE_API_BASE"]).port
    through = {name: value.replace(f":{port}", f":{proxy.port}") for name, value in environment.items()}
    return through | changes


def finished_of(db: Connection, app_id: str) -> int:
    return int(db.execute(FINISHED_OF, {"app_id": app_id}).scalar_one())


class TestRecovery:
    @pytest.mark.parametrize("mark", [b"appId=slow", b"sk_test_sandbox_slow"], ids=["its key", "its Stripe"])
    def test_an_app_whose_upstream_hangs_delays_no_other(
        self,
        environment: dict[str, str],
        db: Connection,
        leave_asked: Callable[..., list[str]],
        hang_for: Callable[[bytes], HangsFor],
        mark: bytes,
    ) -> None:
        """Fails when rows are walked one after another, and when an app may have all places."""
        leave_asked(12, appId="slow")
        leave_asked(3, appId="shop")
        proxy = hang_for(mark)
        with Command.start("worker", environment=behind(proxy, environment, **PATIENT)) as worker:
            worker.wait_until(lambda: finished_of(db, "shop") == 3, what="the other app's")
            assert db.execute(NEVER_TRIED).scalar_one() == 12

            # Also what is left once all that is in hand hangs.
            worker.wait_until(lambda: proxy.hanging, what="the app that hangs")
            leave_asked(1, appId="late")
            worker.wait_until(lambda: finished_of(db, "late") == 1, what="what came later")
            assert db.execute(NEVER_TRIED).scalar_one() == 12

    @pytest.mark.soak
    def test_one_worker_ends_what_an_app_has_left_behind_what_takes_another_app_hours(
        self,
        environment: dict[str, str],
        db: Connection,
        leave_asked: Callable[..., list[str]],
        hang_for: Callable[[bytes], HangsFor],
    ) -> None:
        """Each of an app's operations takes a whole timeout, and all of them come first."""
        leave_asked(amount(40, 500), appId="slow")
        left = amount(5, 50)
        leave_asked(left, appId="shop")
        # What runs-service didn't hear is told again after four times its timeout.
        timeout = {"STRIPE_TIMEOUT_SECONDS": str(amount(2, 20)), "UPSTREAM_TIMEOUT_SECONDS": "2"}
        proxy = hang_for(b"sk_test_sandbox_slow")
        with Command.start("worker", environment=behind(proxy, environment, **timeout)) as worker:
            began_at = time.monotonic()
            worker.wait_until(lambda: finished_of(db, "shop") == left, what="the other app's")
            print(f"{left} operations after {time.monotonic() - began_at:.1f} s")

            worker.wait_until(lambda: proxy.hanging >= amount(4, 6), what="the app that hangs to be tried again")
            assert finished_of(db, "slow") == 0
            began_at = time.monotonic()
            assert worker.end() == 0
            assert time.monotonic() - began_at < amount(2, 20) + 10


class TestReconciliation:
    def test_apps_whose_lists_of_events_hang_stop_no_recovery(
        self,
        environment: dict[str, str],
        db: Connection,
        client: FlaskClient,
        leave_asked: Callable[..., list[str]],
        hang_for: Callable[[bytes], HangsFor],
    ) -> None:
        """Fails when jobs take turns."""
        for app_id in ("slow", "slower"):
            assert client.post("/payment-intent/create", json=intent(appId=app_id)).status_code == 200
        proxy = hang_for(b"GET /v1/events")
        with Command.start("worker", environment=behind(proxy, environment, **PATIENT)) as worker:
            worker.wait_until(lambda: proxy.hanging == 2, what="two lists")
            leave_asked(2)
            worker.wait_until(lambda: finished_of(db, "shop") == 2, what="recovery")


class TestOrphanRuns:
    def test_an_app_whose_runs_can_not_be_listed_delays_neither_recovery_nor_the_search_for_another(
        self,
        environment: dict[str, str],
        db: Connection,
        client: FlaskClient,
        leave_asked: Callable[..., list[str]],
        hang_for: Callable[[bytes], HangsFor],
    ) -> None:
        """Fails when searches are made one after another, or when those of an app take all places."""
        for number in range(6):
            client.post("/payment-intent/create", json=intent(appId="slow", orgId=f"org_slow_{number}"))
        client.post("/payment-intent/create", json=intent())
        search = "UPDATE operations SET run_search_from = created_at, run_search_until = now() - interval '1 day'"
        db.execute(text(search))
        left = text("SELECT count(*) FROM operations WHERE app_id = :app_id AND run_search_until IS NOT NULL")
        proxy = hang_for(b"clerkOrgId=org_slow")
        with Command.start("worker", environment=behind(proxy, environment, **PATIENT)) as worker:
            worker.wait_until(lambda: db.execute(left, {"app_id": "shop"}).scalar_one() == 0, what="the other's search")
            worker.wait_until(lambda: proxy.hanging == 2, what="what hangs")
            leave_asked(2, orgId=...)
            worker.wait_until(lambda: finished_of(db, "shop") == 3, what="recovery")
            assert db.execute(left, {"app_id": "slow"}).scalar_one() == 6

            # Also a search that has become due meanwhile: a lease and five seconds ago, and not before the turn began.
            due_now = search.replace("1 day", "65 seconds")
            db.execute(text(f"{due_now} WHERE app_id = 'shop' AND request ->> 'org_id' IS NOT NULL"))
            worker.wait_until(lambda: db.execute(left, {"app_id": "shop"}).scalar_one() == 0, what="another search")


class TestEnd:
    @pytest.fixture
    def busy_payment(self, client: FlaskClient, stand_ins: StandIns) -> str:
        """A payment whose events fill more than one page of 100 while no webhook arrives."""
        made = client.post("/payment-intent/create", json=intent(orgId=...)).json["paymentIntentId"]
        stand_ins.control(f"intents/{made}/pay")
        for _ in range(60):
            stand_ins.control(f"charges/{made}/refund", amount=1)
        return str(made)

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
    def test_a_worker_that_ends_in_the_middle_of_a_page_ends_soon_and_the_next_goes_on_behind_the_page_before(
        self,
        environment: dict[str, str],
        db: Connection,
        stand_ins: StandIns,
        busy_payment: str,
        hang_for: Callable[[bytes], HangsFor],
        number: signal.Signals,
        status: int,
    ) -> None:
        """Fails when a worker is ended by nothing but the last page, and when the next one begins with the first."""
        proxy = hang_for(b"starting_after")
        impatient = behind(proxy, environment, STRIPE_TIMEOUT_SECONDS="2")
        with Command.start("worker", environment=impatient) as worker:
            worker.wait_until(lambda: proxy.hanging, what="the second page")
            began_at = time.monotonic()
            assert worker.end(number) == status
            assert time.monotonic() - began_at < 10
        assert db.execute(PLACE).scalar_one() is not None
        db.execute(text("UPDATE event_cursors SET lease_until = now()"))
        pages = self._pages(stand_ins)
        assert pages == 1

        with Command.start("worker", environment=environment) as worker:
            worker.wait_until(lambda: db.execute(PLACE).scalar_one() is None, what="the rest")
            assert worker.end() == 0
        # The second page of the first types, and one of the others.
        assert self._pages(stand_ins) == pages + 2
        (account,) = stand_ins.state()["accounts"].values()
        stored = text("SELECT count(*) FROM stripe_events WHERE id LIKE 'evt_%'")
        assert db.execute(stored).scalar_one() == len(account["objects"]["event"])

    def _pages(self, stand_ins: StandIns) -> int:
        return sum(entry["path"] == "/v1/events" for entry in stand_ins.ledger("stripe"))


class TestProgress:
    def _run(self, *arguments: str, environment: dict[str, str]) -> str:
        """What a command shows on standard error where that is a terminal."""
        terminal, error = pty.openpty()
        with Command.start(*arguments, environment=environment, stderr_to=error) as command:
            os.close(error)
            shown = b"".join(_read_all(terminal)).decode()
            assert command.process.wait(60) == 0
        os.close(terminal)
        return shown

    def test_recover_shows_how_many_are_left(
        self, environment: dict[str, str], leave_asked: Callable[..., list[str]]
    ) -> None:
        leave_asked(2)

        shown = self._run("recover", environment=environment)

        lines = [line for line in shown.split("\r\x1b[K") if line]
        assert lines == ["2 operations left", "1 operations left", "0 operations left"]

    def test_reconcile_shows_how_many_apps_are_left_and_how_much_of_one(
        self, environment: dict[str, str], client: FlaskClient
    ) -> None:
        client.post("/payment-intent/create", json=intent())

        shown = self._run("reconcile", environment=environment)

        lines = [line for line in shown.split("\r\x1b[K") if line]
        assert lines == [
            "1 apps left",
            "1 apps left; of shop 100%",
            "1 apps left; of shop 46%",
            "0 apps left; of shop 46%",
        ]

    @pytest.mark.parametrize("command", ["recover", "reconcile"])
    def test_nothing_is_shown_where_it_is_no_terminal(
        self, environment: dict[str, str], leave_asked: Callable[..., list[str]], command: str
    ) -> None:
        leave_asked(1)
        with Command.start(command, environment=environment) as running:
            assert running.process.wait(60) == 0
            assert running.complained() == []


def _read_all(terminal: int) -> Iterator[bytes]:
    """All that is written to a terminal, until nobody has it open any more."""
    while True:
        try:
            part = os.read(terminal, 65_536)
        except OSError:
            # Linux says so where others give an end of file.
            return
        if not part:
            return
        yield part
