"""key-service: one asker, a short memory, and failures that are shared."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.errors import NoStripeKey, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from app.services.upstreams.call_context import CallContext, Deadline
from app.services.upstreams.keys import KeyClient, Provider
from tests.stand_ins import StandIns
from tests.waiting import wait_until

THREADS = 10


def context(seconds: float = 5) -> CallContext:
    return CallContext("POST", "/checkout/create", "request-1", Deadline.after(seconds))


@pytest.fixture
def new_client(stand_ins: StandIns) -> Callable[..., KeyClient]:
    def make(cache_seconds: float = 60) -> KeyClient:
        return KeyClient(
            url=stand_ins.environment["KEY_SERVICE_URL"],
            api_key=stand_ins.environment["KEY_SERVICE_API_KEY"],
            timeout_seconds=5,
            cache_seconds=cache_seconds,
        )

    return make


def get_at_once(client: KeyClient) -> list[object]:
    barrier = threading.Barrier(THREADS)

    def get(_: int) -> object:
        barrier.wait()
        try:
            return client.get(Provider.STRIPE, "shop", context())
        except UpstreamError as error:
            return type(error)

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(get, range(THREADS)))


class TestGet:
    def test_it_asks_once_for_all_who_ask_at_once(
        self, new_client: Callable[..., KeyClient], stand_ins: StandIns
    ) -> None:
        stand_ins.fault("key-service", "delay", seconds=0.5)

        assert set(get_at_once(new_client())) == {"sk_test_sandbox_shop"}
        assert len(stand_ins.ledger()) == 1

    def test_it_shares_a_failure_too(self, new_client: Callable[..., KeyClient], stand_ins: StandIns) -> None:
        stand_ins.fault("key-service", "delay", seconds=0.5)
        stand_ins.fault("key-service", "status", status=503, times=0)
        client = new_client()

        answers = get_at_once(client)
        assert UpstreamUnavailable in answers or "sk_test_sandbox_shop" in answers
        assert len(stand_ins.ledger()) <= 2

    def test_who_waits_for_the_answer_to_another_has_a_deadline_of_its_own(
        self, new_client: Callable[..., KeyClient], stand_ins: StandIns
    ) -> None:
        """Fails when `_wait` waits without one."""
        client = new_client()
        stand_ins.fault("key-service", "delay", seconds=1.5)
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(client.get, Provider.STRIPE, "shop", context())
            wait_until(lambda: client._asking, seconds=5, what="the first to ask")

            with pytest.raises(UpstreamTimeout):
                client.get(Provider.STRIPE, "shop", context(0.2))
            assert not first.done()
            assert first.result() == "sk_test_sandbox_shop"

    def test_it_remembers_a_key_and_no_failure(self, new_client: Callable[..., KeyClient], stand_ins: StandIns) -> None:
        client = new_client()
        stand_ins.fault("key-service", "status", status=503)
        with pytest.raises(UpstreamUnavailable):
            client.get(Provider.STRIPE, "shop", context())

        assert [client.get(Provider.STRIPE, "shop", context()) for _ in range(3)] == ["sk_test_sandbox_shop"] * 3
        assert len(stand_ins.ledger()) == 2

    def test_it_asks_every_time_when_it_may_not_remember(
        self, new_client: Callable[..., KeyClient], stand_ins: StandIns
    ) -> None:
        client = new_client(cache_seconds=0)
        for _ in range(3):
            client.get(Provider.STRIPE, "shop", context())

        assert len(stand_ins.ledger()) == 3

    def test_it_keeps_apps_and_providers_apart(self, new_client: Callable[..., KeyClient]) -> None:
        client = new_client()
        keys = {client.get(provider, app_id, context()) for provider in Provider for app_id in ("shop", "other")}

        assert len(keys) == 4

    def test_it_says_that_there_is_none(self, new_client: Callable[..., KeyClient], stand_ins: StandIns) -> None:
        stand_ins.control("keys", appId="shop", key=None)

        with pytest.raises(NoStripeKey, match="'shop'"):
            new_client().get(Provider.STRIPE, "shop", context())

    @pytest.mark.parametrize("body", [[1], {}, {"key": None}, {"key": ""}, {"key": "sk\nx"}, {"key": "sk_\u00e9"}])
    def test_it_takes_nothing_that_is_no_key(
        self, new_client: Callable[..., KeyClient], stand_ins: StandIns, body: object
    ) -> None:
        stand_ins.fault("key-service", "json", body=body)

        with pytest.raises(UpstreamError):
            new_client().get(Provider.STRIPE, "shop", context())


class TestForget:
    def test_it_asks_again_for_a_key_that_was_wrong(
        self, new_client: Callable[..., KeyClient], stand_ins: StandIns
    ) -> None:
        client = new_client()
        key = client.get(Provider.STRIPE, "shop", context())
        stand_ins.control("keys", appId="shop", key="sk_test_fresh")
        client.forget(Provider.STRIPE, "shop", key)

        assert client.get(Provider.STRIPE, "shop", context()) == "sk_test_fresh"

    def test_it_keeps_a_key_that_replaced_the_wrong_one(
        self, new_client: Callable[..., KeyClient], stand_ins: StandIns
    ) -> None:
        client = new_client()
        client.get(Provider.STRIPE, "shop", context())
        client.forget(Provider.STRIPE, "shop", "sk_test_older")
        client.get(Provider.STRIPE, "shop", context())

        assert len(stand_ins.ledger()) == 1
