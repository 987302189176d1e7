"""Where a webhook may point: the spelling of its URL, and the addresses that its host stands for.

A webhook makes the service send requests to a place that a user chose. Two checks keep these from reaching the operator's own
network: the URL must be in a plain spelling that all programs read alike, and every address of its host must be public. The
connection is made to an address that was checked, without resolving the name again, so that a name which resolves differently
the second time has no effect.
"""

from __future__ import annotations

import queue
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from threading import Thread
from typing import Final

from service.webhooks.settings import Network

Address = IPv4Address | IPv6Address
Resolver = Callable[[str, int], Sequence[str]]
"""Host and port → addresses as text. Raises OSError where there is none."""

MAX_URL: Final = 2000
_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?(?:\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?)"
)
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}

# Python's `is_global` knows most of these. Its list differs between versions, so all are listed here.
_NOT_PUBLIC: Final = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "2001::/23",  # Teredo and other protocols' own
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "3fff::/20",
    )
)  # fmt: skip
_PUBLIC_IPV6: Final = ip_network("2000::/3")
"""All allocated global addresses; mapped IPv4, NAT64, loopback, link-local, private and multicast addresses lie outside."""


class Refused(Exception):
    """A webhook may not point there; the message says why, and what to do."""


class Unresolved(Exception):
    """The host's name has no address, or its resolver gave no answer; trying again may help."""


@dataclass(frozen=True)
class Target:
    """A URL of the plain spelling, in parts. `target`: path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and port as in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse(url: str, *, allow_http: bool) -> Target:
    """The parts of `url`; raises Refused if it isn't in the plain spelling, or not https."""
    if len(url) > MAX_URL:
        raise Refused(f"the URL has {len(url)} characters: at most {MAX_URL} are allowed")
    match = _URL.fullmatch(url)
    if match is None:
        raise Refused(
            "this is no plain URL: give https://HOST/PATH, without user, fragment, backslashes, spaces or letters outside "
            "ASCII (a host's name as xn--…, other letters as %XX)"
        )
    scheme = match["scheme"]
    if scheme != "https" and not allow_http:
        raise Refused(
            "a URL with http:// is not allowed here: use https://, or have the operator set AMAML_WEBHOOK_ALLOW_HTTP"
        )
    port = int(match["port"]) if match["port"] else _DEFAULT_PORTS[scheme]
    _check_port(port)
    return Target(
        scheme, _host(match["host"]), port, match["target"] if match["target"][:1] == "/" else "/" + match["target"]
    )


def addresses(target: Target, networks: Sequence[Network], resolve: Resolver) -> list[Address]:
    """The addresses of `target`, best first. Raises Refused unless every one is public or lies in one
    of the operator's `networks`; Unresolved if it has none.
    """
    try:
        found = [ip_address(text) for text in resolve(target.host, target.port)]
    except (OSError, UnicodeError) as error:
        raise Unresolved(f"{target.host} doesn't resolve: {error}") from None
    if not found:
        raise Unresolved(f"{target.host} doesn't resolve: it has no address")
    for address in found:
        if not is_allowed(address, networks):
            raise Refused(
                f"{target.host} stands for {address}, which is no public address: use one that the internet can reach, or "
                "have the operator name its network in AMAML_WEBHOOK_NETWORKS"
            )
    return found


def is_allowed(address: Address, networks: Sequence[Network]) -> bool:
    """Whether a webhook may connect to it."""
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return False
    return is_public(address) or any(address in network for network in networks)


def is_public(address: Address) -> bool:
    """Whether it is a public address of the internet, and doesn't encode another address."""
    if isinstance(address, IPv6Address) and address not in _PUBLIC_IPV6:
        return False
    return address.is_global and not address.is_multicast and not any(address in network for network in _NOT_PUBLIC)


def resolver(seconds: float) -> Resolver:
    """The system's resolver, with a time limit."""

    def resolve(host: str, port: int) -> list[str]:
        answers: queue.SimpleQueue[list[str] | OSError | UnicodeError] = queue.SimpleQueue()

        def resolve_in_thread() -> None:
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                answers.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
            except (OSError, UnicodeError) as error:
                answers.put(error)

        # The system's resolver has no time limit, so it runs in a thread of its own, which is abandoned if it takes too long.
        Thread(target=resolve_in_thread, name="resolver", daemon=True).start()
        try:
            answer = answers.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"no answer within {seconds:g} s") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    return resolve


def _host(text: str) -> str:
    """The host in small letters; raises Refused for any spelling of an address but the canonical one."""
    if text.startswith("["):
        return str(_literal(text[1:-1]))
    host = text.lower()
    labels = host.split(".")
    # If the last label is a number, programs read the whole as an IPv4 address, each in its own way.
    if _NUMBER.fullmatch(labels[-1]):
        return str(_literal(host))
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise Refused(
            f"{text[:80]!r} is no host's name: give labels of letters, digits and hyphens, without a dot at the end"
        )
    return host


def _literal(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError:
        raise Refused(
            f"{text[:80]!r} is no plain IP address: give four decimal numbers, an IPv6 address, or a name"
        ) from None


def _check_port(port: int) -> None:
    """Allows 443, 80, and ports above those of system services, which could take a message for mail or a command."""
    if port not in (80, 443) and not 1024 <= port <= 65535:
        raise Refused(f"port {port} is not allowed: use 443, 80, or one from 1024 to 65535")
