"""Reading text files line by line, for readers of several formats. Imports neither torch nor numpy."""

from __future__ import annotations

import codecs
import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from amaml.families.upload import BadLine

MAX_LINE_BYTES: Final = 4 << 20
_READ_BYTES: Final = 1 << 20


def text_errors(path: Path) -> Iterator[BadLine]:
    """The first fault that makes the file no text of lines: a NUL byte, bytes that aren't UTF-8, or an overlong line."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, length = 1, 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            nul = piece.find(b"\x00")
            if nul >= 0:
                yield BadLine(line + piece.count(b"\n", 0, nul), "there is a NUL byte: save it as plain text")
                return
            try:
                decoder.decode(piece)
            except UnicodeDecodeError as problem:
                # The decoder's place counts what was left over from the piece before.
                at = max(0, problem.start - (len(problem.object) - len(piece)))
                yield BadLine(
                    line + piece.count(b"\n", 0, at), "there are bytes that aren't UTF-8: save the file as UTF-8"
                )
                return
            line += piece.count(b"\n")
            last = piece.rfind(b"\n")
            length = length + len(piece) if last < 0 else len(piece) - last - 1
            if length > MAX_LINE_BYTES:
                yield BadLine(line, f"the line is longer than {MAX_LINE_BYTES} bytes: write a row a line")
                return


def is_number(text: str) -> bool:
    """Whether the text is a finite number."""
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def split_csv(line: str) -> list[str]:
    """The fields between commas, without quotes; the whole line as one field where its quotes don't match."""
    try:
        return next(csv.reader([line]), []) if '"' in line else line.split(",")
    except csv.Error:
        return [line]
