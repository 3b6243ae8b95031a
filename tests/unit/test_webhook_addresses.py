"""Where webhooks may lead: not to us, not to our neighbours, however it is written."""

import pytest

from common.errors import Invalid
from services.notification.addresses import Target, is_public, target_of

PUBLIC = [
    "8.8.8.8",
    "93.184.215.14",
    "192.0.1.1",
    "192.88.98.255",
    "192.88.100.1",
    "2606:2800:21f:cb07:6820:80da:af6b:8b2c",
]
PUBLIC += ["::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"]

ANY = "0.0.0.0"  # noqa: S104 (nobody binds to it)

PRIVATE = [
    *("127.0.0.1", "127.255.255.254", ANY, "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255"),
    *("192.168.1.1", "100.64.0.1", "169.254.0.1", "198.18.0.1", "192.0.2.1", "198.51.100.1", "203.0.113.1"),
    *("192.88.99.1", "192.88.99.255", "2002:c058:6301::1", "::ffff:192.88.99.1"),  # relays of 6to4
    *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    # metadata: AWS, Google, Azure and others; Alibaba; Oracle; Azure's platform; AWS over IPv6
    *("169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd12:3456::1", "ff02::1", "ff0e::1"),
    *("100::1", "2001:db8::1", "3fff::1", "5f00::1", "2001::1", "2001:2::1", "2001:10::1", "4000::1", "64:ff9b:1::1"),
    # IPv4 inside: mapped, compatible, translated, 6to4, Teredo
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:c0a8:101::1"),
    *("2001:0:a00:1::1", "2001:0:808:808::f7f7:f7f7"),
    *("", "localhost", "127.1", "2130706433", "0x7f000001"),  # no addresses at all: what resolves gives none of these
]


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_public_internet_may_be_asked(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_all_others_may_not(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("https://example.org", Target("https", "example.org", 443, "/"), "example.org"),
        ("https://Example.ORG:443/a/b?c=d", Target("https", "example.org", 443, "/a/b?c=d"), "example.org"),
        ("https://example.org:8443?c", Target("https", "example.org", 8443, "/?c"), "example.org:8443"),
        ("HTTPS://[2606:2800::1]:8443/", Target("https", "2606:2800::1", 8443, "/"), "[2606:2800::1]:8443"),
        ("https://xn--mller-kva.de/%2e%2e/", Target("https", "xn--mller-kva.de", 443, "/%2e%2e/"), "xn--mller-kva.de"),
    ],
)
def test_an_address_is_taken_apart_once(url: str, target: Target, authority: str) -> None:
    found = target_of(url, private=False)
    assert (found, found.authority) == (target, authority)


WRONG = [
    *("", "example.org", "//example.org/", "https://", "https:///hooks", "https:example.org", "https://:443/"),
    *("http://example.org/", "ftp://example.org/", "file:///etc/passwd", "gopher://example.org/", "javascript:1"),
    *("https://ada@example.org/", "https://ada:secret@example.org/", "https://example.org@127.0.0.1/"),
    *("https://127.0.0.1#@example.org/", "https://127.0.0.1\\@example.org/", "https://example.org\\.evil.org/"),
    *("https://example.org:0/", "https://example.org:65536/", "https://example.org:-1/", "https://example.org:http/"),
    *("https://[::1", "https://::1/", "https://[fe80::1%25eth0]/", "https://[127.0.0.1]/", "https://[v1.a]/"),
    *("https://localhost./", "https://example..org/", "https://.example.org/", "https://exa mple.org/"),
    *("https://exa\nmple.org/", "https://exa\tmple.org/", "https://example.org/\r\nHost: x", "https://müller.de/"),
    *("https://127。0。0。1/", "https://①②⑦.0.0.1/", "https://example.org/\x00", "https://%31%32%37.0.0.1/"),
    *("https://" + "a" * 64 + ".org/", "https://" + "a." * 127 + "org/", "https://example.org/" + "a" * 2_000),
]


@pytest.mark.parametrize("url", WRONG)
def test_what_is_no_address_or_could_be_read_in_two_ways_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match=r"^url: ") as refusal:
        target_of(url, private=False)
    assert refusal.value.context["field"] == "url"
    assert "secret" not in str(refusal.value.context)


def test_http_is_for_development_only() -> None:
    assert target_of("http://127.0.0.1:9000/a", private=True) == Target("http", "127.0.0.1", 9000, "/a")
    with pytest.raises(Invalid, match="https"):
        target_of("http://127.0.0.1:9000/a", private=False)
    with pytest.raises(Invalid, match="https"):
        target_of("file://127.0.0.1/a", private=True)
