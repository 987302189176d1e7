"""Job specs as files: JSON or YAML, and the line where each field stands."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, RoundTripConstructor, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.resolver import BaseResolver

from amaml_client.errors import SpecFileError

MAX_DEPTH = 64
MAX_FIELDS = 100_000


class SpecFile(NamedTuple):
    name: str
    spec: dict[str, Any]
    lines: dict[str, int]
    """JSON Pointer → line, counted from 1. Empty where a JSON file's lines are unknown."""

    def line(self, pointer: str) -> int | None:
        """Where the field stands; for one that isn't there, where the nearest field around it does."""
        pointer = pointer.lstrip("#").rstrip("/")
        while pointer and pointer not in self.lines:
            pointer = pointer.rpartition("/")[0]
        return self.lines.get(pointer)


def read_spec(path: str | Path) -> SpecFile:
    """Reads a .json file as JSON, any other as YAML; `-` is standard input (JSON if it starts with a brace).

    YAML follows version 1.2's core schema, so `1e-3` is a number and `on` a word; tags, repeated keys, NaN and
    infinities are refused. Raises SpecFileError.
    """
    name = str(path)
    try:
        text = sys.stdin.read() if name == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecFileError(f"{name} can't be read: {error}") from error
    is_json = text.lstrip().startswith("{") if name == "-" else Path(name).suffix.lower() == ".json"
    lines: dict[str, int] = {}
    if is_json:
        spec = _json(name, text)
        try:
            # JSON is YAML too, but for tabs; a file that YAML refuses nevertheless has no lines, and loses nothing else.
            _yaml(name, text.replace("\t", " "), lines)
        except SpecFileError:
            lines.clear()
    else:
        spec = _yaml(name, text, lines)
    if not isinstance(spec, dict):
        raise SpecFileError(f"{name} must hold one mapping of fields, such as `family: {{kind: sinusoid}}`")
    return SpecFile(name, spec, lines)


def _json(name: str, text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"{key!r} stands twice in one object: keep one")
        return dict(pairs)

    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise SpecFileError(f"{name}:{error.lineno}: no JSON: {error.msg} (column {error.colno})") from error
    except ValueError as error:
        raise SpecFileError(f"{name}: {error}") from error
    except RecursionError as error:
        raise SpecFileError(f"{name}: nested more than {MAX_DEPTH} deep") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(_NOT_FINITE.format(text))
    return number


_NOT_FINITE = "{} isn't a number that JSON has: give a finite one"


class _CoreSchema(BaseResolver):
    """Which plain scalars aren't text: those of YAML 1.2's core schema, numbers in decimal; no dates, no `1_000`."""

    processing_version = (1, 2)

    def __init__(self, version: object, loader: YAML) -> None:
        super().__init__(loader)


_TAG = "tag:yaml.org,2002:"
for _kind, _first, _pattern in (
    ("null", ["", *"~nN"], r"~|null|Null|NULL|"),
    ("bool", [*"tTfF"], r"true|True|TRUE|false|False|FALSE"),
    ("int", [*"-+0123456789"], r"[-+]?(0|[1-9][0-9]*)"),
    ("float", [*"-+.0123456789"], r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
):  # fmt: skip
    _CoreSchema.add_implicit_resolver_base(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), _first)


class _PlainData(RoundTripConstructor):
    """Mappings and sequences that know their lines; scalars of Python's own types; nothing else."""

    construct_scalar = SafeConstructor.construct_scalar

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        if node in self.recursive_objects and node not in self.constructed_objects:
            raise ConstructorError(None, None, "this holds itself by an alias: there is no end to it", node.start_mark)
        try:
            value = super().construct_object(node, deep)
        except (ValueError, KeyError) as error:
            raise ConstructorError(None, None, f"no value of {node.tag}: {error}", node.start_mark) from error
        if isinstance(value, float) and not math.isfinite(value):
            raise ConstructorError(None, None, _NOT_FINITE.format(node.value), node.start_mark)
        return value

    def construct_yaml_map(self, node: MappingNode) -> Iterator[CommentedMap]:
        """Names are text, as in JSON, even where they look like numbers."""
        for position, (key, value) in enumerate(node.value if isinstance(node, MappingNode) else ()):
            if not isinstance(key, ScalarNode):
                raise ConstructorError(None, None, "a field's name must be a word", key.start_mark)
            name = ScalarNode(BaseResolver.DEFAULT_SCALAR_TAG, key.value, key.start_mark, key.end_mark)
            node.value[position] = name, value
        return super().construct_yaml_map(node)

    def construct_undefined(self, node: Node) -> None:
        raise ConstructorError(None, None, f"the tag {node.tag} isn't plain data: leave it out", node.start_mark)


_PlainData.yaml_constructors = {
    _TAG + "map": _PlainData.construct_yaml_map,
    _TAG + "seq": _PlainData.construct_yaml_seq,
    _TAG + "null": SafeConstructor.construct_yaml_null,
    _TAG + "bool": SafeConstructor.construct_yaml_bool,
    _TAG + "int": SafeConstructor.construct_yaml_int,
    _TAG + "float": SafeConstructor.construct_yaml_float,
    _TAG + "str": SafeConstructor.construct_yaml_str,
    None: _PlainData.construct_undefined,
}


def _yaml(name: str, text: str, lines: dict[str, int]) -> Any:
    """The document as plain data; notes in `lines` where each field stands."""
    yaml = YAML(typ="safe", pure=True)  # a round trip's scanner marks folded lines within the text
    yaml.Resolver, yaml.Constructor = _CoreSchema, _PlainData
    yaml.composer.warn_double_anchors = False
    try:
        document = yaml.load(text)
    except (ConstructorError, DuplicateKeyError) as error:
        raise SpecFileError(f"{name}:{_line(error)}: {error.problem}") from error
    except MarkedYAMLError as error:
        raise SpecFileError(f"{name}:{_line(error)}: no YAML: {error.problem or error.context}") from error
    except (YAMLError, RecursionError) as error:
        raise SpecFileError(f"{name}: no YAML: {error}") from error

    def plain(value: Any, pointer: str, line: int, depth: int) -> Any:
        lines[pointer] = line + 1
        if depth > MAX_DEPTH or len(lines) > MAX_FIELDS:
            raise SpecFileError(
                f"{name}:{line + 1}: more than {MAX_DEPTH} levels or {MAX_FIELDS} fields (does an alias hold itself?)"
            )
        if isinstance(value, CommentedMap):
            return {
                key: plain(inner, f"{pointer}/{_escaped(key)}", value.lc.key(key)[0], depth + 1)
                for key, inner in value.items()
            }
        if isinstance(value, CommentedSeq):
            return [plain(inner, f"{pointer}/{i}", value.lc.item(i)[0], depth + 1) for i, inner in enumerate(value)]
        return value

    return plain(document, "", document.lc.line if isinstance(document, CommentedMap) else 0, 0)


def _line(error: MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else 1


def _escaped(key: str) -> str:
    """As a part of a JSON Pointer."""
    return key.replace("~", "~0").replace("/", "~1")
