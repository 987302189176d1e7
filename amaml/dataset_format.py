"""The format of an uploaded file, detected from its first bytes, and the families that read it. Imports neither torch nor numpy.

This is only the first check: an accepted file is still untrusted, and `worker.datasets.validator` reads it to its end.
"""

from __future__ import annotations

from typing import NamedTuple

from amaml.families.reader import Reader, reader_named
from amaml.families.upload import BadLine, Head, refuse
from amaml.spec.kinds import families


class Detected(NamedTuple):
    format: str
    families: tuple[str, ...]
    """The families that can read it."""


def readers() -> dict[str, Reader]:
    """The reader of every family on this machine that reads data sets, by the family's kind."""
    return {kind: reader_named(cls.reader) for kind, cls in families().items() if cls.reader is not None}


def formats() -> dict[str, str]:
    """Every format that some family reads, with how such a file begins."""
    return {name: words for reader in readers().values() for name, words in reader.FORMATS.items()}


def detect(data: bytes, *, whole: bool, wanted: str = "auto") -> Detected:
    """The format of the file that begins with `data`: its first HEAD_BYTES, or, if it has fewer, `whole` of it.

    Where readers disagree, it is the format that is `wanted`, or else that of the first of them: built-in families come before
    those of packages, and one that takes whatever others leave comes last. Raises BadLine for what is none of the formats, or not
    the one that is wanted, with a sentence that says what it is instead and what to do.
    """
    head = Head(data, whole)
    refuse(head)
    found: dict[str, str] = {}
    special: list[str] = []
    faults: list[BadLine] = []
    for kind, reader in readers().items():
        try:
            name = reader.accepts(head)
        except BadLine as fault:
            faults.append(fault)
            continue
        if name is not None:
            found[kind] = name
            special += [] if getattr(reader, "TAKES_THE_REST", False) else [name]
    if not found:
        raise faults[0] if faults else _of_no_format(head)
    format_ = wanted if wanted in found.values() else [*special, *found.values()][0]
    if wanted not in ("auto", format_):
        raise BadLine(1, f"this is {format_}, not {wanted}: send format={format_} or format=auto")
    return Detected(format_, tuple(kind for kind, name in found.items() if name == format_))


def _of_no_format(head: Head) -> BadLine:
    number, text = head.first_line()
    *most, last = formats().values()
    return BadLine(number, f"{text[:60]!r} starts no file that is read here: expected {', '.join(most)}, or {last}")
