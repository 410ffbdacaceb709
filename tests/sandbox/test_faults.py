"""The faults, and what of the sandbox survives its own."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.sandbox.conftest import ROOT, TIMEOUT_SECONDS, Sandbox, running_sandbox
from tests.waiting import wait_until

INTENTS = "/v1/payment_intents"
INTENT = {"amount": "500", "currency": "usd"}
EXCEPTIONS = requests.exceptions


def fault(sandbox: Sandbox, kind: str, **options: Any) -> None:
    sandbox.control("faults", service="stripe", kind=kind, **options)


def create(sandbox: Sandbox, *, key: str | None = None, timeout: float = TIMEOUT_SECONDS) -> requests.Response:
    """Create an intent over a connection of its own."""
    headers = {"Authorization": "Bearer sk_test_one"} | ({"Idempotency-Key": key} if key else {})
    return requests.post(sandbox.url + INTENTS, data=INTENT, headers=headers, timeout=timeout, allow_redirects=False)


def executed(sandbox: Sandbox) -> list[str]:
    return [entry["effect"] for entry in sandbox.ledger("stripe") if entry["effect"]]


def wait_until_taken(sandbox: Sandbox) -> None:
    """Wait until a request suffers the fault."""
    wait_until(lambda: not sandbox.read("faults")["faults"], seconds=TIMEOUT_SECONDS, what="a request to suffer")


@pytest.mark.parametrize("done", [False, True])
class TestEveryKind:
    """Each with an operation that is done all the same, and with one that isn't."""

    @pytest.mark.parametrize(
        ("options", "status", "body"),
        [
            ({"kind": "status", "status": 503}, 503, '{"error"'),
            ({"kind": "status", "status": 429, "headers": {"Retry-After": "7"}}, 429, '{"error"'),
            ({"kind": "json", "body": [1]}, 200, "[1]"),
            ({"kind": "locked"}, 429, '{"error":{"code":"lock_timeout"'),
            ({"kind": "html"}, 200, "<!doctype html>"),
            ({"kind": "redirect"}, 302, ""),
        ],
    )
    def test_it_gives_another_answer(
        self, sandbox: Sandbox, done: bool, options: dict[str, Any], status: int, body: str
    ) -> None:
        fault(sandbox, **options, executed=done)

        answer = create(sandbox)

        assert (answer.status_code, answer.text[: len(body)]) == (status, body)
        assert options.get("headers", {}).items() <= answer.headers.items()
        assert executed(sandbox) == ["payment_intent.create"] * done
        assert sandbox.ledger("stripe")[0]["status"] == status
        assert create(sandbox).status_code == 200

    @pytest.mark.parametrize(
        ("kind", "error", "status"),
        [
            ("hang", EXCEPTIONS.ReadTimeout, None),
            ("reset", EXCEPTIONS.ConnectionError, None),
            ("half_body", EXCEPTIONS.ChunkedEncodingError, 200),
        ],
    )
    def test_it_breaks_the_answer(
        self, sandbox: Sandbox, done: bool, kind: str, error: type[Exception], status: int | None
    ) -> None:
        fault(sandbox, kind, executed=done)

        with pytest.raises(error):
            create(sandbox, timeout=0.3)

        assert executed(sandbox) == ["payment_intent.create"] * done
        assert sandbox.ledger("stripe")[0]["status"] == status

    @pytest.mark.parametrize(("kind", "pause"), [("drip", 0.05), ("drip_headers", 0.005)])
    def test_it_drips_for_longer_than_a_client_waits_for_a_byte(
        self, sandbox: Sandbox, done: bool, kind: str, pause: float
    ) -> None:
        fault(sandbox, kind, seconds=pause, executed=done)
        url, began = sandbox.url + INTENTS, time.monotonic()

        with requests.post(url, data=INTENT, auth=("sk_test_one", ""), timeout=0.3, stream=True) as answer:
            assert answer.status_code == 200
            assert len(answer.raw.read(10)) == 10

        assert time.monotonic() - began > 0.4
        assert executed(sandbox) == ["payment_intent.create"] * done


class TestDelay:
    @pytest.mark.parametrize("done", [False, True])
    def test_the_key_is_in_use_until_the_answer(self, sandbox: Sandbox, done: bool) -> None:
        fault(sandbox, "delay", seconds=0.4, executed=done)
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(create, sandbox, key="k")
            wait_until_taken(sandbox)

            conflict = create(sandbox, key="k")

            assert conflict.status_code == 409
            assert conflict.json()["error"]["code"] == "idempotency_key_in_use"
            assert slow.result().status_code == 200
        assert create(sandbox, key="k").json()["id"] == slow.result().json()["id"]
        assert executed(sandbox) == ["payment_intent.create"]

    def test_nothing_is_executed_after_a_reset(self, sandbox: Sandbox) -> None:
        fault(sandbox, "delay", seconds=20)
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(create, sandbox)
            wait_until_taken(sandbox)
            sandbox.control("reset")
            with pytest.raises(EXCEPTIONS.ConnectionError):
                slow.result()
        assert executed(sandbox) == []


class TestKeptAnswers:
    def test_a_5xx_of_an_executed_request_is_given_again(self, sandbox: Sandbox) -> None:
        fault(sandbox, "status", status=500, executed=True)
        answers = [create(sandbox, key="k") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [500, 500]
        assert answers[1].headers["Idempotent-Replayed"] == "true"
        assert executed(sandbox) == ["payment_intent.create"]

    def test_the_true_answer_is_kept_when_its_way_was_cut(self, sandbox: Sandbox) -> None:
        fault(sandbox, "reset", executed=True)
        with pytest.raises(EXCEPTIONS.ConnectionError):
            create(sandbox, key="k")
        again = create(sandbox, key="k")
        assert (again.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")

    def test_a_429_comes_before_the_key_is_looked_at(self, sandbox: Sandbox) -> None:
        fault(sandbox, "status", status=429)
        assert [create(sandbox, key="k").status_code for _ in range(2)] == [429, 200]


class TestMatching:
    def test_it_skips_and_counts(self, sandbox: Sandbox) -> None:
        fault(sandbox, "status", status=503, path="payment_intents$", method="post", skip=1, times=2)
        assert [create(sandbox).status_code for _ in range(4)] == [200, 503, 503, 200]

    def test_it_spares_all_but_each_nth(self, sandbox: Sandbox) -> None:
        fault(sandbox, "status", status=503, every=2, times=2)
        assert [create(sandbox).status_code for _ in range(5)] == [200, 503, 200, 503, 200]

    def test_it_goes_on_until_cleared(self, sandbox: Sandbox) -> None:
        fault(sandbox, "status", status=503, times=0)
        assert {create(sandbox).status_code for _ in range(3)} == {503}
        sandbox.call("DELETE", "/_sandbox/faults")
        assert create(sandbox).status_code == 200

    @pytest.mark.parametrize(
        "wrong",
        [
            {"kind": "nonsense"},
            {"kind": "reset", "path": "("},
            {"kind": "hang", "when": 1},
            {"kind": "hang", "every": 0},
        ],
    )
    def test_a_fault_that_makes_no_sense_is_refused(self, sandbox: Sandbox, wrong: dict[str, Any]) -> None:
        answer = sandbox.call("POST", "/_sandbox/faults", json={"service": "stripe"} | wrong)
        assert answer.status_code == 400
        assert answer.json()["error"].endswith(".")


class TestProcess:
    def test_it_ends_at_once_though_requests_hang(self, sandbox: Sandbox) -> None:
        with running_sandbox() as other, ThreadPoolExecutor(1) as pool:
            fault(other, "hang")
            hanging = pool.submit(create, other)
            wait_until_taken(other)
            other.process.terminate()
            assert other.process.wait(timeout=2) == 0
            with pytest.raises(EXCEPTIONS.ConnectionError):
                hanging.result()

    def test_its_state_survives_a_restart(self, tmp_path: Path) -> None:
        file = str(tmp_path / "state" / "sandbox.json")
        with running_sandbox(SANDBOX_DATA=file, SANDBOX_WEBHOOK_URL="http://127.0.0.1:9/none") as sandbox:
            sandbox.control("webhooks", mode="hold")
            first = create(sandbox, key="k").json()
        with running_sandbox(SANDBOX_DATA=file, SANDBOX_WEBHOOK_URL="http://127.0.0.1:9/none") as sandbox:
            assert create(sandbox, key="k").json() == first
            assert sandbox.control(f"intents/{first['id']}/pay")["status"] == "succeeded"
            assert sandbox.read("webhooks")["held"] == 4

    @pytest.mark.parametrize(
        ("name", "value", "sentence"),
        [
            ("SANDBOX_PORT", "taken", "SANDBOX_PORT"),
            ("SANDBOX_PORT", "many", "must be a port number"),
            ("SANDBOX_DATA", "broken", "can't be read"),
        ],
    )
    def test_it_says_in_one_sentence_why_it_cannot_start(
        self, sandbox: Sandbox, tmp_path: Path, name: str, value: str, sentence: str
    ) -> None:
        if value == "taken":
            value = sandbox.url.rpartition(":")[2]
        elif value == "broken":
            (tmp_path / "broken").write_text('{"clock": ')
            value = str(tmp_path / "broken")
        ended = subprocess.run(
            [sys.executable, "-m", "app.sandbox.server"],
            cwd=ROOT,
            env={"SANDBOX_PORT": "0", name: value},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
        assert ended.returncode == 1
        assert sentence in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
