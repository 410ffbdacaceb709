"""The transport: a deadline for the whole exchange, whatever the upstream does."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from app.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from app.services.upstreams.call_context import Deadline
from app.services.upstreams.http import Answer, Transport, _Connection, _Socket
from tests.stand_ins import StandIns
from tests.web import free_port


def get(url: str, *, seconds: float = 5, repeatable: bool = False) -> Answer:
    return Transport("upstream", url).send(
        "GET", "", headers={}, deadline=Deadline.after(seconds), repeatable=repeatable
    )


@pytest.fixture
def runs_url(stand_ins: StandIns) -> str:
    return f"{stand_ins.url}/runs-service/v1/runs"


class TestSend:
    @pytest.mark.parametrize("kind", ["hang", "drip", "drip_headers"])
    def test_it_gives_up_at_the_deadline(self, stand_ins: StandIns, runs_url: str, kind: str) -> None:
        """Fails when a socket's timeout starts afresh with each read, as it does without `_Deadlined`."""
        stand_ins.fault("runs-service", kind, times=0)
        started = time.monotonic()

        with pytest.raises(UpstreamTimeout) as caught:
            get(runs_url, seconds=0.5)

        assert 0.4 < time.monotonic() - started < 1.5
        assert caught.value.executed is None

    def test_it_sends_nothing_after_the_deadline(self, stand_ins: StandIns, runs_url: str) -> None:
        with pytest.raises(UpstreamTimeout) as caught:
            get(runs_url, seconds=-1)

        assert caught.value.executed is False
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
        listener = socket.create_server(("127.0.0.1", 0))

        def answer() -> None:
            for number in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    body = b'{"for": %d}' % number
                    connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" if number == 0 else b"")
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

        server = threading.Thread(target=answer)
        server.start()
        transport = Transport("upstream", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(UpstreamError, match="no usable answer"):
            transport.send("GET", "/", headers={}, deadline=Deadline.after(5), repeatable=False)
        second = transport.send("GET", "/", headers={}, deadline=Deadline.after(5), repeatable=False)

        assert second.body == b'{"for": 1}'
        server.join(5)
        listener.close()

    def test_it_knows_that_nothing_was_executed_when_the_connection_is_refused(self) -> None:
        with pytest.raises(UpstreamUnavailable) as caught:
            get(f"http://127.0.0.1:{free_port()}/")

        assert caught.value.executed is False

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

        assert time.monotonic() - started < 1
        assert caught.value.executed is False

    def test_it_sends_a_body_that_fills_the_socket_and_waits_no_longer_than_the_deadline(self) -> None:
        body = b"x" * 8_000_000
        with socket.create_server(("127.0.0.1", 0)) as listener:
            transport = Transport("upstream", f"http://127.0.0.1:{listener.getsockname()[1]}")

            def send(seconds: float) -> Answer:
                return transport.send(
                    "POST", "/", headers={}, body=body, deadline=Deadline.after(seconds), repeatable=False
                )

            with pytest.raises(UpstreamTimeout):
                send(0.3)
            listener.accept()[0].close()

            def answer() -> None:
                connection, _ = listener.accept()
                with connection, connection.makefile("rb") as sent:
                    while sent.readline() != b"\r\n":
                        pass
                    taken = sent.read(len(body)) == body
                    connection.sendall(b"HTTP/1.1 %d OK\r\nContent-Length: 0\r\n\r\n" % (200 if taken else 400))

            server = threading.Thread(target=answer)
            server.start()
            assert send(10).status == 200
            server.join(10)

    def test_it_sends_no_header_that_ends_a_line(self, stand_ins: StandIns, runs_url: str) -> None:
        transport = Transport("upstream", runs_url)
        headers = {"X-Request-ID": "1\r\nX-API-Key: another"}
        with pytest.raises(ValueError, match="end of a line"):
            transport.send("GET", "", headers=headers, deadline=Deadline.after(5), repeatable=False)

        assert stand_ins.ledger() == []

    def test_it_knows_that_nothing_was_executed_when_the_name_is_unknown(self) -> None:
        with pytest.raises(UpstreamUnavailable) as caught:
            get("http://nowhere.invalid/")

        assert caught.value.executed is False

    @pytest.mark.parametrize("kind", ["reset", "half_body"])
    def test_it_can_not_tell_when_the_connection_breaks(self, stand_ins: StandIns, runs_url: str, kind: str) -> None:
        stand_ins.fault("runs-service", kind)

        with pytest.raises(UpstreamUnavailable) as caught:
            get(runs_url)

        assert caught.value.executed is None

    def test_it_repeats_what_may_be_repeated_once(self, stand_ins: StandIns, runs_url: str) -> None:
        stand_ins.fault("runs-service", "reset")
        assert get(runs_url, repeatable=True).status in (200, 401)

        stand_ins.fault("runs-service", "reset", times=2)
        with pytest.raises(UpstreamUnavailable):
            get(runs_url, repeatable=True)

    def test_it_follows_no_redirect(self, stand_ins: StandIns, runs_url: str) -> None:
        stand_ins.fault("runs-service", "redirect")

        with pytest.raises(UpstreamError, match="no usable answer"):
            get(runs_url)

        assert len(stand_ins.ledger()) == 1

    def test_it_refuses_an_endless_body(
        self, stand_ins: StandIns, runs_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.services.upstreams.http.MAX_BODY_BYTES", 10)
        stand_ins.fault("runs-service", "json", body=["a" * 100])

        with pytest.raises(UpstreamError) as caught:
            get(runs_url)

        assert caught.value.reason == "the answer is too long"

    def test_it_uses_a_connection_again_and_none_that_was_idle_for_long(
        self, stand_ins: StandIns, runs_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        transport = Transport("upstream", runs_url)

        def connection() -> Any:
            """The only one that there is after an exchange."""
            transport.send("GET", "", headers={}, deadline=Deadline.after(5), repeatable=False)
            (idle,) = transport._idle
            return idle

        first = connection()
        assert connection() is first
        monkeypatch.setattr("app.services.upstreams.http.MAX_IDLE_SECONDS", 0)
        assert connection() is not first


class TestConnection:
    @pytest.fixture
    def pair(self) -> Iterator[tuple[_Connection, socket.socket]]:
        """A connection that was just used, and the upstream's end of it."""
        ours, theirs = socket.socketpair()
        with theirs, _Socket(fileno=ours.detach()) as connected:
            connection = _Connection(connected)
            connection.idle_since = time.monotonic()
            assert connection.is_usable
            yield connection, theirs

    def test_it_is_not_used_again_when_something_came_that_nobody_asked_for(
        self, pair: tuple[_Connection, socket.socket]
    ) -> None:
        connection, theirs = pair
        theirs.send(b"HTTP/1.1 200 OK")
        assert not connection.is_usable

    def test_it_is_not_used_again_when_the_upstream_has_closed_it(
        self, pair: tuple[_Connection, socket.socket]
    ) -> None:
        connection, theirs = pair
        theirs.close()
        assert not connection.is_usable

    def test_it_is_not_used_again_when_tls_holds_what_nobody_has_read(
        self, pair: tuple[_Connection, socket.socket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when only the system is asked: TLS decrypts a record at a time, and it may hold more than an answer."""
        connection, _ = pair
        monkeypatch.setattr(_Socket, "pending", lambda _: 1)
        assert not connection.is_usable
