"""The places at which a process is killed: every failpoint that the code names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import worker


def places() -> list[str]:
    """The name of every failpoint in the code."""
    return [name for path in sorted(Path(worker.__file__).parent.rglob("*.py")) for name in _places_in(path)]


def _places_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
            argument = node.args[0]
            assert isinstance(argument, ast.Constant), f"{path}:{node.lineno}: a failpoint is named by a literal"
            yield str(argument.value)
