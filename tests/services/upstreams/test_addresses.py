"""Where events may be sent: nothing that isn't public is reached, however it is written."""

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from app.errors import InvalidRequest, UpstreamError
from app.services.upstreams.addresses import is_public
from app.services.upstreams.call_context import Deadline
from app.services.upstreams.event_endpoints import NOT_PUBLIC, EventEndpoints, seconds_to_wait
from app.services.upstreams.http import Answer
from tests.receivers import receiver

PRIVATE = [
    *("0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1"),
    *("172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1"),
    *("203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::127.0.0.1"),
    *("64:ff9b::10.0.0.1", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::"),
    *("2002:a9fe:a9fe::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1", "ff0e::1"),
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001:80b::200e", "64:ff9b::8.8.8.8", "2002:808:808::1"]

# Addresses as names, in all the forms that a resolver takes for one, and URLs that are none of an app's.
WRITTEN = [
    *("https://127.0.0.1", "https://127.1", "https://127.0.1", "https://2130706433", "https://0x7f000001"),
    *("https://0x7f.1", "https://0177.0.0.1", "https://017700000001", "https://127.0.0.1.", "https://0"),
    *("https://10.0.0.1:8443", "https://[::1]", "https://[::ffff:127.0.0.1]", "https://[64:ff9b::7f00:1]"),
    *("https://8.8.8.8", "https://[2606:4700::1111]", "https://localhost", "https://127.0.0.1.nip.test"),
    *("https://①②⑦.0.0.1", "https://127。0。0。1", "https://user@example.test", "https://example.test:22"),
    *("https://example.test/#fragment", "http://example.test", "https://example.test\\@127.0.0.1/"),
]


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every address to which somebody tries to connect; nobody gets there."""
    tried: list[Any] = []

    def connect(address: Any, *_: Any) -> socket.socket:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("app.services.upstreams.http.socket.create_connection", connect)
    return tried


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has every name resolve to these addresses, and with each further lookup to the next ones."""

    def resolve(*lookups: list[str]) -> None:
        left = list(lookups)

        def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            addresses = left.pop(0) if len(left) > 1 else left[0]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        monkeypatch.setattr("app.services.upstreams.http.socket.getaddrinfo", getaddrinfo)

    return resolve


def send(url: str, *, allow_private: bool = False) -> Answer:
    return EventEndpoints(allow_private=allow_private).send(url, b"{}", {}, Deadline.after(5))


class TestIsPublic:
    @pytest.mark.parametrize("address", PRIVATE)
    def test_it_knows_what_is_not(self, address: str) -> None:
        assert not is_public(address)

    @pytest.mark.parametrize("address", PUBLIC)
    def test_it_knows_what_is(self, address: str) -> None:
        assert is_public(address)


class TestSend:
    @pytest.mark.parametrize("address", PRIVATE)
    def test_a_name_that_leads_to_a_private_address_is_not_reached(
        self, names: Callable[..., None], connected: list[Any], address: str
    ) -> None:
        names([address])
        with pytest.raises(UpstreamError) as caught:
            send("https://events.example.test")
        assert (caught.value.reason, connected) == (NOT_PUBLIC, [])

    @pytest.mark.parametrize("addresses", [["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"]])
    def test_every_address_of_a_name_has_to_be_public(
        self, names: Callable[..., None], connected: list[Any], addresses: list[str]
    ) -> None:
        """Fails when one public address is enough."""
        names(addresses)
        with pytest.raises(UpstreamError):
            send("https://events.example.test")
        assert connected == []

    def test_it_connects_to_the_address_that_was_checked(
        self, names: Callable[..., None], connected: list[Any]
    ) -> None:
        """Fails when the name is looked up once more to connect: it may lead elsewhere by then."""
        names(["8.8.8.8"], ["127.0.0.1"])
        with pytest.raises(UpstreamError):
            send("https://events.example.test")
        assert connected == [("8.8.8.8", 443)]

    @pytest.mark.parametrize("url", WRITTEN)
    def test_an_address_in_whatever_writing_is_not_reached(
        self, names: Callable[..., None], connected: list[Any], url: str
    ) -> None:
        if "localhost" in url or "nip" in url:
            names(["127.0.0.1"])
        with pytest.raises((UpstreamError, ValueError)):
            send(url)
        assert connected == []

    def test_it_follows_no_redirect_and_no_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with receiver() as proxy, receiver() as listening:
            for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
                monkeypatch.setenv(name, proxy.url)
            listening.answers["/a?b=c"] = [f"307 Location: {proxy.url}/"]
            assert send(f"{listening.url}/a?b=c", allow_private=True).status == 307
            assert proxy.told == []
            assert [each.path for each in listening.told] == ["/a?b=c"]

    def test_without_tls_it_reaches_this_machine_only(self, names: Callable[..., None], connected: list[Any]) -> None:
        names(["8.8.8.8"])
        with pytest.raises(UpstreamError):
            send("http://events.example.test", allow_private=True)
        assert connected == []


class TestCheck:
    @pytest.mark.parametrize("url", WRITTEN)
    def test_it_refuses_what_is_not_reached(self, names: Callable[..., None], url: str) -> None:
        if "localhost" in url or "nip" in url:
            names(["127.0.0.1"])
        with pytest.raises((InvalidRequest, ValueError)):
            EventEndpoints(allow_private=False).check(url, Deadline.after(5))

    def test_it_refuses_a_name_with_a_private_address_and_takes_one_without(self, names: Callable[..., None]) -> None:
        names(["8.8.8.8", "192.168.0.1"], ["8.8.8.8", "2606:4700::1111"])
        endpoints = EventEndpoints(allow_private=False)
        with pytest.raises(InvalidRequest):
            endpoints.check("https://events.example.test/x?y=z", Deadline.after(5))
        endpoints.check("https://events.example.test/x?y=z", Deadline.after(5))


class TestSecondsToWait:
    @pytest.mark.parametrize(
        ("told", "seconds"),
        [("7", 7), ("0", 0), ("-1", 0), ("soon", 0), ("", 0), ("²", 0), ("9" * 400, 999_999_999),
         ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
    )  # fmt: skip
    def test_it_reads_seconds(self, told: str, seconds: float) -> None:
        assert seconds_to_wait({"Retry-After": told}) == seconds

    def test_it_reads_a_date(self) -> None:
        told = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
        assert 95 < seconds_to_wait({"Retry-After": told}) <= 101
