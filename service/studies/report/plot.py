"""Plots of a report: tables of points, which the dashboard's own chart draws where scripts run.

The chart's modules are put into the page one after another as one script, so the page still stands alone.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Final, NamedTuple

from service.studies.report.words import plus_minus


class Point(NamedTuple):
    x: float
    y: float
    error: float | None = None


class Series(NamedTuple):
    label: str
    points: Sequence[Point]
    is_best: bool = False


def _one_script() -> str:
    static, here = resources.files("service.dashboard") / "static", resources.files("service.studies.report")
    modules = [*(static / name for name in ("element.js", "format.js", "scale.js", "chart.js")), here / "report.js"]
    text = "".join(module.read_text(encoding="utf-8") for module in modules)
    return re.sub(r"^import .*\n|^export ", "", text, flags=re.MULTILINE)


SCRIPT: Final = _one_script()
SCRIPT_SOURCE: Final = f"'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
"""Names the script in a Content-Security-Policy: it may run, and no other."""
STYLE: Final = (resources.files("service.dashboard") / "static" / "chart.css").read_text(encoding="utf-8")


def figure(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """A figure with its points, a column a series; empty text where there are none."""
    drawn = [one for one in series if one.points]
    if not drawn:
        return ""
    heads = "".join(f"<th scope=col{' class=best' if one.is_best else ''}>{escape(one.label)}</th>" for one in drawn)
    columns = [{point.x: point for point in one.points} for one in drawn]
    body = "".join(
        f'<tr><td data-value="{x}">{x:g}</td>{"".join(_cell(column.get(x)) for column in columns)}</tr>'
        for x in sorted({x for column in columns for x in column})
    )
    return (
        f'<figure class="chart" data-unit="{escape(y_label)}"><figcaption>{escape(title)}</figcaption>'
        f'<details open><summary>Values</summary><div class="wide"><table><thead><tr><th scope=col>{escape(x_label)}</th>'
        f"{heads}</tr></thead><tbody>{body}</tbody></table></div></details></figure>"
    )


def _cell(point: Point | None) -> str:
    if point is None:
        return "<td>–</td>"
    error = f' data-error="{point.error}"' if point.error else ""
    return f'<td data-value="{point.y}"{error}>{plus_minus(point.y, point.error)}</td>'
