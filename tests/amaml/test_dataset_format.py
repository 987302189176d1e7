"""What an uploaded file is, told by the readers of the families from its head."""

from __future__ import annotations

import pytest

from amaml.dataset_format import Detected, detect, formats
from amaml.families.upload import BadLine
from tests.amaml.families.test_ratings_file import FILES

ITEMS = FILES["recbole"].encode()


@pytest.mark.parametrize(
    ("head", "found"),
    [
        *((text.encode(), (name, ("ratings", "table") if name == "csv" else ("ratings",))) for name, text in FILES.items()),
        (b"a;b\n1;2\n", ("csv", ("table",))),
        (b"user\titem\trating\n1\t2\t3\n", ("csv", ("table",))),
        (b"\xef\xbb\xbf\n\na,b\n", ("csv", ("table",))),
        (b"PAR1rest", ("parquet", ("table",))),
        (b"\x10\0\0\0\0\0\0\0{}", ("safetensors", ("images",))),
    ],
)  # fmt: skip
def test_a_file_has_one_format_and_the_families_that_read_it(head: bytes, found: tuple[str, tuple[str, ...]]) -> None:
    assert detect(head, whole=True) == Detected(*found)
    assert detect(head, whole=True, wanted=found[0]) == Detected(*found)
    assert found[0] in formats()


def test_a_format_that_a_reader_accepts_may_be_asked_for() -> None:
    assert detect(ITEMS, whole=True).format == "recbole"
    assert detect(ITEMS, whole=True, wanted="csv") == Detected("csv", ("table",))
    with pytest.raises(BadLine, match="this is recbole, not parquet: send format=recbole or format=auto"):
        detect(ITEMS, whole=True, wanted="parquet")


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (b" \n", "the file is empty"),
        (b"PK\x03\x04", "zip archive"),
        (b"\x80\x04.", "Python pickle"),
        (b"\0" * 257 + b"ustar", "tar archive"),
        (b"a,b\n1,\0\n", "line 2: there is a NUL byte"),
        (b"a,b\n1,\xff\n", "line 2: byte 7 of the file is not UTF-8"),
        (b"1,2\n", "line 1: the first line is all numbers: put a header"),
        (b"\n\nhello\n", "line 3: 'hello' starts no file that is read here: expected user, item, rating with tabs between"),
        (b"\xff\xff\xff\x7f\0\0\0\0{}", "safetensors header claims 2147483647 bytes"),
    ],
)  # fmt: skip
def test_others_are_refused_with_a_sentence(head: bytes, sentence: str) -> None:
    with pytest.raises(BadLine, match=sentence):
        detect(head, whole=True)


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(BadLine, match="the line is longer than"):
        detect(b"a," * 1000, whole=False)
