"""Job specs as files: JSON or YAML, and the line where each field stands."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from amaml_client.errors import SpecFileError

MAX_DEPTH = 64
MAX_FIELDS = 100_000


class SpecFile(NamedTuple):
    name: str
    spec: dict[str, Any]
    lines: dict[str, int]
    """JSON Pointer → line, counted from 1. Empty where a JSON file's lines couldn't be told."""

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
    walk = _Walk(name)
    if is_json:
        spec = _json(name, text)
        try:
            # JSON is as good as YAML, but for tabs; what still doesn't fit has no lines, and loses nothing else.
            walk.document(text.replace("\t", " "))
        except SpecFileError:
            walk.lines.clear()
    else:
        spec = walk.document(text)
    if not isinstance(spec, dict):
        raise SpecFileError(f"{name} must hold one mapping of fields, such as `family: {{kind: sinusoid}}`")
    return SpecFile(name, spec, walk.lines)


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
    number = math.nan if text.lstrip("+-").lower() in (".inf", ".nan") else float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} isn't a number that JSON has: give a finite one")
    return number


class _Loader(yaml.SafeLoader):
    """Scalars by YAML 1.2's core schema instead of 1.1's."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML reads it from the class


for _tag, _pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), None)


class _Walk:
    """Turns a document's nodes into data and notes where each field stands."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[str, int] = {}

    def document(self, text: str) -> Any:
        try:
            node = yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{self.name}:{mark.line + 1}" if mark else self.name
            raise SpecFileError(f"{where}: no YAML: {error.problem or error.context}") from error
        except (yaml.YAMLError, RecursionError) as error:
            raise SpecFileError(f"{self.name}: no YAML: {error}") from error
        return None if node is None else self._data(node, "", 0)

    def _data(self, node: yaml.Node, pointer: str, depth: int) -> Any:
        self.lines.setdefault(pointer, node.start_mark.line + 1)
        if depth > MAX_DEPTH or len(self.lines) > MAX_FIELDS:
            raise self._error(node, f"more than {MAX_DEPTH} levels or {MAX_FIELDS} fields (does an alias hold itself?)")
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, pointer, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self._data(item, f"{pointer}/{index}", depth + 1) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise self._error(node, f"the tag {node.tag} isn't plain data: leave it out")

    def _mapping(self, node: yaml.MappingNode, pointer: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "a field's name must be a word")
            if key.value in found:
                raise self._error(key, f"{key.value!r} stands twice in one mapping: keep one")
            inner = f"{pointer}/{key.value.replace('~', '~0').replace('/', '~1')}"
            self.lines[inner] = key.start_mark.line + 1
            found[key.value] = self._data(value, inner, depth + 1)
        return found

    def _scalar(self, node: yaml.ScalarNode) -> str | int | float | bool | None:
        text: str = node.value
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind == "str":
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind not in ("int", "float"):
            raise self._error(node, f"the tag {node.tag} isn't plain data: leave it out")
        try:
            return int(text) if kind == "int" else _finite(text)
        except ValueError as error:
            raise self._error(node, str(error)) from error

    def _error(self, node: yaml.Node, what: str) -> SpecFileError:
        return SpecFileError(f"{self.name}:{node.start_mark.line + 1}: {what}")
