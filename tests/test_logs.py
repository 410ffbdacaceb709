"""Log lines: one form, one access line a request, what it was about on each, and nothing secret on any."""

import io
import json
import logging
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from app import create_app
from app.config import Settings
from app.logs import (
    HANDLER,
    JsonFormatter,
    TextFormatter,
    WithoutRequest,
    about,
    begin_request,
    configure_logging,
    describe,
    end_request,
    redact,
)
from tests import webhooks
from tests.databases import dispose
from tests.factories import checkout, intent
from tests.stand_ins import StandIns
from tests.web import API_KEY, WebProcess, clean_environment

ROOT = Path(__file__).parents[1]
CREATE = "/payment-intent/create"
# A traceback shows the line that fails, and so may not name it.
VALUE = "canary"
SAY_SOMETHING = (
    "import logging; from app.logs import configure_logging; configure_logging(); logging.info('it is %s', 'said')"
)


@dataclass(frozen=True)
class Log:
    """What was written since the test began."""

    stream: io.StringIO

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def of(self, logger: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["logger"] == logger]

    def last_access(self) -> dict[str, Any]:
        return self.of("app.access")[-1]


@pytest.fixture
def log() -> Iterator[Log]:
    """The lines that the application writes, at every level."""
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield Log(handler.stream)
    root.setLevel(level)
    root.removeHandler(handler)


def line_of(message: str, *arguments: object, error: BaseException | None = None, **extra: object) -> logging.LogRecord:
    exc_info = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.LogRecord("app.test", logging.INFO, __file__, 1, message, arguments, exc_info)
    vars(record).update(extra)
    return record


class TestAccessLine:
    def test_it_says_what_a_request_was_about(self, client: FlaskClient, log: Log) -> None:
        created = client.post(CREATE, json=intent(), headers={"X-Request-ID": "request-1"}).json
        (line,) = log.of("app.access")

        payment = client.get(f"/status/{created['paymentId']}").json["payment"]
        assert line.pop("time").endswith("+00:00")
        assert 0 < line.pop("milliseconds") < 60_000
        assert line == {
            "level": "INFO",
            "logger": "app.access",
            "message": f"POST {CREATE} 200",
            "requestId": "request-1",
            "method": "POST",
            "route": CREATE,
            "status": 200,
            "app": "shop",
            "payment": created["paymentId"],
            "run": payment["runId"],
        }

    def test_it_names_what_is_in_the_path_and_the_error(self, client: FlaskClient, log: Log) -> None:
        client.get("/status/pay_1")
        line = log.last_access()

        assert (line["route"], line["payment"]) == ("/status/{paymentId}", "pay_1")
        assert (line["status"], line["code"]) == (404, "not_found")

    def test_it_names_the_payment_of_a_create_that_got_no_run_and_of_its_retry(
        self, client: FlaskClient, stand_ins: StandIns, db: Connection, log: Log
    ) -> None:
        stand_ins.fault("runs-service", "status", method="POST", status=503)
        keyed = {"Idempotency-Key": "once"}
        for status in (503, 200, 200):
            assert client.post(CREATE, json=intent(), headers=keyed).status_code == status
            assert log.last_access()["payment"] == str(db.execute(text("SELECT id FROM payments")).scalar_one())

    def test_it_names_the_payment_of_a_webhook(self, client: FlaskClient, stand_ins: StandIns, log: Log) -> None:
        created = client.post(CREATE, json=intent()).json
        paid = stand_ins.control(f"intents/{created['paymentIntentId']}/pay")
        webhooks.deliver(client, webhooks.event("payment_intent.succeeded", paid))

        assert log.last_access()["payment"] == created["paymentId"]

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [("GET", "/", 200), ("GET", "/unknown", 404), ("WORD", "/health", 405), ("POST", "/stats", 200)],
    )
    def test_there_is_one_a_request(self, client: FlaskClient, log: Log, method: str, path: str, status: int) -> None:
        client.open(path, method=method)

        assert [line["status"] for line in log.of("app.access")] == [status]

    def test_a_request_knows_nothing_of_the_one_before(self, client: FlaskClient, log: Log) -> None:
        client.post(CREATE, json=intent())
        client.get("/health")

        assert set(log.last_access()) & {"app", "payment", "run", "code"} == set()
        logging.getLogger("app.test").info("between requests")
        assert set(log.lines[-1]) == {"time", "level", "logger", "message"}


class TestErrorLine:
    def test_it_says_which_upstream_did_what(self, client: FlaskClient, stand_ins: StandIns, log: Log) -> None:
        stand_ins.fault("stripe", "status", status=503, times=0)
        client.post(CREATE, json=intent(), headers={"X-Request-ID": "request-1"})
        (line,) = log.of("app.errors")

        assert (line["level"], line["message"]) == ("ERROR", "Stripe is unavailable")
        assert (line["upstream"], line["reason"]) == ("Stripe", "answered 503")
        assert (line["requestId"], line["app"]) == ("request-1", "shop")
        assert line["payment"]

    def test_it_has_the_traceback_of_a_bug_and_the_caller_has_not(
        self, client: FlaskClient, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def break_down(*_: object, **__: object) -> None:
            raise RuntimeError("whsec_canary broke")

        monkeypatch.setattr("app.blueprints.status.find_payment", break_down)
        answer = client.get("/status/x").text
        (line,) = log.of("app.errors")

        assert line["exception"].endswith("builtins.RuntimeError: [redacted] broke")
        assert "in break_down" in line["exception"]
        assert "break_down" not in answer


class TestNothingSecret:
    """Canaries in all that callers, upstreams and the database may say, through requests that fail at each of them."""

    @pytest.mark.parametrize("service", ["key-service", "runs-service", "stripe"])
    @pytest.mark.parametrize(
        "fault",
        [
            {"kind": "status", "status": 500, "body": {"error": {"message": "sk_live_canary"}}},
            {"kind": "json", "status": 400, "body": {"error": {"type": "invalid_request_error", "message": "canary"}}},
            {"kind": "json", "body": ["rk_live_canary", "canary"]},
            {"kind": "html", "body": "<p>canary</p>", "status": 502},
            {"kind": "redirect", "headers": {"Location": "/?canary"}},
            {"kind": "hang"},
            {"kind": "reset"},
            {"kind": "half_body"},
        ],
        ids=lambda fault: f"{fault['kind']}-{fault.get('status', 200)}",
    )
    def test_of_a_request_that_fails_upstream(
        self, settings: Settings, app: Flask, stand_ins: StandIns, log: Log, service: str, fault: dict[str, Any]
    ) -> None:
        hasty = create_app(replace(settings, upstream_timeout_seconds=0.3, stripe_timeout_seconds=0.3))
        stand_ins.control("keys", appId="shop", key="sk_test_canaryOfTheApp")
        stand_ins.fault(service, times=0, **fault)
        body = intent(description="canary", metadata={"canary": "canary"}, customerId="cus_canary")
        headers = {"X-API-Key": API_KEY, "X-Other": "canary", "Idempotency-Key": "canary"}
        response = hasty.test_client().post(f"{CREATE}?token=canary", json=body, headers=headers)
        dispose(hasty)

        assert response.status_code >= 400
        assert log.last_access()["status"] == response.status_code
        self.assert_clean(log.text, settings)

    def test_of_a_request_that_fails_in_the_database(
        self, client: FlaskClient, settings: Settings, db: Connection, log: Log
    ) -> None:
        refuse = "CHECK (description IS NULL OR description NOT LIKE 'canary%')"
        db.execute(text(f"ALTER TABLE payments ADD CONSTRAINT refuse {refuse}"))
        try:
            response = client.post(CREATE, json=intent(description="canary", metadata={"a": "canary"}))
        finally:
            db.execute(text("ALTER TABLE payments DROP CONSTRAINT refuse"))
        (line,) = log.of("app.errors")

        assert response.status_code == 500
        assert 'violates check constraint "refuse"' in line["exception"]
        assert "INSERT INTO payments" in line["exception"]
        self.assert_clean(log.text, settings)

    @pytest.mark.parametrize(
        ("path", "sent"),
        [
            (f"{CREATE}?key=canary", {"data": b'{"appId": "canary', "content_type": "application/json"}),
            (CREATE, {"json": intent(appId="canary canary", amountInCents="canary")}),
            (CREATE, {"data": "canary", "content_type": "text/canary"}),
            ("/unknown/canary?key=canary", {"json": {}}),
            ("/webhooks/stripe", {"data": "canary", "headers": {"Stripe-Signature": "t=1,v1=canary"}}),
        ],
    )
    def test_of_a_request_that_is_refused(
        self, client: FlaskClient, settings: Settings, log: Log, path: str, sent: dict[str, Any]
    ) -> None:
        assert client.post(path, **sent).status_code >= 400
        self.assert_clean(log.text, settings)

    def test_of_a_wrong_key(self, app: Flask, settings: Settings, log: Log) -> None:
        app.test_client().get("/stats?key=canary", headers={"X-API-Key": "canary", "Cookie": "a=canary"})

        assert log.last_access()["status"] == 403
        self.assert_clean(log.text, settings)

    def assert_clean(self, written: str, settings: Settings) -> None:
        secrets = (*settings.api_keys, *settings.webhook_secrets, settings.key_service_api_key)
        for secret in (*secrets, settings.runs_service_api_key, settings.database_url, "_secret_", "canary"):
            assert secret not in written


class TestRedact:
    @pytest.mark.parametrize(
        ("said", "written"),
        [
            ("no such key: sk_live_abc123", "no such key: [redacted]"),
            ("Invalid API Key provided: sk_test_****1234", "Invalid API Key provided: [redacted]"),
            ("(rk_live_1)\nwhsec_2", "([redacted])\n[redacted]"),
            ("pi_1_secret_2 and cs_3_secret_4", "[redacted] and [redacted]"),
            ("risk_level task_name pi_1 client_secret", "risk_level task_name pi_1 client_secret"),
            ("caf\u00e9 \udc80", "caf\u00e9 ?"),
        ],
    )
    def test_it_cuts_out_what_looks_like_a_key(self, said: str, written: str) -> None:
        assert redact(said) == written

    def test_it_takes_no_longer_for_a_long_word(self) -> None:
        """Fails with a pattern that looks at each letter again for each letter before it."""
        assert redact("a_" * 500_000) == "a_" * 500_000


class TestFormats:
    def test_json_holds_whatever_is_said(self) -> None:
        record = line_of("two\nlines of %s: sk_live_1 \udc80", "caf\u00e9", reason="whsec_1", secret_of_ours="x")
        line = json.loads(JsonFormatter().format(record))

        assert line["message"] == "two\nlines of caf\u00e9: [redacted] ?"
        assert line["reason"] == "[redacted]"
        assert "secret_of_ours" not in line

    def test_text_is_one_line(self) -> None:
        line = TextFormatter().format(line_of("forged\n12:00:00 INFO line %s", "sk_live_1", reason="a\x1b[31m"))

        assert "\n" not in line
        assert "\x1b" not in line
        assert "[redacted]" in line
        assert line.split()[1] == "INFO"

    def test_text_says_what_happened_first_and_the_ids_last(self) -> None:
        begin_request(requestId="r1", method="GET", route="/status/{paymentId}", payment="p1")
        about(app="shop")
        other = TextFormatter().format(line_of("%s is slow", "Stripe", reason="timeout"))
        about(status=200, milliseconds=12.9)
        access = TextFormatter().format(line_of("GET /status/{paymentId} 200"))
        end_request()

        said, ids = "INFO    GET /status/{paymentId} 200 milliseconds=12.9", "app=shop payment=p1 requestId=r1"
        assert access.partition(" ")[2] == f"{said} {ids}"
        assert other.endswith(f"INFO    Stripe is slow method=GET route=/status/{{paymentId}} reason=timeout {ids}")

    def test_text_has_the_traceback_below_it(self) -> None:
        line, *traceback = TextFormatter().format(line_of("it broke", error=a_failure())).splitlines()

        assert line.endswith("it broke")
        assert traceback[0] == "Traceback (most recent call last):"
        assert traceback[-1] == "builtins.RuntimeError: second"

    def test_it_cuts_a_long_fact(self) -> None:
        assert len(json.loads(JsonFormatter().format(line_of("x", reason="r" * 10_000)))["reason"]) == 200


def a_failure() -> RuntimeError:
    try:
        try:
            raise ValueError("first")
        except ValueError as error:
            raise RuntimeError("second") from error
    except RuntimeError as failure:
        return failure


class TestDescribe:
    def test_it_tells_what_led_to_the_error(self) -> None:
        told = describe(a_failure())

        assert told.index("builtins.ValueError: first") < told.index("which led to:") < told.index("second")

    @pytest.mark.parametrize(
        ("statement", "shown"),
        [
            ("SELECT CAST(:value AS integer)", "InvalidTextRepresentation: SQLSTATE 22P02"),
            ("SELECT CAST(:value AS json)", "SQLSTATE 22P02"),
            ("SELECT nothing FROM payments WHERE app_id = :value", 'column "nothing" does not exist'),
            ("SELECT 1 FROM payments WHERE app_id = :value AND", "syntax error"),
        ],
    )
    def test_it_says_what_the_database_said_without_the_values(
        self, db: Connection, statement: str, shown: str
    ) -> None:
        with pytest.raises(DBAPIError) as caught:
            db.execute(text(statement), {"value": VALUE})
        told = describe(caught.value)

        assert VALUE in str(caught.value)
        assert VALUE not in told
        assert shown in told
        assert "%(value)s" in told


class TestGunicornsLines:
    @pytest.mark.parametrize(
        ("said", "written"),
        [
            ("Invalid request from ip=::1: Invalid HTTP Header: 'X: canary'", "Invalid HTTP Header"),
            ("Invalid request from ip=1.2.3.4: No more data after: b'canary\n'", "No more data after"),
            ("Invalid request from ip=1.2.3.4: Request Line is too large (9 > 8)", "too large (9 > 8)"),
            ("Error handling request GET /status/x?token=canary", "GET /status/x"),
            ("Booting worker with pid: 7", "Booting worker with pid: 7"),
        ],
    )
    def test_they_do_not_quote_a_request(self, said: str, written: str) -> None:
        record = line_of("%s", said)

        assert WithoutRequest().filter(record)
        assert record.getMessage().endswith(written)


WRITE_AT_ONCE = """
import logging, threading
from app.logs import configure_logging

configure_logging()
log = logging.getLogger("app.test")
threads = [threading.Thread(target=lambda: [log.info("x" * 9000) for _ in range(50)]) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


class TestConfigureLogging:
    @pytest.fixture(autouse=True)
    def _logging_as_it_was(self) -> Iterator[None]:
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        yield
        root.handlers[:] = handlers
        root.setLevel(level)

    def test_it_writes_once_however_often_it_is_called(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure_logging(logging.WARNING)
        configure_logging(logging.INFO)
        logging.getLogger("app.test").warning("once")
        logging.getLogger("app.test").info("the first level stays")

        assert [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()] == ["once"]

    def test_libraries_that_say_what_they_send_are_quiet(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure_logging(logging.DEBUG)
        for name in ("stripe", "urllib3.connectionpool", "werkzeug"):
            logging.getLogger(name).info("GET /v1/x?canary")

        assert capsys.readouterr().out == ""

    def test_an_application_with_settings_of_its_own_leaves_logging_alone(self, settings: Settings) -> None:
        before = logging.getLogger().handlers[:]
        dispose(create_app(settings))

        assert logging.getLogger().handlers == before
        assert HANDLER not in [handler.name for handler in before]

    def test_threads_that_write_at_once_do_not_tear_long_lines(self) -> None:
        """Fails without a lock: a pipe takes no more than 4,096 bytes in one piece."""
        result = run([sys.executable, "-c", WRITE_AT_ONCE])
        assert sorted(len(json.loads(line)["message"]) for line in result.stdout.splitlines()) == [9000] * 400

    def test_it_writes_json_where_nobody_looks(self) -> None:
        result = run([sys.executable, "-c", SAY_SOMETHING])

        assert json.loads(result.stdout)["message"] == "it is said"

    def test_it_writes_text_on_a_terminal(self) -> None:
        ours, theirs = pty.openpty()
        subprocess.run(
            [sys.executable, "-c", SAY_SOMETHING],
            cwd=ROOT,
            env=clean_environment(),
            stdout=theirs,
            timeout=30,
            check=True,
        )
        os.close(theirs)
        line = os.read(ours, 1000).decode()
        os.close(ours)

        assert line.split()[1:] == ["INFO", "it", "is", "said"]


def run(command: list[str], environment: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**clean_environment(), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


class TestProcesses:
    def test_every_line_of_the_service_is_json_and_each_request_has_one(
        self, environment: dict[str, str], app: Flask
    ) -> None:
        with WebProcess.start(environment | {"WEB_CONCURRENCY": "1"}) as web:
            for number in range(5):
                web.post(f"{CREATE}?token=canary", intent(), **{"X-Request-ID": f"request-{number}"})
            port = int(web.url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
                raw.sendall(b"GET /?canary HTTP/1.1\r\nX-API-Key canary\r\n\r\n")
                assert b"400" in raw.recv(100)
            requests.post(f"{web.url}/checkout/create", json=checkout(), timeout=20)
            lines = [json.loads(line) for line in web.printed().splitlines()]

        access = [line for line in lines if line["logger"] == "app.access" and line["route"] == CREATE]
        assert [line["requestId"] for line in access] == [f"request-{number}" for number in range(5)]
        said = [line["message"] for line in lines if line["logger"] == "gunicorn.error"]
        assert any(message.startswith("Listening at") for message in said)
        assert "Invalid request from ip=127.0.0.1: Invalid HTTP Header" in said
        assert "canary" not in json.dumps(lines)

    def test_a_commands_lines_are_json_too(self, environment: dict[str, str], app: Flask) -> None:
        lines = run([sys.executable, "-m", "flask", "db", "upgrade"], environment).stdout.splitlines()

        assert {json.loads(line)["logger"] for line in lines} == {"alembic.runtime.migration"}

    def test_what_a_command_prints_for_people_stays_as_it_is(self, environment: dict[str, str], app: Flask) -> None:
        assert run([sys.executable, "-m", "flask", "recover"], environment).stdout == "nothing to recover\n"
