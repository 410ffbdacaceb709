"""Where an app may have us send events: by names that lead to public addresses only, and to no address by itself."""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

HTTPS_PORT = 443
# Below it are the services of systems: mail, name servers, remote shells.
LOWEST_PORT = 1024

# An IPv4 address, in its last four bytes. https://www.rfc-editor.org/rfc/rfc6052
NAT64 = ip_network("64:ff9b::/96")
# What `is_global` lets pass, by the version of Python, and is for nobody's server.
NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            *("192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/3"),
            *("::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "fec0::/10", "ff00::/8"),
        ),
    )
)

# As browsers tell it: whatever its form, what ends in a number is an address. https://url.spec.whatwg.org/#ends-in-a-number-checker
_ENDS_IN_NUMBER = re.compile(r"(?:^|\.)(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?$")
_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?")


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet; one that carries an IPv4 address is what that is."""
    ip = ip_address(address)
    carried = _carried(ip)
    if carried is not None:
        return is_public(str(carried))
    return ip.is_global and not ip.is_reserved and not any(ip in network for network in NOT_PUBLIC)


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's own."""
    return ip_address(address).is_loopback


def problems_of_url(url: str, *, allow_private: bool) -> Iterable[str]:
    """What keeps a URL from being told events, as far as it can be seen without a look at its name's addresses.

    :param url: an absolute http or https URL without user info
    :param allow_private: whether addresses of private networks, and of this machine, may be told
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or HTTPS_PORT
    if parts.fragment:
        yield "Must have no fragment."
    if allow_private:
        return
    if parts.scheme != "https":
        yield "Must be an https URL."
    if _ENDS_IN_NUMBER.search(host) or not _NAME.fullmatch(host):
        yield "Must name a host, and no address."
    if port != HTTPS_PORT and port < LOWEST_PORT:
        yield f"Must have the port {HTTPS_PORT}, or one from {LOWEST_PORT} on."


def _carried(ip: IPv4Address | IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to."""
    if isinstance(ip, IPv4Address):
        return None
    if ip in NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour
