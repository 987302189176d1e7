"""The first check of an uploaded file: its head, and the files that are refused whatever families there are. Imports neither
torch nor numpy.

What passes it is still untrusted, and is read to its end only by `worker.datasets.validator`.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

HEAD_BYTES: Final = 512 * 1024
"""The first bytes of a file that detection needs: enough for the header of the widest table that is read."""

_ARCHIVE: Final = "unpack it and send the file inside"
_CSV: Final = "save it as CSV or Parquet and send that"
_REFUSED: Final[tuple[tuple[bytes, str, str], ...]] = (
    (b"PK\x03\x04", "a zip archive (or .xlsx, .npz, .pt, which are such)", f"{_ARCHIVE}; sheets as CSV, arrays as safetensors"),
    (b"PK\x05\x06", "an empty zip archive", _ARCHIVE),
    (b"\x1f\x8b", "compressed by gzip", _ARCHIVE),
    (b"BZh", "compressed by bzip2", _ARCHIVE),
    (b"\xfd7zXZ\x00", "compressed by xz", _ARCHIVE),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _ARCHIVE),
    (b"\x04\x22\x4d\x18", "compressed by lz4", _ARCHIVE),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _ARCHIVE),
    (b"Rar!\x1a\x07", "a rar archive", _ARCHIVE),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel sheet (.xls)", "save it as CSV and send that"),
    (b"\x93NUMPY", "a NumPy array (.npy)", "save it as safetensors and send that"),
    (b"\x89HDF\r\n", "an HDF5 file", _CSV),
    (b"ARROW1", "an Arrow file", "save it as Parquet and send that"),
    (b"SQLite format 3\x00", "an SQLite database", _CSV),
    (b"PARE", "an encrypted Parquet file", "save it without encryption"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"%PDF", "a PDF document", _CSV),
)  # fmt: skip


class BadLine(ValueError):
    """A line that its format doesn't allow; `line` counts from 1, and 0 is the file as a whole."""

    def __init__(self, line: int, detail: str) -> None:
        super().__init__(f"line {line}: {detail}" if line else detail)
        self.line, self.detail = line, detail


class Line(NamedTuple):
    number: int
    """The line's number, from 1."""
    text: str
    """The line without its end."""


@dataclass(frozen=True)
class Head:
    """The part of a file from which readers detect its format: the first HEAD_BYTES, or, if it has fewer, all of it (`whole`)."""

    data: bytes
    whole: bool

    @cached_property
    def line(self) -> Line | None:
        """The first line that isn't blank; None where the head is no text, or begins no line that ends in it."""
        try:
            return self.first_line()
        except BadLine:
            return None

    def first_line(self) -> Line:
        """The first line that isn't blank; raises BadLine with the reason where there is none."""
        nul = self.data.find(b"\x00")
        if nul >= 0:
            line = self.data.count(b"\n", 0, nul) + 1
            raise BadLine(line, "there is a NUL byte: this is no text file, nor of another format that is read here")
        try:
            text = codecs.getincrementaldecoder("utf-8-sig")().decode(self.data, final=self.whole)
        except UnicodeDecodeError as problem:
            line = self.data.count(b"\n", 0, problem.start) + 1
            raise BadLine(line, f"byte {problem.start + 1} of the file is not UTF-8: save the file as UTF-8") from None
        lines = text.split("\n", 64)
        number = next((index for index, line in enumerate(lines) if line.strip()), None)
        if number is None:
            raise BadLine(1, "the file begins with nothing but blank lines: remove them")
        if not self.whole and number == len(lines) - 1:
            raise BadLine(
                number + 1,
                f"the line is longer than {HEAD_BYTES} bytes: a text file needs a line a row, and few columns",
            )
        return Line(number + 1, lines[number].strip("\r"))


def refuse(head: Head) -> None:
    """Raises BadLine for a file that is empty or of a known format that no family reads, with a sentence that says what it is
    and what to do."""
    data = head.data
    if not data.strip():
        raise BadLine(1, "the file is empty")
    for magic, what, remedy in _REFUSED:
        if data.startswith(magic):
            raise BadLine(0, f"this is {what}: {remedy}")
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise BadLine(0, f"this is a Python pickle, which could run code: {_CSV}, or safetensors for images")
    if data[257:262] == b"ustar":
        raise BadLine(0, f"this is a tar archive: {_ARCHIVE}")
