"""An answer of an upstream that is too deep is one that can't be read: a 502, and never a bug of ours."""

from collections.abc import Callable

import pytest

from app.errors import ServiceError, UpstreamError
from app.services.reconciliation.object_events import PAYMENT_INTENTS
from app.services.upstreams.call_context import CallContext, Deadline
from app.services.upstreams.keys import KeyClient, Provider
from app.services.upstreams.runs import RunsClient
from app.services.upstreams.stripe import Stripe
from tests.services.upstreams import answering, upstream
from tests.stand_ins import StandIns

# The SDK trips over 600 levels, and the JSON of Python's own library over 1,000.
TOO_DEEP = [300, 600, 1000, 1100, 100_000]


def context() -> CallContext:
    return CallContext("GET", "/x", "request-1", Deadline.after(5))


def answer(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


def deep(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.fixture
def keys(stand_ins: StandIns) -> KeyClient:
    return KeyClient(
        url=stand_ins.environment["KEY_SERVICE_URL"],
        api_key=stand_ins.environment["KEY_SERVICE_API_KEY"],
        timeout_seconds=5,
        cache_seconds=60,
    )


class TestStripe:
    @pytest.fixture
    def retrieve(self, keys: KeyClient) -> Callable[[bytes], object]:
        """Ask Stripe for an intent, and give what was read of the answer."""

        def retrieve(answered: bytes) -> object:
            with upstream(answering(answered)) as server:
                stripe = Stripe(api_base=server.url, timeout_seconds=5, keys=keys)
                return stripe.retrieve(PAYMENT_INTENTS, "shop", "pi_1", context())

        return retrieve

    @pytest.mark.parametrize("levels", [1100, 100_000])
    def test_it_raises_when_an_object_is_too_deep(self, retrieve: Callable[[bytes], object], levels: int) -> None:
        with pytest.raises(UpstreamError):
            retrieve(answer(200, b'{"object": "payment_intent", "id": "pi_1", "deep": %s}' % deep(levels)))

    @pytest.mark.parametrize("status", [400, 402, 404, 409, 429, 500])
    @pytest.mark.parametrize("levels", TOO_DEEP)
    def test_it_raises_an_error_of_ours_when_an_error_is_too_deep(
        self, retrieve: Callable[[bytes], object], status: int, levels: int
    ) -> None:
        """Fails when the SDK's own recursion ends where Python's does, and nobody expects that."""
        error = b'{"error": {"message": "No.", "code": "odd", "payment_intent": %s}}' % deep(levels)
        with pytest.raises(ServiceError) as caught:
            retrieve(answer(status, error))

        assert caught.value.status in (400, 402, 429, 502, 503)


class TestKeyService:
    @pytest.mark.parametrize("levels", [1100, 100_000])
    def test_it_raises_when_an_answer_is_too_deep(self, levels: int) -> None:
        with upstream(answering(answer(200, b'{"key": "sk_test_1", "deep": %s}' % deep(levels)))) as server:
            keys = KeyClient(url=server.url, api_key="k", timeout_seconds=5, cache_seconds=60)
            with pytest.raises(UpstreamError):
                keys.get(Provider.STRIPE, "shop", context())

    @pytest.mark.parametrize("levels", TOO_DEEP)
    def test_it_raises_when_the_key_is_deep(self, levels: int) -> None:
        with upstream(answering(answer(200, b'{"key": %s}' % deep(levels)))) as server:
            keys = KeyClient(url=server.url, api_key="k", timeout_seconds=5, cache_seconds=60)
            with pytest.raises(UpstreamError):
                keys.get(Provider.STRIPE, "shop", context())


class TestRunsService:
    @pytest.mark.parametrize("levels", TOO_DEEP)
    @pytest.mark.parametrize("field", [b"id", b"costs"])
    def test_it_raises_when_an_answer_is_too_deep(self, field: bytes, levels: int) -> None:
        body = b'{"status": "running", "%s": %s}' % (field, deep(levels))
        with upstream(answering(answer(200, body))) as server:
            runs = RunsClient(url=server.url, api_key="k", timeout_seconds=5)
            with pytest.raises(UpstreamError):
                runs.get("run_1", context())
