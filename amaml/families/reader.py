"""The interface by which a family reads uploaded data sets: which files it accepts, and what is wrong with one. Imports no
torch."""

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
    """A module or an object with these members. The API imports it, so `validate` must import heavy libraries itself. A reader
    whose format resembles many others, as tables in CSV do, also sets `TAKES_THE_REST = True`, and is asked last."""

    FORMATS: Mapping[str, str]
    """The formats that it reads: their names, and a phrase that says how such a file begins."""

    def accepts(self, head: Head) -> str | None:
        """The name of the file's format, detected from its head; None if it isn't one of FORMATS. Nothing else detects the
        format. Raises BadLine for a file that it would read if it weren't for a fault, which is reported if no family accepts
        the file."""

    def validate(self, path: Path, format_: str) -> DatasetReport:
        """Reads the whole file once or twice, a piece at a time, and reports its contents and errors. It runs in a separate
        process with bounds on memory and time, and without secrets."""


READER_PARTS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "FORMATS": lambda formats: isinstance(formats, Mapping) and all(isinstance(name, str) for name in formats),
    "accepts": callable,
    "validate": callable,
}
"""The members of a reader, each with the check that it must pass."""


@cache
def reader_named(named: str) -> Reader:
    """The reader that a FamilySpec names in `reader`: a module, or `module:object`."""
    module, _, name = named.partition(":")
    found = import_module(module)
    return cast(Reader, attrgetter(name)(found) if name else found)
