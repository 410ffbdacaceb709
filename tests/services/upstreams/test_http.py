"""The transport: a deadline for the whole exchange, whatever the upstream does."""

import gzip
import itertools
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from app.services.upstreams.http import Transport
from tests.services.upstreams import ALIEN, NAME, OK, READ_SIZE, answering, answering_once, ask, get, resolve, upstream
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import free_port

THREADS = 32
# Of an upstream whose addresses are what a test says.
URL = f"http://{NAME}/v1"


@pytest.fixture
def runs_url(stand_ins: StandIns) -> str:
    return f"{stand_ins.url}/runs-service/v1/runs"


@pytest.fixture
def silent() -> Iterator[tuple[str, int]]:
    """An address where nobody says that there is nobody: no more connections are taken up than fit the queue."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address):
            yield address


class TestSend:
    def test_it_sends_what_it_is_given_and_little_else(self) -> None:
        with upstream(answering(OK, OK, OK)) as server:
            transport = Transport("upstream", server.url)
            ask(transport, "/%2E%2E/x?a=b%2Fc", headers={"X-API-Key": "k"})
            ask(transport, method="POST", body=b"{}")
            ask(transport, method="POST")

        always = f"Host: {NAME}:{server.address[1]}\r\nUser-Agent: stripe-service\r\nAccept-Encoding: identity\r\n"
        assert [sorted(request.decode().split("\r\n")) for request in server.requests] == [
            sorted(f"{request}\r\n{always}{more}".split("\r\n"))
            for request, more in (
                ("GET /v1/%2E%2E/x?a=b%2Fc HTTP/1.1", "X-API-Key: k\r\n\r\n"),
                ("POST /v1 HTTP/1.1", "Content-Length: 2\r\n\r\n{}"),
                ("POST /v1 HTTP/1.1", "Content-Length: 0\r\n\r\n"),
            )
        ]

    @pytest.mark.parametrize(
        "framed",
        [
            b"Content-Length: 4\r\n\r\nbody",
            b"Transfer-Encoding: chunked\r\n\r\n1\r\nb\r\n3;x=y\r\nody\r\n0\r\nTrailer: x\r\n\r\n",
            b"Connection: close\r\n\r\nbody",
        ],
    )
    def test_it_answers_with_the_whole_body(self, framed: bytes) -> None:
        with upstream(answering_once(b"HTTP/1.1 402 Payment Required\r\nX-Note: n\r\n" + framed)) as server:
            answer = get(server.url)

        assert (answer.status, dict(answer.headers.items())["X-Note"], answer.body) == (402, "n", b"body")

    def test_it_answers_with_a_body_as_it_came(self) -> None:
        """Fails when urllib3 decodes: how much comes out of a compressed body has no bound."""
        packed = gzip.compress(b"body")
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
        with upstream(answering(head + packed)) as server:
            assert get(server.url).body == packed

    @pytest.mark.parametrize("kind", ["hang", "drip", "drip_headers"])
    def test_it_gives_up_at_the_deadline(self, stand_ins: StandIns, runs_url: str, kind: str) -> None:
        """Fails when a socket's timeout starts afresh with each read."""
        stand_ins.fault("runs-service", kind, times=0)
        started = time.monotonic()

        with pytest.raises(UpstreamTimeout) as caught:
            get(runs_url, seconds=0.5)

        assert 0.4 < time.monotonic() - started < 1.5
        assert caught.value.executed is None
        assert caught.value.reason == "no answer in time"

    def test_it_sends_nothing_after_the_deadline(self, stand_ins: StandIns, runs_url: str) -> None:
        with pytest.raises(UpstreamTimeout) as caught:
            get(runs_url, seconds=-1)

        assert caught.value.executed is False
        assert caught.value.reason == "no time was left to ask"
        assert stand_ins.ledger() == []

    def test_it_sends_nothing_when_the_name_took_until_the_deadline(
        self, stand_ins: StandIns, runs_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when a socket is given time anew after the name was resolved."""
        resolve = socket.getaddrinfo

        def resolve_slowly(*arguments: Any, **options: Any) -> Any:
            time.sleep(0.4)
            return resolve(*arguments, **options)

        monkeypatch.setattr("app.services.upstreams.http.socket.getaddrinfo", resolve_slowly)
        with pytest.raises(UpstreamTimeout) as caught:
            get(runs_url, seconds=0.2)

        assert caught.value.executed is False
        assert stand_ins.ledger() == []

    def test_it_never_reads_one_request_s_answer_as_another_s(self) -> None:
        """Fails when a connection is used again after an interim answer, whose true answer is still to come."""
        interim = b"HTTP/1.1 103 Early Hints\r\n\r\n" + ALIEN
        with upstream(answering(interim, OK)) as server:
            transport = Transport("upstream", server.url)
            with pytest.raises(UpstreamError, match="no usable answer") as caught:
                ask(transport)

            assert caught.value.reason == "answered 103, an interim answer"
            assert ask(transport).body == b"ok"

    def test_it_knows_that_nothing_was_executed_when_the_connection_is_refused(self) -> None:
        with pytest.raises(UpstreamUnavailable) as caught:
            get(f"http://127.0.0.1:{free_port()}/")

        assert caught.value.executed is False
        assert caught.value.reason == "no connection"

    def test_it_knows_that_nothing_was_executed_when_there_is_no_tls(self, runs_url: str) -> None:
        with pytest.raises(UpstreamUnavailable) as caught:
            get(runs_url.replace("http", "https", 1))

        assert caught.value.executed is False

    def test_it_waits_for_tls_no_longer_than_for_anything(self) -> None:
        """Fails when the handshake has no deadline."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            started = time.monotonic()
            with pytest.raises(UpstreamTimeout) as caught:
                get(f"https://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.3)

        assert time.monotonic() - started < 1.5
        assert caught.value.executed is False
        assert caught.value.reason == "no connection in time"

    def test_it_sends_a_body_that_fills_the_socket_and_waits_no_longer_than_the_deadline(self) -> None:
        body = b"x" * 8_000_000
        with socket.create_server(("127.0.0.1", 0)) as listener:
            transport = Transport("upstream", f"http://127.0.0.1:{listener.getsockname()[1]}")
            started = time.monotonic()
            with pytest.raises(UpstreamTimeout) as caught:
                ask(transport, "/", method="POST", body=body, seconds=0.3)

            assert time.monotonic() - started < 1.5
            assert caught.value.executed is None
            listener.accept()[0].close()

        with upstream(answering(OK)) as server:
            assert ask(Transport("upstream", server.url), method="POST", body=body, seconds=10).status == 200
        assert server.requests[0].endswith(b"\r\n\r\n" + body)

    @pytest.mark.parametrize(
        "end", ["\r\nX-API-Key: another", "\r\n folded", "\n", "\r", "\0", "\t", "\x7f", "\x85", "\u00e9"]
    )
    def test_it_sends_no_header_that_ends_a_line(self, end: str) -> None:
        with upstream(answering(OK)) as server:
            transport = Transport("upstream", server.url)
            for headers in ({"X-Request-ID": f"1{end}"}, {f"X-Request-ID{end}": "1"}):
                with pytest.raises(ValueError, match="end of a line"):
                    ask(transport, headers=headers)

        assert server.connections == []

    def test_it_sends_a_body_without_waiting_for_its_head_to_arrive(self) -> None:
        """Fails without TCP_NODELAY: the second of two short writes waits until the first is acknowledged, 40 ms."""
        with upstream(answering(*[OK] * 20)) as server:
            transport = Transport("upstream", server.url)
            started = time.monotonic()
            for _ in range(20):
                ask(transport, method="POST", body=b"{}")

        assert time.monotonic() - started < 0.5

    def test_it_knows_that_nothing_was_executed_when_the_name_is_unknown(self) -> None:
        with pytest.raises(UpstreamUnavailable) as caught:
            get("http://nowhere.invalid/")

        assert caught.value.executed is False

    def test_it_asks_nobody_without_a_url(self) -> None:
        """An application without settings can be built; it has no upstreams."""
        with pytest.raises(UpstreamUnavailable) as caught:
            ask(Transport("upstream", ""), "/")

        assert caught.value.executed is False

    @pytest.mark.parametrize("kind", ["reset", "half_body"])
    def test_it_can_not_tell_when_the_connection_breaks(self, stand_ins: StandIns, runs_url: str, kind: str) -> None:
        stand_ins.fault("runs-service", kind)

        with pytest.raises(UpstreamUnavailable) as caught:
            get(runs_url)

        assert caught.value.executed is None
        assert caught.value.reason == "the connection broke"

    @pytest.mark.parametrize(
        "cut",
        [
            b"",
            b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{}",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n{}\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
            b"SSH-2.0-OpenSSH_9.2\r\n",
        ],
    )
    def test_it_takes_no_part_of_an_answer_for_the_whole(self, cut: bytes) -> None:
        with upstream(answering_once(cut)) as server, pytest.raises(UpstreamUnavailable) as caught:
            get(server.url)

        assert caught.value.executed is None
        assert caught.value.reason == "the connection broke"

    def test_it_repeats_what_may_be_repeated_once(self, stand_ins: StandIns, runs_url: str) -> None:
        stand_ins.fault("runs-service", "reset")
        assert get(runs_url, repeatable=True).status in (200, 401)

        stand_ins.fault("runs-service", "reset", times=2)
        with pytest.raises(UpstreamUnavailable):
            get(runs_url, repeatable=True)

    @pytest.mark.parametrize("repeatable", [False, True])
    def test_it_sends_a_request_as_often_as_it_may(self, repeatable: bool) -> None:
        with upstream(answering_once(b"")) as server, pytest.raises(UpstreamUnavailable):
            get(server.url, repeatable=repeatable)

        assert len(server.requests) == 1 + repeatable

    def test_it_does_not_connect_again_when_nobody_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        resolve(monkeypatch, ("127.0.0.1", free_port()))
        connections: list[Any] = []
        connect = socket.create_connection
        monkeypatch.setattr(socket, "create_connection", lambda *to: (connections.append(to), connect(*to)))
        with pytest.raises(UpstreamUnavailable):
            get(URL, repeatable=True)

        assert len(connections) == 1

    def test_it_asks_once_when_it_is_told_to_retry(self) -> None:
        busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
        with upstream(answering(busy, OK)) as server:
            assert get(server.url, repeatable=True).status == 503

    def test_it_follows_no_redirect(self, stand_ins: StandIns, runs_url: str) -> None:
        stand_ins.fault("runs-service", "redirect")

        with pytest.raises(UpstreamError, match="no usable answer") as caught:
            get(runs_url)

        assert caught.value.reason == "answered 302, a redirect"
        assert len(stand_ins.ledger()) == 1

    def test_it_refuses_an_endless_body(
        self, stand_ins: StandIns, runs_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.services.upstreams.http.MAX_BODY_BYTES", 10)
        stand_ins.fault("runs-service", "json", body=["a" * 100])

        with pytest.raises(UpstreamError) as caught:
            get(runs_url)

        assert caught.value.reason == "the answer is too long"

    @pytest.mark.parametrize("head", [b"", b"Content-Length: 1000000000\r\n", b"Transfer-Encoding: chunked\r\n"])
    def test_it_stops_reading_a_body_that_has_no_end(self, head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fails when the body is read to its end before it is measured."""
        monkeypatch.setattr("app.services.upstreams.http.MAX_BODY_BYTES", 200_000)
        sent = itertools.count()

        def answer(connection: socket.socket) -> None:
            connection.sendall(
                b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + (b"fffffff\r\n" if b"chunked" in head else b"")
            )
            while next(sent) < 1000:
                connection.sendall(b"x" * 100_000)

        with upstream(answer) as server, pytest.raises(UpstreamError) as caught:
            get(server.url)

        assert caught.value.reason == "the answer is too long"
        wait_until(lambda: server.ended, seconds=5, what="the connection to be closed")
        assert next(sent) < 1000

    def test_it_takes_no_proxy_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
        with upstream(answering(OK)) as server:
            assert get(server.url).status == 200

    def test_it_logs_neither_a_url_nor_a_header(self, caplog: pytest.LogCaptureFixture) -> None:
        """Fails when urllib3 may warn of a header that it can't read."""
        with upstream(answering(OK.replace(b"\r\n\r\n", b"\r\nno header\r\n\r\n"))) as server:
            get(f"{server.url}/?appId=shop")

        assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


class TestAddresses:
    """A name may have more than one address."""

    def test_it_asks_the_next_when_one_is_silent(
        self, silent: tuple[str, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when a silent address may take all the time that there is."""
        with upstream(answering(OK)) as server:
            resolve(monkeypatch, silent, server.address)
            assert get(URL, seconds=1).status == 200

    def test_it_asks_the_next_when_one_refuses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with upstream(answering(OK)) as server:
            resolve(monkeypatch, ("127.0.0.1", free_port()), server.address)
            assert get(URL).status == 200

    def test_it_gives_up_at_the_deadline_when_all_are_silent(
        self, silent: tuple[str, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when each address may take as long as the exchange."""
        resolve(monkeypatch, silent, silent, silent)
        started = time.monotonic()
        with pytest.raises(UpstreamTimeout) as caught:
            get(URL, seconds=0.6)

        assert 0.5 < time.monotonic() - started < 1.5
        assert caught.value.executed is False
        assert caught.value.reason == "no connection in time"

    def test_it_lets_an_answer_take_what_is_left_of_the_time(
        self, silent: tuple[str, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when an answer may take no longer than connecting to one of two addresses."""
        with upstream(lambda connection: (time.sleep(0.7), connection.sendall(OK))) as server:
            resolve(monkeypatch, server.address, silent)
            assert get(URL, seconds=1.2).status == 200


@pytest.fixture
def hanging_lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], threading.Event]]:
    """The names that are looked up, none of which is answered before the event; two may be looked up at once."""
    lookups, answered = threading.BoundedSemaphore(2), threading.Event()
    names: list[str] = []
    really = socket.getaddrinfo

    def look_up(host: str, *arguments: Any, **options: Any) -> Any:
        names.append(host)
        answered.wait(10)
        return really(host, *arguments, **options)

    monkeypatch.setattr("app.services.upstreams.http.socket.getaddrinfo", look_up)
    monkeypatch.setattr("app.services.upstreams.http._lookups", lookups)
    yield names, answered
    answered.set()
    for _ in range(2):
        assert lookups.acquire(timeout=10)


class TestLookups:
    def test_it_gives_up_at_the_deadline_when_no_name_server_answers(
        self, hanging_lookups: tuple[list[str], threading.Event]
    ) -> None:
        """Fails when the exchange itself waits for the name."""
        started = time.monotonic()
        with pytest.raises(UpstreamTimeout) as caught:
            get(URL, seconds=0.3)

        assert 0.2 < time.monotonic() - started < 1.5
        assert caught.value.executed is False
        assert caught.value.reason == "no connection in time"

    def test_it_leaves_no_more_threads_behind_than_it_may_and_goes_on_when_they_end(
        self, hanging_lookups: tuple[list[str], threading.Event]
    ) -> None:
        """Fails when each exchange looks up its name whatever hangs already, and when a place isn't given back."""
        names, answered = hanging_lookups
        with upstream(lambda connection: connection.sendall(OK)) as server, ThreadPoolExecutor(8) as threads:
            given_up = [threads.submit(get, server.url, seconds=0.3) for _ in range(8)]
            assert {type(each.exception(10)) for each in given_up} == {UpstreamTimeout}
            assert names == [NAME] * 2
            answered.set()
            assert [each.status for each in threads.map(get, [server.url] * 8)] == [200] * 8

    def test_it_knows_that_nothing_was_executed_when_there_is_no_such_name(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when what a lookup ends with stays in its thread."""

        def find_nothing(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr("app.services.upstreams.http.socket.getaddrinfo", find_nothing)
        with pytest.raises(UpstreamUnavailable) as caught:
            get(URL)

        assert caught.value.executed is False
        assert caught.value.reason == "no connection"


class TestConnections:
    """Which are used again, and which are closed."""

    def test_it_uses_a_connection_again_and_none_that_was_idle_for_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with upstream(answering(OK, OK, OK)) as server:
            transport = Transport("upstream", server.url)
            ask(transport)
            ask(transport)
            assert len(server.connections) == 1
            monkeypatch.setattr("app.services.upstreams.http.MAX_IDLE_SECONDS", 0)
            ask(transport)
            assert len(server.connections) == 2

    def test_it_uses_a_connection_again_that_was_open_for_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fails when a connection counts as idle from its beginning, or from when it was last asked."""
        monkeypatch.setattr("app.services.upstreams.http.MAX_IDLE_SECONDS", 0.3)
        with upstream(lambda connection: (time.sleep(0.4), connection.sendall(OK))) as server:
            transport = Transport("upstream", server.url)
            ask(transport)
            ask(transport)
            assert len(server.connections) == 1

    def test_it_keeps_a_connection_for_each_thread(self) -> None:
        """Fails when the pool keeps fewer than that, or when it makes a thread wait for one."""
        all_have_asked = threading.Barrier(THREADS)

        def answer(connection: socket.socket) -> None:
            all_have_asked.wait(10)
            connection.sendall(OK)

        with upstream(answer) as server, ThreadPoolExecutor(THREADS) as threads:
            transport = Transport("upstream", server.url)
            for _ in range(2):
                assert {answer.body for answer in threads.map(ask, [transport] * THREADS)} == {b"ok"}
            assert len(server.connections) == THREADS

    def test_it_lets_nobody_wait_for_a_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fails when the pool blocks."""
        monkeypatch.setattr("app.services.upstreams.http.MAX_IDLE_CONNECTIONS", 1)
        both_have_asked = threading.Barrier(2)

        def answer(connection: socket.socket) -> None:
            both_have_asked.wait(5)
            connection.sendall(OK)

        with upstream(answer) as server, ThreadPoolExecutor(2) as threads:
            transport = Transport("upstream", server.url)
            assert [answer.status for answer in threads.map(ask, [transport] * 2)] == [200, 200]

    def test_it_closes_idle_connections_with_the_transport(self) -> None:
        with upstream(answering(OK)) as server:
            get(server.url)
            wait_until(lambda: server.ended, seconds=5, what="the connection to be closed")

    def test_it_leaves_a_connection_on_which_something_came_that_nobody_asked_for(self) -> None:
        with upstream(answering(OK, OK)) as server:
            transport = Transport("upstream", server.url)
            ask(transport)
            server.connections[0].sendall(ALIEN)
            assert ask(transport).body == b"ok"

    def test_it_leaves_a_connection_on_which_more_came_than_was_read(self) -> None:
        with upstream(answering(OK.ljust(READ_SIZE) + ALIEN, OK)) as server:
            transport = Transport("upstream", server.url)
            ask(transport)
            assert ask(transport).body == b"ok"

    def test_it_leaves_a_connection_that_the_upstream_has_closed(self) -> None:
        with upstream(answering(OK, OK)) as server:
            transport = Transport("upstream", server.url)
            ask(transport)
            server.connections[0].shutdown(socket.SHUT_RDWR)
            assert ask(transport).body == b"ok"

    @pytest.mark.parametrize(
        "failure",
        [
            b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 2\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 200_000,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nContent-",
            b"nonsense\r\n",
        ],
    )
    def test_it_closes_a_connection_on_which_an_exchange_failed(
        self, failure: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when it is used again: the rest of the answer would be read as the next one's."""
        monkeypatch.setattr("app.services.upstreams.http.MAX_BODY_BYTES", 100_000)
        with upstream(answering(failure, OK)) as server:
            transport = Transport("upstream", server.url)
            with pytest.raises(UpstreamError):
                ask(transport, seconds=0.3)
            wait_until(lambda: server.ended, seconds=5, what="the connection to be closed")

            assert ask(transport).body == b"ok"
            assert len(server.connections) == 2
