"""The report as a page that stands alone: style and plots within it, nothing from elsewhere; readable without its script."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

from service.studies.report import plot
from service.studies.report.plot import Point, Series, figure
from service.studies.report.report import SEED, Block, Row, StudyReport
from service.studies.report.style import STYLE
from service.studies.report.table import COMPARISON, columns, errors_over, heading, summary, values, why
from service.studies.report.words import label

POLICY = (
    f"default-src 'none'; script-src {plot.SCRIPT_SOURCE}; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page."""


def as_html(report: StudyReport, base: dict[str, Any]) -> str:
    """The whole document; `base` is the spec that the grid changes."""
    title = escape(report.name or "Study")
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}{plot.STYLE}</style></head><body>",
        f'<h1>{title}</h1><p class="soft">Study {report.id}, {escape(summary(report))}. {_when(report)}</p>',
    ]
    for block in report.blocks:
        parts.append(f"<h2>{escape(heading(block))}</h2>{_table(report, block)}")
        parts.append(f'<div class="charts">{_curves(block)}{"".join(_sweeps(report, block))}</div>')
    parts.append(f'<p class="soft">{errors_over(report)} {COMPARISON}</p>')
    parts.append(_troubles(report))
    axes = {axis.pointer: axis.values for axis in report.axes}
    document = escape(json.dumps({"base": base, "grid": axes}, indent=2, ensure_ascii=False))
    parts.append(
        f"<h2>What was run</h2><details><summary>Base spec and grid</summary><pre>{document}</pre></details>"
        f'<script type="module">{plot.SCRIPT}</script></body></html>'
    )
    return "".join(parts)


def _when(report: StudyReport) -> str:
    ended = f", ended {report.ended_at:%Y-%m-%d %H:%M}" if report.ended_at else ""
    return f"Submitted {report.created_at:%Y-%m-%d %H:%M}{ended} UTC."


def _table(report: StudyReport, block: Block) -> str:
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in columns(report, block))
    body = "".join(
        f"<tr{' class=best' if row.best else ''}>"
        + "".join(f"<td>{escape(text)}</td>" for text in values(report, row))
        + "</tr>"
        for row in block.rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _curves(block: Block) -> str:
    """The score over epochs of fine-tuning, a line a row."""
    series = []
    for row in block.rows:
        if row.curve is not None:
            points_of_curve = zip(row.curve.epochs, row.curve.mean, row.curve.error, strict=True)
            points = [
                Point(epoch, mean, _bar(row, error)) for epoch, mean, error in points_of_curve if mean is not None
            ]
            series.append(Series(label(row.coordinates) or "the base", points, row.best))
    return figure(f"Fine-tuning: {block.metric} of unseen tasks", "epochs of fine-tuning", block.metric or "", series)


def _bar(row: Row, error: float | None) -> float | None:
    """Errors over tasks aren't drawn: all rows share the tasks, so they say nothing of how the rows differ."""
    return error if row.score is not None and row.score.over == "seeds" else None


def _sweeps(report: StudyReport, block: Block) -> Iterator[str]:
    """Score, time and memory against the axis that counts something, if there is one."""
    axis = _counting_axis(report, block)
    if axis is None:
        return
    name = axis.rpartition("/")[2]
    quantities: list[tuple[str, Callable[[Row], tuple[float, float | None] | None]]] = [
        (
            f"{block.metric} {report.score}",
            lambda row: (row.score.mean, _bar(row, row.score.error)) if row.score else None,
        ),
        ("ms a meta-update", lambda row: (1_000 * row.seconds, None) if row.seconds else None),
        ("MiB a meta-update", lambda row: (row.memory_bytes / 2**20, None) if row.memory_bytes else None),
    ]
    for what, quantity in quantities:
        lines: dict[str, list[Point]] = {}
        for row in sorted(block.rows, key=lambda row: float(row.coordinates[axis])):
            found = quantity(row)
            if found is not None:
                others = label({key: value for key, value in row.coordinates.items() if key != axis})
                lines.setdefault(others or "all", []).append(Point(row.coordinates[axis], *found))
        yield figure(f"{what} against {name}", name, what, [Series(one, points) for one, points in lines.items()])


def _counting_axis(report: StudyReport, block: Block) -> str | None:
    """The axis of rows that has the most numbers, three at least."""
    counting = {
        axis.pointer: len(axis.values)
        for axis in report.axes
        if axis.pointer != SEED and axis.pointer not in block.coordinates and len(axis.values) >= 3
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in axis.values)
    }  # fmt: skip
    return max(counting, key=lambda pointer: counting[pointer]) if counting else None


def _troubles(report: StudyReport) -> str:
    if not report.without_result:
        return ""
    body = "".join(
        f"<tr><td>{escape(label(one.coordinates))}</td><td>{one.job_id}</td><td class=trouble>{escape(why(one))}</td></tr>"
        for one in report.without_result
    )
    return (
        "<h2>Cells without a result</h2><div class=wide><table class=words><thead><tr><th scope=col>cell</th>"
        f"<th scope=col>job</th><th scope=col>why</th></tr></thead><tbody>{body}</tbody></table></div>"
    )
