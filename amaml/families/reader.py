"""What a family that reads uploaded data sets says of them: which it accepts, and what is wrong with one. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Protocol, cast

from amaml.dataset_report import DatasetReport
from amaml.families.upload import Head


class Reader(Protocol):
    """A module with these, or an object. It is imported by the API: what is heavy, `validate` imports itself. One whose format
    looks like many others', as a table in CSV does, has `TAKES_THE_REST = True` beside them: others come first."""

    FORMATS: Mapping[str, str]
    """The formats that it reads: their names, and in the words of a sentence how such a file begins."""

    def accepts(self, head: Head) -> str | None:
        """The name of the format that the file is of, told from its head; None if it isn't one of FORMATS. This is the format's
        one detector. Raises BadLine for a file that it would read but for a fault: told if no family accepts it."""

    def validate(self, path: Path, format_: str) -> DatasetReport:
        """Reads the whole file once or twice, a piece at a time, and says what is in it and what is wrong with it. In a process
        of its own, with bounds on memory and time, and no secrets."""


READER_PARTS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "FORMATS": lambda formats: isinstance(formats, Mapping) and all(isinstance(name, str) for name in formats),
    "accepts": callable,
    "validate": callable,
}
"""What a reader has, and whether what is there can be it."""


@cache
def reader_named(named: str) -> Reader:
    """The reader that a FamilySpec's `reader` names: a module, or `module:object`."""
    module, _, name = named.partition(":")
    found = import_module(module)
    return cast(Reader, attrgetter(name)(found) if name else found)
