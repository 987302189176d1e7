"""Cells, numbers and sizes in few words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def axis_name(pointer: str) -> str:
    """/method/kind → method.kind."""
    return pointer[1:].replace("/", ".").replace("~1", "/").replace("~0", "~")


def shown(value: Any) -> str:
    """A value of an axis; a section is told by its kind and what it says beside."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("kind"), str):
        rest = ", ".join(f"{name} {shown(item)}" for name, item in value.items() if name != "kind")
        return f"{value['kind']} ({rest})" if rest else value["kind"]
    return json.dumps(value, ensure_ascii=False)


def label(coordinates: Mapping[str, Any]) -> str:
    """All coordinates of a cell: words alone where they suffice, numbers with their field's name."""
    return ", ".join(
        shown(value) if isinstance(value, str | dict) else f"{axis_name(pointer).rpartition('.')[2]} {shown(value)}"
        for pointer, value in coordinates.items()
    )


def number(value: float | None) -> str:
    """Four digits; – for none."""
    return "–" if value is None else f"{value:.4g}"


def plus_minus(mean: float | None, error: float | None) -> str:
    """The mean with as many decimals as its standard error has two digits of."""
    if mean is None:
        return "–"
    if error is None or error <= 0:
        return number(mean)
    decimals = min(max(1 - math.floor(math.log10(error)), 0), 8)
    return f"{mean:.{decimals}f} ± {error:.{decimals}f}"


def probability(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def mebibytes(size: float | None) -> str:
    return "–" if size is None else f"{size / 2**20:.1f}"


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{1_000 * seconds:.3g}" if seconds < 1 else f"{1_000 * seconds:.0f}"
