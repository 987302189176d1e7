"""The digest that a sender announces for its body (RFC 9530), and its comparison with the body received."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final

from fastapi import Request

from service.http.problems import Problem

_MEMBER: Final = re.compile(r"([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):(?:;[^,]*)?")
_KNOWN: Final = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}


class AnnouncedDigests:
    """The digests in a request's Content-Digest and Repr-Digest, which mean the same here, as no content coding is accepted.

    Algorithms other than sha-256 and sha-512 are ignored. Raises the 400 problem for headers that can't be parsed.
    """

    def __init__(self, request: Request) -> None:
        self._expected: list[tuple[str, str, bytes]] = []
        for header in ("Content-Digest", "Repr-Digest"):
            for member in filter(None, (one.strip() for one in ", ".join(request.headers.getlist(header)).split(","))):
                match = _MEMBER.fullmatch(member)
                if match is None:
                    raise _unreadable(header)
                if match[1] in _KNOWN:
                    self._expected.append((header, match[1], _decoded(header, match[1], match[2])))
        self._running = {algorithm: _KNOWN[algorithm]() for _, algorithm, _ in self._expected}

    def update(self, piece: bytes) -> None:
        """The next bytes of the body."""
        for running in self._running.values():
            running.update(piece)

    def check(self) -> None:
        """Raises the 400 problem unless the body received has the announced digests."""
        for header, algorithm, expected in self._expected:
            found = self._running[algorithm].digest()
            if found != expected:
                raise Problem(
                    "digest_mismatch",
                    f"{header} announces {algorithm} {expected.hex()}, the body that arrived has {found.hex()}: "
                    "it was damaged on its way, or the header belongs to another file. Send it again.",
                )


def _decoded(header: str, algorithm: str, text: str) -> bytes:
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _unreadable(header) from None
    if len(digest) != _KNOWN[algorithm]().digest_size:
        raise _unreadable(header)
    return digest


def _unreadable(header: str) -> Problem:
    return Problem("bad_header", f"{header} can't be read: give it as sha-256=:BASE64: (RFC 9530), or leave it out.")
