"""Connections: no thread waits for a client to send, and a request is whole or refused before anything is done."""

import json
import re
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, ClassVar

import psutil
import pytest
import requests
from flask import Flask
from sqlalchemy import Connection, text

from app.gunicorn_worker import PARSED_AT_ONCE_BYTES
from tests.factories import checkout, intent
from tests.raw_http import ask, connected, head, in_chunks, read_answer, with_length
from tests.slow_clients import CREATE, HALVES, Half, is_closed, slow_clients
from tests.soak import amount
from tests.stand_ins import StandIns
from tests.test_metrics import scrape_web
from tests.waiting import wait_until
from tests.web import API_KEY, WebProcess
from tests.webhooks import sign

THREADS = 4
LIMIT = 1024 * 1024
# Of a process: `worker_connections` in app/gunicorn_config.py, which can't be imported without settings.
CONNECTIONS = 800
UNFINISHED = "stripe_service_unfinished_requests_total"
INTENT = json.dumps(intent()).encode()
NOBODYS = "00000000-0000-4000-8000-000000000000"
BODIES = {
    CREATE: intent(),
    "/checkout/create": checkout(),
    "/stats": {},
    "/webhooks/stripe": {},
    "/webhooks/stripe/shop": {},
    "/products/create": {"appId": "shop", "name": "A thing"},
    "/prices/create": {"appId": "shop"},
    "/coupons/create": {"appId": "shop"},
    **{f"/payments/{NOBODYS}/{action}": {"appId": "shop"} for action in ("refund", "capture", "cancel")},
    **{f"/subscriptions/sub_none/{action}": {"appId": "shop"} for action in ("cancel", "resume", "change")},
    **{
        f"/{route}": {"appId": "shop"}
        for route in (
            "customers/ensure",
            "customers/transfer",
            "payment-methods/setup",
            "payment-methods/default",
            "payment-methods/detach",
            "billing-portal/create",
        )
    },
    "/event-endpoints/create": {"appId": "shop"},
    **{
        f"/event-endpoints/{NOBODYS}/{action}": {"appId": "shop"}
        for action in ("enable", "test", "redeliver-dead", "rotate-secret")
    },
    f"/events/{NOBODYS}/redeliver": {"appId": "shop"},
    "/keys/create": {"appId": "shop"},
    "/keys/rotate": {"keyId": NOBODYS},
    "/keys/revoke": {"keyId": NOBODYS},
}


@pytest.fixture(scope="module")
def few_threads(database_url: str, stand_ins_process: StandIns) -> Iterator[WebProcess]:
    """The service in one process with few threads, for all tests of this module."""
    stand_ins_process.reset()
    with WebProcess.start(environment_of(database_url, stand_ins_process)) as web:
        yield web


def environment_of(database_url: str, stand_ins: StandIns, **more: str) -> dict[str, str]:
    return {
        "STRIPE_SERVICE_DATABASE_URL": database_url,
        "STRIPE_SERVICE_API_KEY": API_KEY,
        "STRIPE_WEBHOOK_SECRET": "whsec_tests",
        "WEB_CONCURRENCY": "1",
        "WEB_THREADS": str(THREADS),
        **stand_ins.environment,
        **more,
    }


def operations(db: Connection) -> int:
    return int(db.execute(text("SELECT count(*) FROM operations")).scalar_one())


def assert_nothing_was_done(db: Connection, stand_ins: StandIns) -> None:
    assert stand_ins.ledger() == []
    assert operations(db) == 0


class TestHalfARequest:
    @pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
    def test_it_holds_no_thread(self, few_threads: WebProcess, app: Flask, half: Half) -> None:
        """Fails when a thread waits for the rest of it."""
        with slow_clients(few_threads, [half] * THREADS * 3) as connections:
            assert requests.get(f"{few_threads.url}/health", timeout=3).ok
            assert few_threads.post(CREATE, intent()).status_code == 200
            assert not any(is_closed(connection) for connection in connections)

    def test_it_is_closed_and_counted_when_its_time_is_over(
        self, database_url: str, stand_ins: StandIns, app: Flask
    ) -> None:
        """Fails when what drips, by however little, is given more time."""
        with WebProcess.start(environment_of(database_url, stand_ins, REQUEST_READ_SECONDS="1")) as web:
            before, began_at = scrape_web(web), time.monotonic()
            with slow_clients(web, list(HALVES.values()) * 2) as connections:
                wait_until(lambda: all(is_closed(each) for each in connections), seconds=5, what="the closing")
            took_seconds, after = time.monotonic() - began_at, scrape_web(web)

        assert took_seconds >= 1
        counted = {part: after.since(before, UNFINISHED, received=part) for part in ("nothing", "head", "body")}
        assert counted == {"nothing": 2, "head": 6, "body": 6}

    def test_it_is_given_the_time_that_is_left(self, few_threads: WebProcess, app: Flask) -> None:
        """A whole request that comes in pieces is answered as any other."""
        request = with_length(CREATE, INTENT)
        with connected(few_threads) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(request), 7):
                connection.sendall(request[at : at + 7])
            assert read_answer(connection).status == 200

    def test_it_does_not_hold_up_the_end_of_the_process(
        self, database_url: str, stand_ins: StandIns, app: Flask
    ) -> None:
        with WebProcess.start(environment_of(database_url, stand_ins)) as web, ExitStack() as stack:
            for half in HALVES.values():
                stack.enter_context(connected(web, half.sent))
            assert requests.get(f"{web.url}/health", timeout=5).ok
            web.process.terminate()
            assert web.process.wait(6) == 0

    def test_the_one_that_has_come_the_longest_is_closed_when_all_of_them_take_too_much_memory(
        self, few_threads: WebProcess, app: Flask
    ) -> None:
        """Fails when what waits has a bound for each connection only."""
        large = head(CREATE, f"Content-Length: {LIMIT}") + bytes(LIMIT - 1)
        with slow_clients(few_threads, [Half(large)] * 65) as connections:
            wait_until(lambda: is_closed(connections[0]), seconds=5, what="the closing")
            assert not is_closed(connections[-1])


class TestRefusedRequest:
    REFUSED: ClassVar = {
        "no HTTP": (b"canary\r\n\r\n", 400, "malformed_request"),
        "a path with a bare byte": (b"GET /\xffcanary HTTP/1.1\r\n\r\n", 400, "malformed_request"),
        "a header without colon": (b"GET / HTTP/1.1\r\nX-Key canary\r\n\r\n", 400, "malformed_request"),
        "a bare line feed": (b"GET / HTTP/1.1\nX-Key: canary\n", 400, "malformed_request"),
        "two lengths": (head("/stats", "Content-Length: 2", "Content-Length: 6"), 400, "malformed_request"),
        "a length and chunks": (
            head("/stats", "Content-Length: 2", "Transfer-Encoding: chunked"), 400, "malformed_request",
        ),
        "a length that is no number": (head("/stats", "Content-Length: canary"), 400, "malformed_request"),
        "too long a line": (head("/canary" * 2000), 414, "request_line_too_long"),
        "another expectation": (
            head("/stats", "Content-Length: 2", "Expect: canary"), 417, "unknown_expectation",
        ),
        "too many fields": (head("/stats", *["X-Key: canary"] * 101), 431, "header_fields_too_large"),
        "too long a field": (head("/stats", "X-Key: " + "canary" * 2000), 431, "header_fields_too_large"),
        "another coding": (head("/stats", "Transfer-Encoding: canary"), 501, "unknown_transfer_coding"),
    }  # fmt: skip

    @pytest.mark.parametrize(("sent", "status", "code"), REFUSED.values(), ids=REFUSED)
    def test_it_is_answered_in_the_shape_of_all_errors_without_what_was_sent(
        self, few_threads: WebProcess, sent: bytes, status: int, code: str
    ) -> None:
        answer = ask(few_threads, sent)

        assert (answer.status, answer.json["code"]) == (status, code)
        assert set(answer.json) == {"error", "code", "requestId"}
        assert answer.headers["Content-Type"] == "application/json"
        assert b"canary" not in answer.body

    def test_it_has_an_access_line_and_is_counted(self, few_threads: WebProcess) -> None:
        request = {"method": "OTHER", "route": "none", "status": "431"}
        before = scrape_web(few_threads)
        answer = ask(few_threads, head("/stats", *["X-Key: canary"] * 101))

        counted = scrape_web(few_threads).since(before, "stripe_service_request_seconds_count", **request)
        lines = [json.loads(line) for line in few_threads.printed().splitlines()]
        access = [line for line in lines if line.get("requestId") == answer.json["requestId"]]
        assert counted == 1
        assert [(line["logger"], line["status"], line["code"]) for line in access] == [
            ("app.access", 431, "header_fields_too_large")
        ]

    def test_it_holds_up_nobody_when_its_client_does_not_close(self, few_threads: WebProcess) -> None:
        """Fails when the loop waits for a client to close, as gunicorn's own does for two seconds each."""
        with slow_clients(few_threads, [Half(b"no HTTP\r\n\r\n")] * 20):
            began_at = time.monotonic()
            assert requests.get(f"{few_threads.url}/health", timeout=20).ok
            assert time.monotonic() - began_at < 2


def as_told(path: str, body: bytes) -> bytes:
    return with_length(path, body, f"Stripe-Signature: {sign(body)}")


def as_chunks(path: str, body: bytes) -> bytes:
    """In chunks of which one ends at the limit."""
    pieces = [body[at : at + 64 * 1024] for at in range(0, len(body), 64 * 1024)]
    return in_chunks(path, *pieces)


class TestFlood:
    @pytest.mark.parametrize("sent", [b"", head("/health", method="GET")], ids=["idle", "kept"])
    def test_connections_that_wait_keep_no_place_from_a_request(self, few_threads: WebProcess, sent: bytes) -> None:
        """Fails when the worker waits with new connections until old ones have had their time."""
        with ExitStack() as stack:
            for _ in range(CONNECTIONS + 50):
                stack.enter_context(connected(few_threads, sent))
            assert requests.get(f"{few_threads.url}/health", timeout=5).ok

    def test_a_body_in_the_smallest_chunks_costs_little(self, few_threads: WebProcess) -> None:
        """Fails when the parser is given all of it at once, and copies the rest for each chunk."""
        in_small_chunks = in_chunks("/stats", *[b" "] * 80_000)
        before = cpu_seconds(few_threads)
        assert ask(few_threads, in_small_chunks).status == 400
        assert cpu_seconds(few_threads) - before < 1


def cpu_seconds(web: WebProcess) -> float:
    """What all processes of the service have worked."""
    times = [process.cpu_times() for process in psutil.Process(web.process.pid).children()]
    return float(sum(each.user + each.system for each in times))


class TestUnreadAnswer:
    def test_it_holds_no_thread(self, few_threads: WebProcess) -> None:
        """Fails when a thread waits for its client to make room."""
        with unread_answers(few_threads, THREADS * 3) as connections:
            assert requests.get(f"{few_threads.url}/health", timeout=3).ok
            assert read_answers(connections[0], UNREAD) == [b"200"] * UNREAD

    def test_it_is_given_up_and_counted_when_its_time_is_over(self, database_url: str, stand_ins: StandIns) -> None:
        with WebProcess.start(environment_of(database_url, stand_ins, REQUEST_READ_SECONDS="1")) as web:
            before = scrape_web(web)
            with unread_answers(web, 2):
                wait_until(
                    lambda: scrape_web(web).since(before, UNFINISHED, received="whole") == 2,
                    seconds=9,
                    what="the count",
                )


# So many that they don't find room in the buffers of the system, which take 4 MiB and more.
UNREAD = 40


@contextmanager
def unread_answers(web: WebProcess, count: int) -> Iterator[list[socket.socket]]:
    """Connections whose clients have asked for much, and read nothing."""
    asked = head("/openapi.json", method="GET") * UNREAD
    with ExitStack() as stack:
        yield [stack.enter_context(connected(web, asked, room=4096)) for _ in range(count)]


class TestBody:
    @pytest.mark.parametrize("send", [as_told, as_chunks])
    @pytest.mark.parametrize("path", BODIES)
    def test_it_is_taken_whole_up_to_the_limit_and_refused_one_over(
        self, few_threads: WebProcess, app: Flask, db: Connection, stand_ins: StandIns, path: str, send: object
    ) -> None:
        """Fails when a part of a body is taken for all of it: the part here is a valid request."""
        assert callable(send)
        body = json.dumps(BODIES[path]).encode()
        over = ask(few_threads, send(path, body.ljust(LIMIT) + b"x"))

        assert (over.status, over.json["code"]) == (413, "request_entity_too_large")
        assert_nothing_was_done(db, stand_ins)
        answers = [ask(few_threads, send(path, each)).status for each in (body.ljust(LIMIT), body)]
        # What is forged may be asked about once: after that, whether it is can't be known for a while.
        assert answers[0] == answers[1] or answers == [400, 503]

    def test_every_route_that_takes_one_is_tried(self, app: Flask) -> None:
        rules = {rule.rule for rule in app.url_map.iter_rules() if "POST" in (rule.methods or ())}
        values = {"<app_id>": "shop", "<subscription_id>": "sub_none"}
        filled = {re.sub("<[a-z_]+>", lambda found: values.get(found[0], NOBODYS), rule) for rule in rules}
        assert filled == set(BODIES)

    def test_it_is_refused_on_a_route_that_takes_none(self, few_threads: WebProcess) -> None:
        too_long = in_chunks("/health", bytes(LIMIT + 1)).replace(b"POST", b"GET", 1)
        assert ask(few_threads, too_long).status == 413

    def test_it_is_refused_in_far_more_bytes_than_are_read(self, few_threads: WebProcess) -> None:
        """The answer is read by a client that has sent all before it listens."""
        for body in (bytes(8 * LIMIT), iter([bytes(LIMIT)] * 8)):
            answer = requests.post(f"{few_threads.url}/stats", data=body, headers={"X-API-Key": API_KEY}, timeout=20)
            assert answer.status_code == 413

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (b"zz\r\n", "malformed_request"),
            (b"-1\r\n", "malformed_request"),
            (b"2\r\n{}x\r\n0\r\n\r\n", "malformed_request"),
            (b"2;\r\n{}\r\n0\r\n\r\n", "malformed_request"),
            (b"0\r\nbad trailer\r\n\r\n", "malformed_request"),
            (b"ffffff\r\n{}", "bad_request"),
            (b"2\r\n{}\r\n", "bad_request"),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("path", [CREATE, "/webhooks/stripe", "/health"])
    def test_it_is_refused_when_its_chunks_are_broken_or_end_early(
        self,
        few_threads: WebProcess,
        app: Flask,
        db: Connection,
        stand_ins: StandIns,
        path: str,
        body: bytes,
        code: str,
    ) -> None:
        begun = head(path, "Content-Type: application/json", "Transfer-Encoding: chunked")
        whole = b"%x\r\n%b\r\n" % (len(INTENT), INTENT)
        answer = ask(few_threads, begun + whole + body, end=True)

        assert (answer.status, answer.json["code"]) == (400, code)
        assert_nothing_was_done(db, stand_ins)

    def test_it_is_refused_when_it_ends_before_its_length(
        self, few_threads: WebProcess, app: Flask, db: Connection, stand_ins: StandIns
    ) -> None:
        answer = ask(few_threads, with_length(CREATE, INTENT + b" ")[:-1], end=True)

        assert (answer.status, answer.json["code"]) == (400, "bad_request")
        assert_nothing_was_done(db, stand_ins)

    def test_the_rest_of_a_refused_one_is_no_request(
        self, few_threads: WebProcess, app: Flask, db: Connection, stand_ins: StandIns
    ) -> None:
        """Fails when a connection is kept whose next request begins nobody knows where."""
        with connected(few_threads, head("/stats", f"Content-Length: {LIMIT + 1}")) as connection:
            assert read_answer(connection).status == 413
            connection.sendall(with_length(CREATE, INTENT))
            assert connection.recv(1) == b""
        assert_nothing_was_done(db, stand_ins)


def read_answers(connection: socket.socket, count: int) -> list[bytes]:
    """The statuses of so many answers that come together, each of which is read whole."""
    with connection.makefile("rb") as came:
        return [_read_one(came) for _ in range(count)]


def _read_one(came: BinaryIO) -> bytes:
    status = came.readline()[9:12]
    fields = dict(line.split(b": ", 1) for line in iter(came.readline, b"\r\n"))
    came.read(int(fields[b"Content-Length"]))
    return status


class TestConnection:
    def test_it_is_kept_for_the_next_request(self, few_threads: WebProcess, app: Flask) -> None:
        with connected(few_threads) as connection:
            for _ in range(3):
                for request in (with_length(CREATE, INTENT), in_chunks(CREATE, INTENT), head("/health", method="GET")):
                    connection.sendall(request)
                    assert read_answer(connection).status == 200

    def test_it_takes_requests_one_behind_the_other(self, few_threads: WebProcess, app: Flask, db: Connection) -> None:
        """Fails when what came with one request is lost, or waits for more to come."""
        last = in_chunks(CREATE, INTENT)
        sent = with_length(CREATE, INTENT) + in_chunks(CREATE, INTENT) + head("/health", method="GET") + last[:-9]
        with connected(few_threads, sent) as connection:
            assert read_answers(connection, 3) == [b"200"] * 3
            connection.sendall(last[-9:])
            assert read_answer(connection).status == 200
        assert operations(db) == 3

    def test_it_takes_the_next_request_where_the_parser_has_seen_nothing_of_it(self, few_threads: WebProcess) -> None:
        """Fails when what came together is looked for in the parser only."""
        padded = PARSED_AT_ONCE_BYTES - len(head("/health", "A: ", "B: ", method="GET"))
        first = head("/health", f"A: {'a' * (padded // 2)}", f"B: {'b' * (padded - padded // 2)}", method="GET")
        with connected(few_threads, first + head("/health", method="GET")) as connection:
            assert read_answers(connection, 2) == [b"200"] * 2

    @pytest.mark.parametrize("request_", [with_length(CREATE, INTENT), in_chunks(CREATE, INTENT)])
    def test_its_client_is_told_once_to_continue_when_it_expects_that(
        self, few_threads: WebProcess, app: Flask, request_: bytes
    ) -> None:
        begun, _, body = request_.partition(b"\r\n\r\n")
        with connected(few_threads, begun + b"\r\nExpect: 100-continue\r\n\r\n") as connection:
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(body)
            assert read_answers(connection, 1) == [b"200"]

    def test_its_client_is_not_told_to_continue_where_it_has_no_body(self, few_threads: WebProcess) -> None:
        """Fails when the request waits for a body that nobody announced."""
        with connected(few_threads, head("/health", "Expect: 100-continue", method="GET")) as connection:
            assert read_answers(connection, 1) == [b"200"]

    def test_its_client_is_not_told_to_continue_with_what_is_too_long(self, few_threads: WebProcess) -> None:
        with connected(
            few_threads, head("/stats", f"Content-Length: {LIMIT + 1}", "Expect: 100-continue")
        ) as connection:
            assert read_answers(connection, 1) == [b"413"]


SLOW = 300


@pytest.mark.soak
def test_slow_clients_slow_down_nobody(web: WebProcess, record_property: object) -> None:
    """Fails when they hold threads, or when reading them keeps the loop from the others."""
    seconds, each = amount(2, 60), amount(20, SLOW)
    halves = [HALVES[name] for name in ("dripped headers", "dripped body", "nothing")]
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        attack = pool.submit(_attack, web, [half for half in halves for _ in range(each)], ended)
        try:
            waits, creates = _ask_for(web, seconds)
        finally:
            ended.set()
        rounds = attack.result(30)
    p99 = statistics.quantiles(waits, n=100)[-1]
    print(f"/health: {len(waits)} times, p99 {p99:.3f} s, at most {max(waits):.3f} s; {rounds} rounds of {3 * each}")
    assert p99 < 0.5
    assert set(creates) == {200}


def _attack(web: WebProcess, halves: list[Half], ended: threading.Event) -> int:
    """Connect all, and anew as soon as the service has closed them; the value is how often."""
    rounds = 0
    while not ended.is_set():
        rounds += 1
        with slow_clients(web, halves) as connections:
            while not ended.wait(0.2) and not all(is_closed(connection) for connection in connections):
                pass
    return rounds


def _ask_for(web: WebProcess, seconds: float) -> tuple[list[float], list[int]]:
    waits, creates = [], []
    ends_at = time.monotonic() + seconds
    while (began_at := time.monotonic()) < ends_at:
        assert requests.get(f"{web.url}/health", timeout=10).ok
        waits.append(time.monotonic() - began_at)
        if len(waits) % 50 == 1:
            creates.append(web.post(CREATE, intent()).status_code)
    return waits, creates
