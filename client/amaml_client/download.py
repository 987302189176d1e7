"""A file fetched in as many tries as it takes, and kept only if its bytes are the ones announced."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from amaml_client.errors import ChecksumMismatch, Unreachable
from amaml_client.exchange import Conversation, Reply, Send, exchange


class Partial:
    """Bytes on their way to `path`, in a file beside it that carries their checksum in its name.

    What an earlier, cut download left there is gone on with. Two downloads of the same bytes to the same
    path at once aren't provided for: the checksum would refuse their mixture.
    """

    def __init__(self, path: Path, sha256: str, size: int) -> None:
        self.path, self.sha256, self.total = path, sha256, size
        self._part = path.with_name(f".{path.name}.{sha256[:16]}.part")
        self._file = self._part.open("ab")
        if self.size > size:
            self._file.truncate(0)

    @property
    def size(self) -> int:
        return self._file.seek(0, os.SEEK_END)

    def headers(self) -> Mapping[str, str]:
        if self.size == 0:
            return {"Accept-Encoding": "identity"}
        return {"Accept-Encoding": "identity", "Range": f"bytes={self.size}-", "If-Range": f'"{self.sha256}"'}

    def begin(self, reply: Reply) -> None:
        announced = _announced(reply.headers)
        if announced is not None and announced != self.sha256:
            self.discard()
            raise ChecksumMismatch(str(self.path), self.sha256, announced)
        resumed = reply.headers.get("content-range", "").startswith(f"bytes {self.size}-")
        if not (reply.status == 206 and resumed):
            self._file.truncate(0)

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def keep(self) -> Path:
        """Verifies the bytes and puts them in place. Raises ChecksumMismatch, and then nothing is left behind."""
        self._file.flush()
        os.fsync(self._file.fileno())
        with self._part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            self.discard()
            raise ChecksumMismatch(str(self.path), self.sha256, found)
        self._file.close()
        self._part.replace(self.path)
        return self.path

    def close(self) -> None:
        """Leaves what has arrived for the next try, if anything has."""
        if not self._file.closed:
            empty = self.size == 0
            self._file.close()
            if empty:
                self._part.unlink(missing_ok=True)

    def discard(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)


def download(source: str, path: Path, sha256: str, size: int) -> Conversation[Path]:
    """Fetches `source` to `path`, going on after a cut as long as each try gets further."""
    partial = Partial(path, sha256, size)
    try:
        while partial.size < size:
            before = partial.size
            try:
                yield from exchange(Send("GET", source, sink=partial))
            except Unreachable:
                if partial.size <= before:
                    raise
                continue
            if partial.size <= before:
                break  # a short body: the checksum says so
        return partial.keep()
    finally:
        partial.close()


def _announced(headers: Mapping[str, str]) -> str | None:
    """The sha256 that the answer names, in hexadecimal: by Repr-Digest (RFC 9530), else by a strong ETag."""
    digest = re.search(r"sha-256=:([A-Za-z0-9+/=]+):", headers.get("repr-digest", ""))
    if digest:
        return base64.b64decode(digest[1]).hex()
    etag = re.fullmatch(r'"([0-9a-f]{64})"', headers.get("etag", ""))
    return etag[1] if etag else None
