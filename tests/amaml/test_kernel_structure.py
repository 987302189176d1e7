"""The structure that Python passes to the kernel is declared in C++ and by ctypes; both must be the same to the byte."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from amaml.kernel import cache, library
from amaml.kernel.problem import KernelProblem

HEADER = next(source for source in cache.SOURCES if source.name == "problem.h")
KINDS = {ctypes.c_int64: "i", ctypes.c_double: "n", ctypes.c_void_p: "p"}
"""The letters of problem.h for an integer, a floating-point number and a pointer."""


class Field(NamedTuple):
    name: str
    offset: int
    size: int
    kind: str


class CField(ctypes.Structure):
    """`Field` of problem.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("offset", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("kind", ctypes.c_int64),
    )


def compiled(kernel: library.Kernel) -> list[Field]:
    """The fields as the compiler laid them out."""
    function, count = kernel.library.amaml_problem_fields, ctypes.c_int64()
    function.argtypes, function.restype = [ctypes.POINTER(ctypes.c_int64)], ctypes.POINTER(CField)
    found = function(ctypes.byref(count))
    return [Field(one.name.decode(), one.offset, one.bytes, chr(one.kind)) for one in found[: count.value]]


def mirrored() -> list[Field]:
    """The fields as Python declares them."""
    places = [(name, getattr(KernelProblem, name), kind) for name, kind in KernelProblem._fields_]
    return [Field(name, place.offset, place.size, KINDS[kind]) for name, place, kind in places]


def test_the_structure_is_the_same_on_both_sides(kernel: library.Kernel) -> None:
    assert mirrored() == compiled(kernel), "change problem.py and problem.h in the same way"
    kernel.library.amaml_problem_bytes.restype = ctypes.c_int64
    assert kernel.library.amaml_problem_bytes() == ctypes.sizeof(KernelProblem)


def test_every_byte_of_the_structure_belongs_to_a_compared_field(kernel: library.Kernel) -> None:
    end = 0
    for field in compiled(kernel):
        assert field.offset == end, field
        end += field.size
    assert end == kernel.library.amaml_problem_bytes()


def compiler_complaint(compiler: str, header: str, folder: Path) -> str:
    """The compiler's messages for a changed problem.h; it produces no code, so this takes a fraction of a second."""
    (folder / "problem.h").write_text(header)
    (folder / "all.cpp").write_text('#include "problem.h"\n')
    done = subprocess.run(
        [compiler, *cache.FLAGS, "-fsyntax-only", str(folder / "all.cpp")], capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == ("error" not in done.stderr), done.stderr
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("double *failed_at, *value, *bound;", "double *failed_at, *value, *bound, *added;"),
        ("int64_t backward;", "int32_t added; int64_t backward;"),
        ("int64_t layers, activation,", "int64_t activation, layers,"),
        ("FIELD(rtol) FIELD(atol)", "FIELD(rtol)"),
        ("FIELD(rtol) FIELD(atol)", "FIELD(atol) FIELD(rtol)"),
    ],
    ids=["added at the end", "added in the middle", "two changed places", "not in the list", "listed in another order"],
)
def test_a_field_that_the_list_leaves_out_does_not_compile(
    compiler: str, tmp_path: Path, before: str, after: str
) -> None:
    header = HEADER.read_text()
    assert header.count(before) == 1
    assert compiler_complaint(compiler, header, tmp_path) == ""
    complaint = compiler_complaint(compiler, header.replace(before, after), tmp_path)
    assert "PROBLEM_FIELDS must name every field of Problem, in its order" in complaint
