"""Checks of the rows of an adaptation's request, before it is queued: each error names its place. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from amaml.adaptation_request import LARGEST

MOST_NAMES: Final = 20
"""The most names that a sentence lists."""


class RowError(NamedTuple):
    place: str
    """The place below the list of rows, as a JSON Pointer: `/2/0`."""
    detail: str


@dataclass(frozen=True)
class Columns:
    """The columns of the rows."""

    what: str
    """`input` or `output`."""
    width: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        """As in "give 2 numbers, one an input (age, height)"."""
        count = f"{self.width} number{'s' if self.width > 1 else ''}, one an {self.what}"
        return f"{count} ({', '.join(self.names)})" if len(self.names) == self.width <= MOST_NAMES else count


def row_errors(rows: list[Any], columns: Columns) -> Iterator[RowError]:
    """The errors in rows of one number per column. If there is one column, all rows may be plain numbers instead."""
    if columns.width == 1 and not isinstance(rows[0], list):
        yield from _number_errors(rows, "")
        return
    for index, row in enumerate(rows):
        if not isinstance(row, list):
            yield RowError(f"/{index}", f"{shown(row)} is no row: give an array of {columns}")
        elif len(row) != columns.width:
            yield RowError(f"/{index}", f"the row has {len(row)} numbers: give {columns}")
        else:
            yield from _number_errors(row, f"/{index}")


def _number_errors(values: list[Any], where: str) -> Iterator[RowError]:
    for index, value in enumerate(values):
        if not is_usable(value):
            detail = f"{shown(value)} is no number that can be used: give one between {-LARGEST:g} and {LARGEST:g}"
            yield RowError(f"{where}/{index}", detail)


def is_usable(value: Any) -> bool:
    """Whether it is a number within the bounds."""
    # JSON's true is an int to Python; 1e999 is infinite to it.
    return type(value) in (float, int) and -LARGEST <= value <= LARGEST


def shown(value: Any) -> str:
    """A value of a request in a short form for a sentence."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"an array of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
