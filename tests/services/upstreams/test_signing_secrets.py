"""Signing secrets: what is kept of them through forgeries and outages, and how often key-service is asked."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from app.errors import Overloaded, UpstreamTimeout, UpstreamUnavailable
from app.services.upstreams import signing_secrets
from app.services.upstreams.call_context import CallContext, Deadline
from app.services.upstreams.keys import KeyClient
from app.services.upstreams.signing_secrets import UNKNOWN_ASKS_A_SECOND, SigningSecrets
from tests.stand_ins import StandIns
from tests.waiting import wait_until

SECRET = "whsec_sandbox_shop"
FORGED = "whsec_forged"
THREADS = 32
ASKING = 1


@pytest.fixture
def new_secrets(stand_ins: StandIns) -> Callable[..., SigningSecrets]:
    def make(cache_seconds: float = 60, timeout_seconds: float = 5) -> SigningSecrets:
        keys = KeyClient(
            url=stand_ins.environment["KEY_SERVICE_URL"],
            api_key=stand_ins.environment["KEY_SERVICE_API_KEY"],
            timeout_seconds=timeout_seconds,
            cache_seconds=cache_seconds,
        )
        return SigningSecrets(keys, cache_seconds=cache_seconds, threads=THREADS)

    return make


@pytest.fixture
def secrets(new_secrets: Callable[..., SigningSecrets]) -> SigningSecrets:
    return new_secrets()


def has_signed(
    secrets: SigningSecrets, secret: str = SECRET, *, app_id: str = "shop", seconds: float = 10
) -> bool | type[Exception]:
    """What is said of a webhook that this secret signed."""
    context = CallContext("POST", "/webhooks/stripe/{appId}", "request-1", Deadline.after(seconds))
    try:
        return secrets.has_signed(app_id, lambda known: secret in known, context)
    except (Overloaded, UpstreamUnavailable, UpstreamTimeout) as error:
        return type(error)


def set_secret(stand_ins: StandIns, secret: str | None, *, app_id: str = "shop") -> None:
    stand_ins.control("keys", appId=app_id, provider="stripe-webhook", key=secret)


def forge_names(secrets: SigningSecrets, count: int, *, threads: int = 8) -> set[bool | type[Exception]]:
    """What is said of forgeries, each in another app's name."""
    with ThreadPoolExecutor(threads) as pool:
        return set(pool.map(lambda number: has_signed(secrets, FORGED, app_id=f"app-{number}"), range(count)))


class TestKept:
    """Secrets of an app of which a webhook was verified."""

    def test_it_takes_one_without_asking_while_it_is_new(self, secrets: SigningSecrets, stand_ins: StandIns) -> None:
        assert [has_signed(secrets) for _ in range(3)] == [True] * 3
        assert len(stand_ins.ledger("key-service")) == 1

    def test_it_asks_every_time_when_it_may_not_remember(
        self, new_secrets: Callable[..., SigningSecrets], stand_ins: StandIns
    ) -> None:
        secrets = new_secrets(cache_seconds=0)

        assert [has_signed(secrets) for _ in range(3)] == [True] * 3
        assert len(stand_ins.ledger("key-service")) == 3

    def test_it_takes_each_of_several(self, secrets: SigningSecrets, stand_ins: StandIns) -> None:
        set_secret(stand_ins, "whsec_new, whsec_old")

        assert [has_signed(secrets, secret) for secret in ("whsec_old", "whsec_new", "whsec_new, whsec_old")] == [
            True,
            True,
            False,
        ]

    @pytest.mark.parametrize("fault", [{"kind": "status", "status": 503}, {"kind": "status", "status": 401}])
    def test_it_keeps_an_old_one_through_an_outage(
        self, new_secrets: Callable[..., SigningSecrets], stand_ins: StandIns, fault: dict[str, object]
    ) -> None:
        """Fails when `has_signed` lets the failure through."""
        secrets = new_secrets(cache_seconds=0)
        assert has_signed(secrets) is True
        stand_ins.fault("key-service", times=0, **fault)  # type: ignore[arg-type]

        assert [has_signed(secrets) for _ in range(3)] == [True] * 3
        assert len(stand_ins.ledger("key-service")) == 2

    def test_it_waits_for_no_upstream_that_hangs(
        self, new_secrets: Callable[..., SigningSecrets], stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(signing_secrets, "PATIENCE_SECONDS", 0.3)
        secrets = new_secrets(cache_seconds=0)
        has_signed(secrets)
        stand_ins.fault("key-service", "hang", times=0)
        began_at = time.monotonic()

        assert [has_signed(secrets) for _ in range(3)] == [True] * 3
        assert time.monotonic() - began_at < 3
        stand_ins.heal()

    def test_a_forgery_takes_none_away(self, secrets: SigningSecrets, stand_ins: StandIns) -> None:
        has_signed(secrets)
        stand_ins.fault("key-service", "status", status=503, times=0)

        assert has_signed(secrets, FORGED) is UpstreamUnavailable
        assert has_signed(secrets, FORGED) is Overloaded
        assert has_signed(secrets) is True

    def test_it_takes_none_that_was_removed(
        self, new_secrets: Callable[..., SigningSecrets], stand_ins: StandIns
    ) -> None:
        secrets = new_secrets(cache_seconds=0)
        has_signed(secrets)
        set_secret(stand_ins, None)

        assert has_signed(secrets) is False

    def test_a_flood_of_names_pushes_none_out(
        self, new_secrets: Callable[..., SigningSecrets], stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when `_keep` keeps what no webhook fitted."""
        monkeypatch.setattr(signing_secrets, "MAX_APPS", 3)
        secrets = new_secrets()
        has_signed(secrets)
        forge_names(secrets, 10)
        stand_ins.fault("key-service", "status", status=503, times=0)

        assert has_signed(secrets) is True


class TestRotated:
    def test_it_asks_again(self, secrets: SigningSecrets, stand_ins: StandIns) -> None:
        assert has_signed(secrets) is True
        for rotated in ("whsec_1", "whsec_2"):
            set_secret(stand_ins, rotated)
            assert has_signed(secrets, rotated) is True
            assert has_signed(secrets, rotated) is True
        assert len(stand_ins.ledger("key-service")) == 3

    @pytest.mark.parametrize("is_known", [True, False])
    def test_it_never_says_no_right_after_a_forgery(
        self,
        new_secrets: Callable[..., SigningSecrets],
        stand_ins: StandIns,
        monkeypatch: pytest.MonkeyPatch,
        is_known: bool,
    ) -> None:
        """Fails when `_decide` doesn't look when the secrets were asked for."""
        monkeypatch.setattr(signing_secrets, "REFRESH_SECONDS", 0.5)
        secrets = new_secrets()
        if is_known:
            has_signed(secrets)
        assert has_signed(secrets, FORGED) is False
        set_secret(stand_ins, "whsec_rotated")

        said = []
        wait_until(lambda: said.append(has_signed(secrets, "whsec_rotated")) or said[-1] is True, seconds=5, what="yes")
        assert set(said) == {Overloaded, True}


class TestAsks:
    def test_it_remembers_that_an_app_has_none(self, secrets: SigningSecrets, stand_ins: StandIns) -> None:
        set_secret(stand_ins, None)

        assert [has_signed(secrets) for _ in range(20)] == [False] + [Overloaded] * 19
        assert len(stand_ins.ledger("key-service")) == 1

    def test_it_asks_once_for_all_who_come_at_once(self, secrets: SigningSecrets, stand_ins: StandIns) -> None:
        """What Stripe tells of one payment comes in several events; right after a start no app is known."""
        stand_ins.fault("key-service", "delay", seconds=0.5)
        barrier = threading.Barrier(3)

        def deliver(_: int) -> bool | type[Exception]:
            barrier.wait()
            return has_signed(secrets)

        with ThreadPoolExecutor(3) as threads:
            assert list(threads.map(deliver, range(3))) == [True] * 3
        assert len(stand_ins.ledger("key-service")) == 1

    def test_it_asks_little_at_once_about_names(self, secrets: SigningSecrets, stand_ins: StandIns) -> None:
        stand_ins.fault("key-service", "delay", seconds=1, times=0)
        began_at = time.monotonic()
        assert forge_names(secrets, 50) <= {False, Overloaded}

        seconds = time.monotonic() - began_at
        assert len(stand_ins.ledger("key-service")) <= ASKING * seconds

    def test_who_was_refused_may_ask_as_soon_as_there_is_room(
        self, secrets: SigningSecrets, stand_ins: StandIns
    ) -> None:
        """Fails when an ask that was refused counts as one of the last seconds."""
        stand_ins.fault("key-service", "delay", seconds=1, times=ASKING)
        with ThreadPoolExecutor(ASKING) as threads:
            for number in range(ASKING):
                threads.submit(has_signed, secrets, FORGED, app_id=f"app-{number}")
            wait_until(lambda: len(secrets._others._recent) == ASKING, seconds=5, what="all places to be taken")
            assert has_signed(secrets) is Overloaded

        assert has_signed(secrets) is True

    def test_it_asks_little_a_second_about_names(self, secrets: SigningSecrets, stand_ins: StandIns) -> None:
        began_at = time.monotonic()
        assert forge_names(secrets, 200, threads=2) <= {False, Overloaded}

        seconds = time.monotonic() - began_at
        assert len(stand_ins.ledger("key-service")) <= UNKNOWN_ASKS_A_SECOND * (seconds + 1)

    def test_a_flood_of_names_keeps_no_known_app_from_asking(
        self, new_secrets: Callable[..., SigningSecrets], stand_ins: StandIns
    ) -> None:
        """Fails when known apps and others ask by the same limit."""
        secrets = new_secrets(timeout_seconds=2)
        has_signed(secrets)
        set_secret(stand_ins, "whsec_rotated")
        stand_ins.fault("key-service", "hang", times=0)
        with ThreadPoolExecutor(ASKING) as threads:
            names = [threads.submit(has_signed, secrets, FORGED, app_id=f"app-{n}") for n in range(ASKING)]
            wait_until(lambda: len(stand_ins.ledger("key-service")) > ASKING, seconds=5, what="a flood")
            stand_ins.heal()

            assert has_signed(secrets, FORGED, app_id="one-more") is Overloaded
            assert has_signed(secrets, "whsec_rotated") is True
            assert not any(name.done() for name in names)

    def test_who_waits_for_the_answer_to_another_has_a_deadline_of_its_own(
        self, new_secrets: Callable[..., SigningSecrets], stand_ins: StandIns
    ) -> None:
        secrets = new_secrets(timeout_seconds=2)
        stand_ins.fault("key-service", "hang", times=0)
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(has_signed, secrets)
            wait_until(partial(secrets._others._recent.get, "shop"), seconds=5, what="the first to ask")

            assert has_signed(secrets, seconds=0.2) is Overloaded
            assert not first.done()
            assert first.result() is UpstreamTimeout
        stand_ins.heal()
