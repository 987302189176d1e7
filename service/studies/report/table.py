"""The report as text: CSV for programs, Markdown for people."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Final

from amaml.metrics import FLOW, TUNED
from service.studies.report.report import SEED, Block, Row, StudyReport, Trouble
from service.studies.report.words import label, mebibytes, milliseconds, plus_minus, probability, shown

SIGNIFICANT: Final = 0.05
_MARKUP: Final = re.compile(r"[\\|*`\[\]]|<(?=[A-Za-z/!?])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
COMPARISON: Final = (
    "The best mean of a block is bold. p: two-sided paired t test against it over test tasks × seeds, which takes the pairs "
    f"as independent; † marks rows that it doesn't tell from the best at {SIGNIFICANT}."
)


def as_csv(report: StudyReport) -> str:
    """A line a row of the report, cells without a result included; one column an axis but for the seeds."""
    axes = [axis.pointer for axis in report.axes if axis.pointer != SEED]
    names = sorted({name for block in report.blocks for row in block.rows for name in row.also})
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(
        [
            *axes, "jobs", "scored", "metric", "score", "mean", "error", "error_over", "best", "difference", "p_value", "pairs",
            "seconds", "memory_bytes", *(part for name in names for part in (f"{name}_mean", f"{name}_error")), "without_result",
        ]
    )  # fmt: skip
    troubles = {trouble.job_id: trouble for trouble in report.without_result}
    for block in report.blocks:
        for row in block.rows:
            where = {**block.coordinates, **row.coordinates}
            score = row.score
            own = [troubles[job.job_id] for job in row.jobs if job.job_id in troubles]
            lines.writerow(
                [
                    *(shown(where[axis]) for axis in axes), len(row.jobs), row.scored, block.metric, report.score,
                    *((score.mean, score.error, score.over) if score else (None, None, None)),
                    int(row.best), row.difference, row.p_value, row.pairs, row.seconds, row.memory_bytes,
                    *(part for name in names for part in _also(row, name)),
                    "; ".join(why(trouble) for trouble in own),
                ]
            )  # fmt: skip
    return text.getvalue()


def _also(row: Row, name: str) -> tuple[float | None, float | None]:
    estimate = row.also.get(name)
    return (estimate.mean, estimate.error) if estimate else (None, None)


def why(trouble: Trouble) -> str:
    """Why the cell has no result, in one line."""
    words = f"{trouble.state}" + (f" ({trouble.status_reason})" if trouble.status_reason else "")
    far = f" after {trouble.iteration} of {trouble.iterations} meta-iterations" if trouble.iteration else ""
    return words + far + (f": {trouble.status_detail}" if trouble.status_detail else "")


def columns(report: StudyReport, block: Block) -> list[str]:
    """The head of a block's table."""
    metric = block.metric or "score"
    return [
        "cell", "seeds", f"{metric} {report.score}", "p", f"{metric} {_second(report)}", "ms an update", "MiB an update",
    ]  # fmt: skip


def values(report: StudyReport, row: Row) -> list[str]:
    """A row's cells as text, none of them marked."""
    second = row.also.get(_second(report))
    mark = " †" if row.p_value is not None and row.p_value >= SIGNIFICANT else ""
    return [
        label(row.coordinates) or "the base",
        f"{row.scored} of {len(row.jobs)}",
        plus_minus(row.score.mean, row.score.error) if row.score else "–",
        "best" if row.best else probability(row.p_value) + mark,
        plus_minus(second.mean, second.error) if second else "–",
        milliseconds(row.seconds),
        mebibytes(row.memory_bytes),
    ]


def _second(report: StudyReport) -> str:
    """The score that is shown beside the compared one."""
    return FLOW if report.score != FLOW else TUNED


def heading(block: Block) -> str:
    return label(block.coordinates) or "Results"


def summary(report: StudyReport) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in report.states.items())
    return f"{report.state}; jobs: {counts}"


def errors_over(report: StudyReport) -> str:
    """What the standard errors of this report are."""
    over = {row.score.over for block in report.blocks for row in block.rows if row.score is not None}
    words = {
        frozenset({"seeds"}): "± is the standard error over seeds.",
        frozenset({"tasks"}): "± is the standard error over test tasks, as there is one seed.",
    }
    return words.get(frozenset(over), "± is the standard error over seeds; over test tasks where there is one seed.")


def as_markdown(report: StudyReport) -> str:
    lines = [f"# {_escaped(report.name or 'Study')}", "", f"Study {report.id}: {summary(report)}.", ""]
    for block in report.blocks:
        lines += [f"## {_escaped(heading(block))}", "", *_markdown_table(report, block), ""]
    lines += [f"{errors_over(report)} {COMPARISON}", ""]
    if report.without_result:
        lines += ["## Cells without a result", "", "| cell | job | why |", "|---|---|---|"]
        for trouble in report.without_result:
            cells = (label(trouble.coordinates), str(trouble.job_id), why(trouble))
            lines.append("| " + " | ".join(map(_escaped, cells)) + " |")
        lines.append("")
    return "\n".join(lines)


def _markdown_table(report: StudyReport, block: Block) -> Iterator[str]:
    head = columns(report, block)
    yield "| " + " | ".join(map(_escaped, head)) + " |"
    yield "|---" + "|---:" * (len(head) - 1) + "|"
    for row in block.rows:
        cells = [_escaped(text) for text in values(report, row)]
        if row.best:
            cells[0], cells[2] = f"**{cells[0]}**", f"**{cells[2]}**"
        yield "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    """As text, whatever is in it: names are anybody's."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
