"""Reading tables: columns and their types, missing values, what is wrong and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from amaml.families.table.file import MAX_COLUMNS, inspect, read
from amaml.families.upload import BadLine


def test_a_csv_s_columns_have_the_narrowest_type_that_holds_for_all_values(tmp_path: Path) -> None:
    path = _csv(tmp_path, 'task,x,y,c,b,e\n007,1,2.5,red,true,\n008, 2 ,nan,blue,false,\n008,3,,"a\nb",true,\n')
    report = inspect(path)
    assert (report.format, report.rows, report.errors) == ("csv", 3, [])
    types = {column.name: (column.type, column.missing) for column in report.columns}
    assert types == {
        "task": ("integer", 0),
        "x": ("integer", 0),
        "y": ("number", 2),
        "c": ("text", 0),
        "b": ("boolean", 0),
        "e": ("empty", 3),
    }


def test_rows_come_as_numbers_and_as_they_are_written(tmp_path: Path) -> None:
    path = _csv(tmp_path, "task,x,y,b\n007,1,2.5,true\n008, 2 ,nan,false\n,3,inf,true\n")
    (block,) = read(path, ["x", "y", "b"], ["task"])
    np.testing.assert_array_equal(block.numbers, [[1, 2.5, 1], [2, np.nan, 0], [3, np.nan, 1]])
    assert list(block.texts[0]) == ["007", "008", None]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_header_tells_the_separator(tmp_path: Path, separator: str) -> None:
    path = _csv(tmp_path, f"a{separator}b\n1{separator}x\n")
    assert [(column.name, column.type) for column in inspect(path).columns] == [("a", "integer"), ("b", "text")]


def test_a_number_late_in_the_file_changes_the_type_of_its_column(tmp_path: Path) -> None:
    lines = ["a,b"] + [f"{row},padding padding padding padding" for row in range(150_000)] + ["1.5,x", "word,x"]
    report = inspect(_csv(tmp_path, "\n".join(lines[:-1]) + "\n"))
    assert (report.rows, report.columns[0].type) == (150_001, "number")
    report = inspect(_csv(tmp_path, "\n".join(lines) + "\n"))
    assert (report.rows, report.columns[0].type) == (150_002, "text")


def test_a_parquet_file_says_its_types_itself(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    columns = {
        "t": ["a", "b", None],
        "x": [1.0, float("inf"), None],
        "i": [1, 2, 3],
        "d": pa.array(["u", "u", "v"]).dictionary_encode(),
        "l": [[1], [2], [3]],
    }
    pa.parquet.write_table(pa.table(columns), path)
    report = inspect(path)
    assert (report.format, report.rows) == ("parquet", 3)
    types = {column.name: (column.type, column.missing) for column in report.columns}
    assert types == {"t": ("text", 1), "x": ("number", 2), "i": ("integer", 0), "d": ("text", 0), "l": ("other", 0)}
    (block,) = read(path, ["x", "i"], ["d", "t"])
    np.testing.assert_array_equal(block.numbers, [[1, 1], [np.nan, 2], [np.nan, 3]])
    assert [list(text) for text in block.texts] == [["u", "u", "v"], ["a", "b", None]]


def test_wrong_rows_are_told_by_line(tmp_path: Path) -> None:
    path = _csv(tmp_path, "a,b\n1,2\n1,2,3\n1\n5,6\n")
    assert [(error.line, error.detail) for error in inspect(path).errors] == [
        (3, "3 fields where the header has 2"),
        (4, "1 fields where the header has 2"),
    ]
    assert len(inspect(path, max_errors=1).errors) == 1
    with pytest.raises(BadLine, match="line 3: 3 fields"):
        list(read(path, ["a"], []))


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"", "Empty CSV"),
        (b"a,b\n", "no rows"),
        (b"a,a\n1,2\n", "column a is there more than once"),
        (b"a,\n1,2\n", "column name '' is empty"),
        (b"a,b\n\xff\xfe,2\n", "invalid UTF8"),
        (b"\xff,b\n1,2\n", "byte 1 is not UTF-8"),
        (b"PAR1 and then nothing", "not a parquet file"),
        (b"x," * MAX_COLUMNS + b"x\n", f"at most {MAX_COLUMNS}"),
    ],
)
def test_what_is_no_table_is_told_in_a_sentence(tmp_path: Path, content: bytes, detail: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    (error,) = inspect(path).errors
    assert detail in error.detail


def test_columns_that_cannot_be_read_as_asked_are_named(tmp_path: Path) -> None:
    path = _csv(tmp_path, "a,b\n1,red\n")
    with pytest.raises(BadLine, match="no column 'c': the table has a, b"):
        list(read(path, ["c"], []))
    with pytest.raises(BadLine, match="column 'b' holds values that aren't numbers"):
        list(read(path, ["b"], []))


def _csv(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path
