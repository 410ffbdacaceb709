"""The transport over TLS: whom it trusts, and that all it promises holds there too."""

import shutil
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.errors import UpstreamTimeout, UpstreamUnavailable
from app.services.upstreams.http import Transport, tls_context
from tests.services.upstreams import ALIEN, NAME, OK, READ_SIZE, answering, answering_once, ask, get, resolve, upstream

DRIP_SECONDS = 0.05
# How a record of 16,000 bytes begins that is a part of a handshake.
HANDSHAKE = b"\x16\x03\x03" + struct.pack("!H", 16_000)


@dataclass(frozen=True)
class Around:
    """TLS with something done to the connection before or after the handshake."""

    tls: ssl.SSLContext
    before: Callable[[socket.socket], object] = id
    after: Callable[[socket.socket], object] = id

    def wrap_socket(self, connection: socket.socket, *, server_side: bool) -> ssl.SSLSocket:
        self.before(connection)
        secured = self.tls.wrap_socket(connection, server_side=server_side)
        self.after(secured)
        return secured


def reset(connection: socket.socket) -> None:
    """Break the connection once the handshake has begun."""
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_slowly(connection: socket.socket) -> None:
    while connection.recv(16_384):
        time.sleep(DRIP_SECONDS)


@dataclass(frozen=True)
class Authority:
    """A private authority, and what a server needs whose certificate, for one name alone, is from it."""

    certificate: Path
    server: ssl.SSLContext


def openssl(*arguments: object) -> str:
    return subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    home = tmp_path_factory.mktemp("authority")
    (home / "names").write_text(f"subjectAltName = DNS:{NAME}")
    new = ("req", "-newkey", "rsa:2048", "-nodes")
    openssl(*new, "-x509", "-subj", "/CN=Authority", "-keyout", home / "ca.key", "-out", home / "ca.pem")
    openssl(*new, "-subj", "/CN=Server", "-keyout", home / "key.pem", "-out", home / "request.pem")
    by_it = ("-CA", home / "ca.pem", "-CAkey", home / "ca.key", "-CAcreateserial", "-extfile", home / "names")
    openssl("x509", "-req", *by_it, "-in", home / "request.pem", "-out", home / "server.pem")

    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(home / "server.pem", home / "key.pem")
    return Authority(home / "ca.pem", server)


@pytest.fixture(autouse=True)
def _read_anew() -> Iterator[None]:
    """A process reads once whom it trusts; each of these tests plays another."""
    tls_context.cache_clear()
    yield
    tls_context.cache_clear()


@pytest.fixture
def tls(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What a server needs so that the transport trusts it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    return authority.server


class TestTrust:
    def test_it_trusts_an_authority_in_ssl_cert_file(self, tls: ssl.SSLContext) -> None:
        with upstream(answering(OK), tls) as server:
            assert get(server.url).body == b"ok"

    def test_it_trusts_an_authority_in_ssl_cert_dir(
        self, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        subject = openssl("x509", "-in", authority.certificate, "-noout", "-hash").strip()
        shutil.copy(authority.certificate, tmp_path / f"{subject}.0")
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
        with upstream(answering(OK), authority.server) as server:
            assert get(server.url).body == b"ok"

    def test_it_trusts_public_authorities_whatever_the_environment_names(
        self, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when a private authority takes their place: the same process speaks to Stripe."""
        monkeypatch.setattr("app.services.upstreams.http.certifi.where", lambda: str(authority.certificate))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
        with upstream(answering(OK), authority.server) as server:
            assert get(server.url).body == b"ok"

    def test_it_trusts_no_other_authority(self, authority: Authority) -> None:
        with upstream(answering(OK), authority.server) as server:
            with pytest.raises(UpstreamUnavailable) as caught:
                get(server.url)

            assert caught.value.executed is False
            assert caught.value.reason == "no connection"
            assert server.requests == []

    def test_it_trusts_no_certificate_of_another_host(self, tls: ssl.SSLContext) -> None:
        with upstream(answering(OK), tls) as server:
            with pytest.raises(UpstreamUnavailable) as caught:
                get(server.url.replace(NAME, "127.0.0.1"))

            assert caught.value.executed is False
            assert server.requests == []


class TestDeadline:
    def test_it_gives_up_at_the_deadline_when_an_answer_drips(self, tls: ssl.SSLContext) -> None:
        """Fails when a socket's timeout starts afresh with each read."""

        def drip(connection: socket.socket) -> None:
            for byte in OK:
                connection.send(bytes([byte]))
                time.sleep(DRIP_SECONDS)

        with upstream(drip, tls) as server:
            started = time.monotonic()
            with pytest.raises(UpstreamTimeout) as caught:
                get(server.url, seconds=0.5)

            assert 0.4 < time.monotonic() - started < 1.5
            assert caught.value.executed is None

    def test_it_gives_up_at_the_deadline_when_a_handshake_drips(self, tls: ssl.SSLContext) -> None:
        def drip(connection: socket.socket) -> None:
            connection.sendall(HANDSHAKE)
            for _ in range(40):
                connection.send(b"\x02")
                time.sleep(DRIP_SECONDS)

        with upstream(answering(OK), Around(tls, before=drip)) as server:
            started = time.monotonic()
            with pytest.raises(UpstreamTimeout) as caught:
                get(server.url, seconds=0.5)

            assert 0.4 < time.monotonic() - started < 1.5
            assert caught.value.executed is False
            assert caught.value.reason == "no connection in time"

    def test_it_lets_a_handshake_take_what_is_left_of_the_time(
        self, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when a handshake may take no longer than connecting to one of two addresses."""
        with upstream(answering(OK), Around(tls, before=lambda _: time.sleep(0.7))) as server:
            resolve(monkeypatch, server.address, server.address)
            assert get(server.url, seconds=1.2).status == 200

    def test_it_sends_a_body_that_fills_the_socket_and_waits_no_longer_than_the_deadline(
        self, tls: ssl.SSLContext
    ) -> None:
        body = b"x" * 8_000_000
        with upstream(answering(OK), tls) as server:
            transport = Transport("upstream", server.url)
            assert ask(transport, method="POST", body=body, seconds=10).status == 200
            assert server.requests[0].endswith(b"\r\n\r\n" + body)

        with upstream(answering(OK), Around(tls, after=read_slowly)) as server:
            transport = Transport("upstream", server.url)
            started = time.monotonic()
            with pytest.raises(UpstreamTimeout) as caught:
                ask(transport, method="POST", body=body, seconds=0.5)

            assert 0.4 < time.monotonic() - started < 1.5
            assert caught.value.executed is None


class TestConnections:
    def test_it_uses_a_connection_again(self, tls: ssl.SSLContext) -> None:
        with upstream(answering(OK, OK), tls) as server:
            transport = Transport("upstream", server.url)
            ask(transport)
            ask(transport)
            assert len(server.connections) == 1

    def test_it_leaves_a_connection_on_which_something_came_that_nobody_asked_for(self, tls: ssl.SSLContext) -> None:
        with upstream(answering(OK, OK), tls) as server:
            transport = Transport("upstream", server.url)
            ask(transport)
            server.connections[0].sendall(ALIEN)
            assert ask(transport).body == b"ok"

    def test_it_leaves_a_connection_when_tls_holds_what_nobody_has_read(self, tls: ssl.SSLContext) -> None:
        """Fails when only the system is asked: TLS decrypts a record at a time, which may hold more than an answer."""
        with upstream(answering(OK.ljust(READ_SIZE) + ALIEN, OK), tls) as server:
            transport = Transport("upstream", server.url)
            ask(transport)
            assert ask(transport).body == b"ok"

    def test_it_leaves_a_connection_that_the_upstream_has_closed(self, tls: ssl.SSLContext) -> None:
        with upstream(answering(OK, OK), tls) as server:
            transport = Transport("upstream", server.url)
            ask(transport)
            server.connections[0].shutdown(socket.SHUT_RDWR)
            assert ask(transport).body == b"ok"

    def test_it_knows_that_nothing_was_executed_when_the_handshake_breaks(self, tls: ssl.SSLContext) -> None:
        """Fails when a failed handshake is told like a connection that broke after a request was sent."""
        with upstream(answering(OK), Around(tls, before=reset)) as server, pytest.raises(UpstreamUnavailable) as caught:
            get(server.url)

        assert caught.value.executed is False
        assert caught.value.reason == "no connection"

    def test_it_takes_no_part_of_an_answer_for_the_whole(self, tls: ssl.SSLContext) -> None:
        with upstream(answering_once(OK[:-1]), tls) as server, pytest.raises(UpstreamUnavailable) as caught:
            get(server.url)

        assert caught.value.executed is None
        assert caught.value.reason == "the connection broke"
