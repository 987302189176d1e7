"""The check of one data set: a process of its own, which reads an untrusted file and reports what is in it.

    python -m worker.datasets.validator FORMAT FAMILIES PATH MEMORY_BYTES CPU_SECONDS

It bounds its own memory and time before it opens the file, has neither the database's address nor any other secret in its
environment, and prints a DatasetReport as JSON. The report is one JSON object and printed last, so whoever can parse what was
printed has all of it. What becomes of a check whose process printed no report: see worker.datasets.checks.
"""

from __future__ import annotations

import codecs
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

from amaml import ratings_file
from amaml.dataset_report import MAX_ERRORS, ColumnReport, DatasetReport, ImagesReport, LineError
from amaml.ratings_file import BadLine
from worker.processes.protocol import EXIT_OUT_OF_MEMORY

MAX_LINE_BYTES: Final = 4 << 20
MAX_OUTPUT_BYTES: Final = 4 << 20
_READ_BYTES: Final = 1 << 20


def main() -> NoReturn:
    format_, families, path, memory, seconds = sys.argv[1:]
    _bound(int(memory), int(seconds))
    _die_with_parent()
    try:
        report = inspect(Path(path), format_, families.split(","))
    except MemoryError:
        os._exit(EXIT_OUT_OF_MEMORY)
    sys.stdout.write(report.model_dump_json())
    sys.stdout.flush()
    # Without a teardown: threads of native libraries that still run crash the process at its end now and then.
    os._exit(0)


def inspect(path: Path, format_: str, families: list[str]) -> DatasetReport:
    """Reads the whole file once or twice, a piece at a time."""
    if format_ == "safetensors":
        return _images(path)
    if format_ == "parquet":
        return _table(path)
    errors = list(_text_errors(path))
    if errors:
        return DatasetReport(rows=0, errors=errors)
    if format_ == "csv" and "ratings" not in families:
        return _table(path)
    report = _ratings(path, format_)
    return report if format_ != "csv" or report.errors else report.model_copy(update={"columns": _table(path).columns})


def _ratings(path: Path, format_: str) -> DatasetReport:
    with path.open("rb") as file:
        summary = ratings_file.summarize(iter(lambda: file.read(_READ_BYTES), b""), format_, MAX_ERRORS)
    return DatasetReport(rows=summary.rows, tasks=summary.tasks, errors=_told(summary.errors))


def _table(path: Path) -> DatasetReport:
    from amaml import table_file  # noqa: PLC0415 - its native libraries aren't needed for ratings, and count as memory

    found = table_file.inspect(path, max_errors=MAX_ERRORS)
    columns = [ColumnReport(name=one.name, type=one.type, missing=one.missing) for one in found.columns]
    return DatasetReport(rows=found.rows, columns=columns if not found.errors else [], errors=_told(found.errors))


def _images(path: Path) -> DatasetReport:
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - see _table

    from amaml import images_file  # noqa: PLC0415

    try:
        # The format's own reader refuses overlaps, holes and lengths that don't add up.
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except SafetensorError as problem:
        return DatasetReport(rows=0, errors=_told([BadLine(0, f"this is no sound safetensors file: {problem}")]))
    found = images_file.inspect(path, max_errors=MAX_ERRORS)
    if found.errors:
        return DatasetReport(rows=0, errors=_told(found.errors))
    channels, height, width = found.shape
    counts = found.classes.values()
    return DatasetReport(
        rows=found.images,
        tasks=len(counts),
        images=ImagesReport(
            channels=channels, height=height, width=width, dtype=found.dtype,
            classes=len(counts), smallest_class=min(counts), largest_class=max(counts),
        ),
    )  # fmt: skip


def _text_errors(path: Path) -> Iterator[LineError]:
    """The first thing that makes the file no text in lines: NUL, what isn't UTF-8, a line without end."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, length = 1, 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            nul = piece.find(b"\x00")
            if nul >= 0:
                yield LineError(
                    line=line + piece.count(b"\n", 0, nul), detail="there is a NUL byte: save it as plain text"
                )
                return
            try:
                decoder.decode(piece)
            except UnicodeDecodeError as problem:
                # The decoder's place counts what was left over from the piece before.
                at = max(0, problem.start - (len(problem.object) - len(piece)))
                yield LineError(
                    line=line + piece.count(b"\n", 0, at),
                    detail="there are bytes that aren't UTF-8: save the file as UTF-8",
                )
                return
            line += piece.count(b"\n")
            last = piece.rfind(b"\n")
            length = length + len(piece) if last < 0 else len(piece) - last - 1
            if length > MAX_LINE_BYTES:
                yield LineError(line=line, detail=f"the line is longer than {MAX_LINE_BYTES} bytes: write a row a line")
                return


def _told(errors: list[BadLine]) -> list[LineError]:
    return [LineError(line=error.line, detail=error.detail[:1000]) for error in errors[:MAX_ERRORS]]


def _bound(memory: int, seconds: int) -> None:
    for what, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, MAX_OUTPUT_BYTES),
        (resource.RLIMIT_NOFILE, 64),
    ):
        hard = resource.getrlimit(what)[1]
        bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        # Out of CPU time, Linux sends SIGXCPU at the lower bound, which tells why; at the upper one SIGKILL, as anybody may.
        above = 1 if what == resource.RLIMIT_CPU and bound != hard else 0
        resource.setrlimit(what, (bound, bound + above))


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    main()
