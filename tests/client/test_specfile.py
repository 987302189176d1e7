"""Spec files: values as the writer means them, lines where the fields stand, and refusals that name the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from amaml_client import SpecFile, SpecFileError, read_spec


def read(tmp_path: Path, text: str, name: str = "spec.yaml") -> SpecFile:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_spec(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("7", 7),
        ("-0", 0),
        ("true", True),
        ("null", None),
        ("", None),
        ("on", "on"),  # a truth value in YAML 1.1
        ("no", "no"),
        ("2026-01-02", "2026-01-02"),  # a date in YAML 1.1
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("'1e-3'", "1e-3"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("!!str 5", "5"),
        (">\n  folded\n  text", "folded text\n"),
        ("[1, 2.5, x]", [1, 2.5, "x"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_yaml_values(tmp_path: Path, text: str, value: Any) -> None:
    found = read(tmp_path, f"field: {text}\n").spec["field"]
    assert found == value
    assert type(found) is type(value)


def test_names_are_text_as_they_are_written(tmp_path: Path) -> None:
    assert read(tmp_path, "1e-3: a\ntrue: b\n<<: {c: d}\n").spec == {"1e-3": "a", "true": "b", "<<": {"c": "d"}}


YAML = """\
# a comment
family:
  kind: cosmixture
  dim: 2

meta:
  optimizer: {kind: adam,
              lr: 1e-3}
trajectory:
  horizons:
    - at: 1.0
    - at: 2.0
      weight: -1
tags: {a/b: x, "m~n": y}
"""


@pytest.mark.parametrize(
    ("pointer", "line"),
    [
        ("/family", 2),
        ("/family/dim", 4),
        ("/meta/optimizer/lr", 8),
        ("/trajectory/horizons/1", 12),
        ("/trajectory/horizons/1/weight", 13),
        ("/tags/a~1b", 14),
        ("/tags/m~0n", 14),
        ("/family/shots", 2),  # not there: the mapping around it
        ("/family/kind/deeper/still", 3),
        ("/solver/rtol", 2),  # not even that: the document
        ("", 2),
        ("#/family/dim", 4),
    ],
)
def test_lines_of_a_yaml_file(tmp_path: Path, pointer: str, line: int) -> None:
    assert read(tmp_path, YAML).line(pointer) == line


def test_lines_of_a_json_file_indented_by_tabs(tmp_path: Path) -> None:
    text = json.dumps({"name": "a\tb 😀", "family": {"kind": "sinusoid", "shots": 0}}, indent="\t")
    file = read(tmp_path, text, "spec.json")
    assert file.spec["name"] == "a\tb 😀"
    assert file.line("/family/shots") == 5


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("a: 1\nb: [1,\n", 3, "YAML"),
        ("a: 1\na: 2\n", 2, "duplicate key"),
        ("a: 1\nb: .inf\n", 2, "finite"),
        ("a: 1\nb: 1e999\n", 2, "finite"),
        ("a: !!python/object/apply:os.system [id]\n", 1, "tag"),
        ("a: !!binary aGk=\n", 1, "tag"),
        ("a: !!int abc\n", 1, "abc"),
        ("? [a, b]\n: 1\n", 1, "word"),
        ("a: !!str [1]\n", 1, "scalar"),
        ("a: !!map [1]\n", 1, "mapping"),
        ("a: 1\nb: &x [*x]\n", 2, "holds itself"),
        ("a: 1\nb: &x {c: *x}\n", 2, "holds itself"),
        ("a: " + "[" * 70 + "]" * 70, 1, "levels"),
        ("a: b\n---\nc: d\n", 2, "YAML"),
    ],
)
def test_refused_yaml_names_the_line(tmp_path: Path, text: str, line: int, word: str) -> None:
    with pytest.raises(SpecFileError, match=rf"spec\.yaml:{line}: .*{word}"):
        read(tmp_path, text)


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    levels = ["a0: &a0 [" + ", ".join("x" * 9) + "]"]
    levels += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 9)]
    with pytest.raises(SpecFileError, match="fields"):
        read(tmp_path, "\n".join(levels))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"a": NaN}', "finite"),
        ('{"a": 1e999}', "finite"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{\n "a": 1,\n}', r"spec\.json:3"),
        ("[1]", "mapping"),
        ("[" * 100_000, "nested"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
    ],
)
def test_refused_json(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(SpecFileError, match=word):
        read(tmp_path, text, "spec.json")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n"])
def test_a_spec_is_a_mapping(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecFileError, match="mapping"):
        read(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecFileError, match="can't be read"):
        read_spec(tmp_path / "none.yaml")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(SpecFileError, match="can't be read"):
        read_spec(tmp_path / "spec.yaml")


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("examples/*.*")), ids=lambda path: path.name)
def test_the_examples_are_readable(path: Path) -> None:
    if path.suffix in (".yaml", ".json"):
        assert "family" in read_spec(path).spec
