"""Where webhooks may point: spellings of URLs, and what is a public address."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from threading import Event

import pytest

from service.webhooks import target as targets
from service.webhooks.target import Refused, Target, Unresolved
from tests.support.waiting import CEILING_SECONDS

PUBLIC = (
    "93.184.215.14",
    "2606:2800:21f:cb07:6820:80da:af6b:8b2c",
    "1.1.1.1",
    "2a00:1450:4001::200e",
    "223.255.255.254",
)
NOT_PUBLIC = (
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.7",
    "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:93.184.215.14", "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "3fff::1", "4000::1", "5f00::1",
    "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1",
)  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert targets.is_allowed(ip_address(address), ())


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_other_addresses_are_not(address: str) -> None:
    assert not targets.is_allowed(ip_address(address), ())


def test_an_address_of_the_internet_in_another_scope_is_not_public() -> None:
    assert not targets.is_allowed(ip_address("2606:2800::1%eth0"), [ip_network("::/0")])


def test_networks_that_the_operator_names_are_allowed() -> None:
    networks = [ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")]
    assert targets.is_allowed(ip_address("10.1.2.3"), networks)
    assert targets.is_allowed(ip_address("fd00:1::5"), networks)
    for other in ("10.2.0.1", "::ffff:10.1.2.3", "2002:a01:203::", "64:ff9b::a01:203", "127.0.0.1"):
        assert not targets.is_allowed(ip_address(other), networks)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://hooks.example.org", Target("https", "hooks.example.org", 443, "/")),
        ("https://Hooks.Example.ORG/a/b?c=d&e=%20", Target("https", "hooks.example.org", 443, "/a/b?c=d&e=%20")),
        ("https://example.org:8443?x", Target("https", "example.org", 8443, "/?x")),
        ("https://xn--bcher-kva.example:443/", Target("https", "xn--bcher-kva.example", 443, "/")),
        ("https://1.1.1.1/x", Target("https", "1.1.1.1", 443, "/x")),
        ("https://[2606:2800:021F::1]:443/", Target("https", "2606:2800:21f::1", 443, "/")),
        ("https://intranet/hook", Target("https", "intranet", 443, "/hook")),
        ("https://3com.example.org/", Target("https", "3com.example.org", 443, "/")),
    ],
)
def test_plain_urls_are_taken_apart(url: str, parts: Target) -> None:
    assert targets.parse(url, allow_http=False) == parts


def test_the_host_header_is_written_as_it_should_be() -> None:
    written = [Target("https", host, port, "/").authority for host, port in (("a.b", 443), ("a.b", 80), ("::1", 443))]
    assert written == ["a.b", "a.b:80", "[::1]"]
    assert Target("http", "::1", 8080, "/").authority == "[::1]:8080"


@pytest.mark.parametrize(
    "url",
    [
        "", "https://", "https:///path", "//example.org", "example.org", "ftp://example.org", "file:///etc/passwd",
        "HTTPS://example.org", "https:example.org", "https:/example.org", "gopher://example.org:25/",
        "https://user@example.org", "https://user:secret@example.org/", "https://1.1.1.1@127.0.0.1/", "https://@example.org",
        "https://example.org#fragment", "https://example.org\\@127.0.0.1/", "https://example.org\\.other.org/",
        "https://example.org /", " https://example.org", "https://example.org\n", "https://example.org\r\nHost: other",
        "https://exam\tple.org", "https://example.org/a b", "https://example.org/\x00", "https://bücher.example/",
        "https://example.org/ü", "https://example.org/<x>",
        "https://127.1/", "https://127.0.1/", "https://2130706433/", "https://0x7f000001/", "https://0x7f.0.0.1/",
        "https://017700000001/", "https://0177.0.0.1/", "https://127.0.0.01/", "https://127.0.0.0x1/", "https://0/",
        "https://0x/", "https://256.1.1.1/", "https://1.1.1.1.1/", "https://example.1/", "https://①②⑦.0.0.1/",
        "https://127。0。0。1/", "https://%31%32%37.0.0.1/", "https://127.0.0.1%2f@example.org/", "https://2852039166/",
        "https://0xa9fea9fe/", "https://0251.0376.0251.0376/", "https://169.254.43518/",
        "https://127.0.0.1./", "https://example.org./", "https://example..org/", "https://.example.org/", "https://-a.org/",
        "https://a-.org/", "https://a_b.org/", f"https://{'a' * 64}.org/", f"https://{'a.' * 130}org/",
        "https://[::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[::1/", "https://::1/", "https://[127.0.0.1]/x]",
        "https://[::gg]/", "https://[v1.x]/", "https://[]/",
        "https://example.org:/", "https://example.org:0/", "https://example.org:22/", "https://example.org:25/",
        "https://example.org:65536/", "https://example.org:99999/", "https://example.org:-1/", "https://example.org:４４３/",
        "https://example.org:443:443/", "http://example.org/", f"https://example.org/{'a' * 2000}",
    ],
)  # fmt: skip
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(Refused):
        targets.parse(url, allow_http=False)


def test_http_is_the_operators_choice() -> None:
    assert targets.parse("http://example.org/x", allow_http=True) == Target("http", "example.org", 80, "/x")
    assert targets.parse("http://example.org:8080", allow_http=True).port == 8080


@pytest.mark.parametrize("literal", ["127.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]",
                                     "[0:0:0:0:0:0:0:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "0.0.0.0", "[::]"])  # fmt: skip
def test_plain_literals_of_private_addresses_are_refused_by_their_address(literal: str) -> None:
    target = targets.parse(f"https://{literal}/", allow_http=False)
    with pytest.raises(Refused, match="no public address"):
        targets.addresses(target, (), targets.resolver(CEILING_SECONDS))


def test_localhost_is_refused_by_its_address() -> None:
    target = targets.parse("https://localhost/", allow_http=False)
    with pytest.raises(Refused, match="no public address"):
        targets.addresses(target, (), targets.resolver(CEILING_SECONDS))


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    target = Target("https", "both.example", 443, "/")
    assert len(targets.addresses(target, (), lambda *_: ["1.1.1.1", "2606:4700::1"])) == 2
    with pytest.raises(Refused, match=r"10\.0\.0\.1"):
        targets.addresses(target, (), lambda *_: ["1.1.1.1", "10.0.0.1"])


def test_a_name_without_address_is_told_apart() -> None:
    target = Target("https", "nowhere.invalid", 443, "/")
    with pytest.raises(Unresolved):
        targets.addresses(target, (), lambda *_: [])
    with pytest.raises(Unresolved, match="doesn't resolve"):
        targets.addresses(target, (), targets.resolver(CEILING_SECONDS))


def test_a_resolver_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: given_up.wait() and [])
    with pytest.raises(Unresolved, match="no answer within"):
        targets.addresses(Target("https", "slow.example", 443, "/"), (), targets.resolver(0.1))
    given_up.set()
