"""Ratings files as published: the formats, their counts, and what is wrong with wrong ones, by line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amaml.families.ratings.file import MAX_LINE_BYTES, Rating, read, summarize
from amaml.families.ratings.reader import FORMATS
from amaml.families.upload import BadLine

ROW = ["3"] + ["99"] * 100
ROW[1], ROW[2], ROW[100] = "-7.82", "8.79", "10"
JESTER = ",".join(ROW)

FILES = {
    "movielens-100k": "196\t242\t3\t881250949\n186\t302\t3\t891717742\n196\t377\t1\t878887116\n",
    "movielens-1m": "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n",
    "recbole": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "196\t242\t3\t881250949\n186\t302\t3\t1\n196\t3\t1\t2\n",
    "jester-1": f"{JESTER}\n" + ",".join(["0"] + ["99"] * 100) + "\n",
    "csv": "user,item,rating\n1,10,4.0\n1,11,2.5\n2,10,-1e0\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_told_from_its_first_line(name: str, tmp_path: Path) -> None:
    summary = summarize([FILES[name].encode()])
    assert summary == (name, 3, 1 if name == "jester-1" else 2, [])
    path = tmp_path / "file"
    path.write_text(FILES[name])
    assert len(list(read(path))) == 3


def test_values_are_read_as_they_are(tmp_path: Path) -> None:
    def ratings(text: str) -> list[Rating]:
        path = tmp_path / "file"
        path.write_text(text, encoding="utf-8")
        return list(read(path))

    assert ratings(FILES["movielens-1m"])[0] == Rating("1", "1193", 5.0)
    assert ratings(FILES["recbole"])[1] == Rating("186", "302", 3.0)
    assert ratings(FILES["jester-1"]) == [Rating("1", "1", -7.82), Rating("1", "2", 8.79), Rating("1", "100", 10.0)]
    # MovieLens' newer files: other names, other columns; Windows' line ends and byte order mark; quotes; no last newline.
    assert ratings("userId,movieId,rating,timestamp\n1,2,3.5,4\n") == [Rating("1", "2", 3.5)]
    assert ratings('﻿Item,Rating,User\r\n"a,b",1,ü\r\n\r\nc,2,v') == [Rating("ü", "a,b", 1.0), Rating("v", "c", 2.0)]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "empty"),
        ("\n\n", 1, "empty"),
        ("hello\n", 1, "starts no ratings file"),
        ("a,b\n1,2\n", 1, "starts no ratings file"),
        ("a,b,c\n1,2,3\n", 1, "user column"),
        ("user,user,item,rating\n1,2,3,4\n", 1, "user column"),
        ("user_id:token\tx:token\n1\t2\n", 1, "item column"),
        ("user,item,rating\n", 1, "no rating"),
        ("user,item,rating\n1,2\n", 2, "2 fields where the header has 3"),
        ("user,item,rating\n1,2,3\n\n1,2,much\n", 4, "'much' is not a finite number"),
        ("user,item,rating\n1,2,nan\n", 2, "'nan'"),
        ("user,item,rating\n1,2,1e999\n", 2, "'1e999'"),
        ("user,item,rating\n1,2,1_0\n", 2, "'1_0'"),
        ("user,item,rating\n ,2,3\n", 2, "user is empty"),
        ("1\t2\t3\t4\n1\t2\n", 2, "2 fields"),
        ("1::2::3::4\n1::2::3\n", 2, "3 fields"),
        ("1::2::x::4\n", 1, "starts no ratings file"),
        ("1::2::3::4\n1::2::x::4\n", 2, "'x'"),
        (JESTER.replace("3,", "4,", 1) + "\n", 1, "says 4 jokes are rated, but 3 are"),
        (JESTER.replace("8.79", "11") + "\n", 1, "joke 2 is rated 11"),
        (JESTER + "\n1,2\n", 2, "2 fields"),
    ],
)
def test_a_wrong_line_is_named(text: str, line: int, words: str, tmp_path: Path) -> None:
    summary = summarize([text.encode()])
    assert (summary.errors[0].line, words in summary.errors[0].detail) == (line, True), summary.errors
    path = tmp_path / "file"
    path.write_text(text)
    if "no rating" not in words:
        with pytest.raises(BadLine, match=f"^line {line}: "):
            list(read(path))


def test_bytes_that_are_no_text_are_named() -> None:
    assert summarize([b"user,item,rating\n1,\xff,3\n"]).errors[0].line == 2
    assert "UTF-8" in summarize([b"\xff"]).errors[0].detail


def test_only_the_first_errors_are_collected() -> None:
    summary = summarize([b"user,item,rating\n" + b"1\n" * 1_000])
    assert [error.line for error in summary.errors] == list(range(2, 22))


@pytest.mark.parametrize("start", [b"", b"user,item,rating\n1,2,3\n"])
def test_an_endless_line_is_given_up_soon(start: bytes) -> None:
    taken = 0

    def chunks() -> object:
        nonlocal taken
        yield start
        for _ in range(1_000):
            taken += 1
            yield b"1," * 8192

    summary = summarize(chunks())  # type: ignore[arg-type]
    assert f"{MAX_LINE_BYTES} bytes" in summary.errors[-1].detail
    assert taken < 10


@given(st.binary(max_size=300), st.integers(1, 7))
def test_any_bytes_give_a_summary(data: bytes, size: int) -> None:
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert summarize(pieces) == summarize([data]) or summarize([data]).errors


@given(st.integers(1, 40))
def test_where_chunks_are_cut_changes_nothing(size: int) -> None:
    for text in FILES.values():
        data = text.encode()
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        assert summarize(pieces) == summarize([data])
