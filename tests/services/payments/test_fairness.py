"""Creates of one app that all hang leave places to those of another."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from flask import Flask

from tests.factories import intent
from tests.proxy import HangsFor
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import WebProcess

PLACES = 24


@pytest.fixture
def slow_key(stand_ins: StandIns) -> Iterator[HangsFor]:
    """Hangs before key-service whenever that is asked for the key of the app `slow`."""
    address = urlsplit(stand_ins.url)
    with HangsFor((str(address.hostname), int(address.port or 0)), b"appId=slow").running() as proxy:
        assert isinstance(proxy, HangsFor)
        yield proxy


class TestSlowKey:
    def test_24_creates_of_an_app_whose_key_is_slow_refuse_no_other_app(
        self, environment: dict[str, str], app: Flask, slow_key: HangsFor
    ) -> None:
        """Fails when places are whoever's comes first."""
        url = f"http://127.0.0.1:{slow_key.port}/key-service"
        one = {"KEY_SERVICE_URL": url, "UPSTREAM_TIMEOUT_SECONDS": "45", "WEB_CONCURRENCY": "1"}

        def create(app_id: str) -> tuple[int, str]:
            answer = web.post("/payment-intent/create", intent(appId=app_id))
            return answer.status_code, answer.json().get("code", "")

        with WebProcess.start(environment | one) as web, ThreadPoolExecutor(PLACES + 1) as threads:
            slow = [threads.submit(create, "slow") for _ in range(PLACES + 1)]
            # That one more is refused tells that all of the app's places are taken.
            wait_until(lambda: any(each.done() for each in slow), seconds=30, what="a refusal")

            assert create("shop")[0] == 200

            assert sum(each.done() for each in slow) == 1
            slow_key.ended.set()
            answers = sorted(each.result(60) for each in slow)
        assert answers == [(503, "overloaded"), *[(503, "upstream_unavailable")] * PLACES]
