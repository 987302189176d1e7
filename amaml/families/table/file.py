"""Reads tables in CSV or Parquet: their columns with types, and their rows block by block. Imports no torch.

CSV is UTF-8 with a header; the separator is a comma, a semicolon or a tab, whichever the header has. A column's type is the
narrowest that fits all of its values. Empty fields, `NA`, `null` and the like count as missing, as do NaN and infinities.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from amaml.families.upload import BadLine

Format = Literal["csv", "parquet"]
Type = Literal["integer", "number", "boolean", "text", "empty", "other"]
"""The type of a column. An `empty` one has no value at all; a family can't use an `other` one (dates, lists, bytes)."""

MAX_COLUMNS: Final = 2_000
MAX_NAME: Final = 200
_BLOCK_BYTES: Final = 4 << 20
_BLOCK_ROWS: Final = 1 << 16
_CASTS: Final = {"integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
"""The types that a column of text may be converted to, the narrowest first."""


@dataclass(frozen=True)
class Column:
    name: str
    type: Type
    missing: int
    """The number of rows without a value."""


@dataclass(frozen=True)
class TableReport:
    """The content of a file; if there are `errors`, `columns` and `rows` are meaningless."""

    format: Format
    rows: int = 0
    columns: list[Column] = field(default_factory=list)
    errors: list[BadLine] = field(default_factory=list)
    """The first errors in the order of the file (line 0 is the file as a whole); empty for a valid one."""


@dataclass(frozen=True)
class Block:
    """A block of a table's rows, with the requested columns."""

    numbers: NDArray[np.float64]
    """The numeric columns [rows, columns]; NaN where a value is missing."""
    texts: list[NDArray[np.object_]]
    """The text columns, each [rows] of str, or None where a value is missing."""


def format_of(path: Path) -> Format:
    """The file's format: Parquet if its first four bytes are Parquet's, else CSV."""
    with path.open("rb") as file:
        return "parquet" if file.read(4) == b"PAR1" else "csv"


def inspect(path: Path, *, max_errors: int = 20) -> TableReport:
    """The report on the file's columns, rows and errors. Reads the file once, block by block.

    Raises MemoryError, and OSError where the machine can't read the file: neither is an error of the file.
    """
    kind = format_of(path)
    report = TableReport(kind)
    seen: dict[str, _Seen] = {}
    rows = 0
    try:
        source = _open(path, kind, report.errors, max_errors)
        trouble = _trouble_with_names(source.names)
        if trouble is not None:
            return TableReport(kind, errors=[BadLine(1, trouble)])
        seen = {name: _Seen(source.fixed.get(name)) for name in source.names}
        for batch in source.batches([name for name in source.names if source.fixed.get(name) != "other"]):
            rows += batch.num_rows
            for name, values in zip(batch.schema.names, batch.columns, strict=True):
                seen[name].add(values)
    except MemoryError:  # pyarrow's is also an ArrowException
        raise
    except OSError as problem:
        if problem.errno is not None:  # the machine's error; pyarrow's own, for a damaged file, has no errno
            raise
        report.errors.append(BadLine(0, _sentence(problem)))
    except (pa.ArrowException, UnicodeDecodeError) as problem:
        report.errors.append(BadLine(0, _sentence(problem)))
    if rows == 0 and not report.errors:
        report.errors.append(BadLine(0, "the table has no rows: it needs a header and a row a line"))
    return TableReport(kind, rows, [Column(name, one.type, one.missing) for name, one in seen.items()], report.errors)


def read(path: Path, numbers: Sequence[str], texts: Sequence[str]) -> Iterator[Block]:
    """Yields the rows of the named columns in the file's order. Raises BadLine for a file in which `inspect` finds errors, for a
    missing column, and for text in one of the columns `numbers`."""
    kind = format_of(path)
    errors: list[BadLine] = []
    try:
        source = _open(path, kind, errors, 1)
        absent = [name for name in (*numbers, *texts) if name not in source.names]
        if absent:
            raise BadLine(1, f"there is no column {absent[0]!r}: the table has {_shown(source.names)}")
        for batch in source.batches(list(dict.fromkeys((*numbers, *texts)))):
            if errors:
                raise errors[0]
            by_name = dict(zip(batch.schema.names, batch.columns, strict=True))
            columns = [_as_numbers(name, by_name[name]) for name in numbers]
            yield Block(
                np.stack(columns, axis=1) if columns else np.empty((batch.num_rows, 0)),
                [_as_texts(by_name[name]) for name in texts],
            )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        raise BadLine(0, _sentence(problem)) from problem
    if errors:
        raise errors[0]


# Both formats have the same interface: column names, the types known beforehand, and batches of some columns


class _Csv:
    def __init__(self, path: Path, errors: list[BadLine], max_errors: int) -> None:
        with path.open("rb") as file:
            header = file.readline(_BLOCK_BYTES)
        first = header.decode("utf-8-sig")
        separator = next((mark for mark in ("\t", ";") if mark in first and "," not in first), ",")

        def wrong_row(row: Any) -> str:
            if len(errors) < max_errors:
                detail = f"{row.actual_columns} fields where the header has {row.expected_columns}"
                errors.append(BadLine(row.number or 0, detail))
            return "skip"

        self._path = path
        self._parse = pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=wrong_row)
        self._reads = pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
        with self._reader([]) as reader:
            self.names: list[str] = list(reader.schema.names)
        errors.clear()  # the first block is read again with all of its rows
        self.fixed: dict[str, Type] = {}

    def _reader(self, names: Sequence[str]) -> Any:
        converts = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), include_columns=list(names), strings_can_be_null=True
        )
        return pa.csv.open_csv(self._path, self._reads, self._parse, converts)

    def batches(self, names: Sequence[str]) -> Iterator[Any]:
        with self._reader(names) as reader:
            yield from reader


class _Parquet:
    def __init__(self, path: Path) -> None:
        self._file = pa.parquet.ParquetFile(path, memory_map=True)
        schema = self._file.schema_arrow
        self.names: list[str] = list(schema.names)
        self.fixed: dict[str, Type] = {name: _type(schema.field(i).type) for i, name in enumerate(self.names)}

    def batches(self, names: Sequence[str]) -> Iterator[Any]:
        yield from self._file.iter_batches(_BLOCK_ROWS, columns=list(names), use_threads=False)


def _open(path: Path, kind: Format, errors: list[BadLine], max_errors: int) -> _Csv | _Parquet:
    return _Parquet(path) if kind == "parquet" else _Csv(path, errors, max_errors)


class _Seen:
    """The possible types and the number of missing values of a column, from the values so far."""

    def __init__(self, fixed: Type | None) -> None:
        self._fixed = fixed
        self._possible: list[Type] = [name for name in ("integer", "number", "boolean") if name in _CASTS]
        self._values = self.missing = 0

    @property
    def type(self) -> Type:
        if self._fixed is not None:
            return self._fixed
        return "empty" if self._values == 0 else next(iter(self._possible), "text")

    def add(self, values: Any) -> None:
        if self._fixed is None:
            values = pc.utf8_trim_whitespace(values)
            self._possible = [name for name in self._possible if _castable(values, _CASTS[name])]
            if self.type == "number":
                values = values.cast(pa.float64())
        without = values.null_count
        if pa.types.is_floating(values.type):
            without += int(pc.sum(pc.invert(pc.is_finite(values))).as_py() or 0)
        self.missing += without
        self._values += len(values) - values.null_count


def _castable(values: Any, to: Any) -> bool:
    try:
        values.cast(to)
    except pa.ArrowInvalid:
        return False
    return True


def _type(arrow: Any) -> Type:
    if pa.types.is_dictionary(arrow):
        return _type(arrow.value_type)
    if pa.types.is_boolean(arrow):
        return "boolean"
    if pa.types.is_integer(arrow):
        return "integer"
    if pa.types.is_floating(arrow) or pa.types.is_decimal(arrow):
        return "number"
    if pa.types.is_string(arrow) or pa.types.is_large_string(arrow):
        return "text"
    return "empty" if pa.types.is_null(arrow) else "other"


def _as_numbers(name: str, values: Any) -> NDArray[np.float64]:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = pc.utf8_trim_whitespace(values)
        if not _castable(values, pa.float64()) and _castable(values, pa.bool_()):
            values = values.cast(pa.bool_())
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    try:
        numbers = values.cast(pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as problem:
        raise BadLine(0, f"column {name!r} holds values that aren't numbers ({_sentence(problem)})") from problem
    found: NDArray[np.float64] = numbers.fill_null(math.nan).to_numpy(zero_copy_only=False).copy()
    found[~np.isfinite(found)] = math.nan
    return found


def _as_texts(values: Any) -> NDArray[np.object_]:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    text = pc.utf8_trim_whitespace(values.cast(pa.string()))
    found: NDArray[np.object_] = text.to_numpy(zero_copy_only=False)
    return found


def _trouble_with_names(names: Sequence[str]) -> str | None:
    """The error of a header; None for a valid one."""
    if len(names) > MAX_COLUMNS:
        return f"{len(names)} columns, at most {MAX_COLUMNS} are read: leave the others out"
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        return f"column {_shown(doubled)} is there more than once: rename one of them"
    for name in names:
        if not name.strip() or len(name) > MAX_NAME:
            return f"column name {name[:40]!r} is empty or longer than {MAX_NAME} characters: give it a short name"
    return None


def _shown(names: Sequence[str]) -> str:
    listed = ", ".join(names[:8])
    return listed if len(names) <= 8 else f"{listed}, … ({len(names)} columns)"


def _sentence(problem: Exception) -> str:
    """The error's message on one line."""
    if isinstance(problem, UnicodeDecodeError):
        return f"byte {problem.start + 1} is not UTF-8: save the file as UTF-8"
    return " ".join(str(problem).split())[:300] or type(problem).__name__
