"""Which addresses somebody else may have us ask: those of the public internet."""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

import msgspec

from common.errors import Invalid

LENGTH = 2_000
"""Characters of an address at most."""

HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
VISIBLE = re.compile(r"[!-~]+")

GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All of IPv6 that is handed out (RFC 4291, 2.4)."""
NAT64 = IPv6Network("64:ff9b::/96")

NOT_PUBLIC = (
    IPv4Network("192.0.0.0/24"),  # special purposes, with a metadata service; Python before 3.11.10 has parts of it
    IPv4Network("192.88.99.0/24"),  # relays of 6to4, which there are no more (RFC 7526)
    IPv4Network("168.63.129.16/32"),  # Azure's own services, at an address that looks public
)
NOT_PUBLIC_V6 = IPv6Network("3fff::/20")
"""Documentation (RFC 9637), which Python does not know yet."""


class Target(msgspec.Struct, frozen=True):
    """An address taken apart, once: what is looked at is what is asked. `path` is with the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """As the header Host has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


PORTS = {"https": 443, "http": 80}


def target_of(url: str, *, private: bool) -> Target:
    """Where a webhook's address leads. Raises Invalid. `private`: also over http."""
    if len(url) > LENGTH:
        raise refused(f"Expected at most {LENGTH} characters")
    if not VISIBLE.fullmatch(url) or "\\" in url:
        raise refused("Expected visible ASCII characters without backslashes; a host with others as xn--", url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise refused("Expected an address such as https://example.org/hooks", url) from None
    if parts.scheme not in (("https", "http") if private else ("https",)):
        raise refused("Expected an address that begins with https://", url)
    if "@" in parts.netloc:
        raise refused("May not hold a name or password; the signature says who sends")
    if "#" in url:
        raise refused("May not hold a fragment (#)", url)
    host = parts.hostname or ""
    is_host = is_ipv6(host) if parts.netloc.startswith("[") else HOST.fullmatch(host)
    if not is_host or len(host) > 253 or port == 0:
        raise refused("Expected a host and a port that there are", url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or PORTS[parts.scheme], path)


def refused(why: str, url: str | None = None) -> Invalid:
    """What is wrong with an address. It is shown where no password is in it."""
    shown = {} if url is None else {"got": url}
    return Invalid(f"url: {why}", field="url", **shown)


def is_ipv6(text: str) -> bool:
    try:
        return "%" not in text and bool(IPv6Address(text))
    except ValueError:
        return False


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public internet, and so is every address that it carries inside."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return is_public_v4(address) if isinstance(address, IPv4Address) else is_public_v6(address)


def is_public_v4(address: IPv4Address) -> bool:
    return address.is_global and not address.is_multicast and not any(address in network for network in NOT_PUBLIC)


def is_public_v6(address: IPv6Address) -> bool:
    if (inside := address.ipv4_mapped) is not None:
        return is_public_v4(inside)
    if address in NAT64:
        return is_public_v4(IPv4Address(int(address) & 0xFFFF_FFFF))
    if address.sixtofour is not None and not is_public_v4(address.sixtofour):
        return False
    return address.is_global and address in GLOBAL_UNICAST and address not in NOT_PUBLIC_V6  # so no Teredo either
