"""The tables of docs/paper.md: what methods have learned."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from datetime import datetime
from typing import Any

from benchmarks.markdown import over_seeds, table
from benchmarks.recipe_tables import rated, recipe

PAPER_COLUMNS = {
    "nrmse_flow": "after the flow to T",
    "nrmse_tuned": "after 1,000 epochs",
    "nrmse_tuned_best": "the curve's best epoch",
}


def paper(content: dict[str, Any]) -> str:
    rows = content["results"]
    parts = []
    for cell, updates in dict.fromkeys((row["cell"], row["updates"]) for row in rows):
        group = [row for row in rows if (row["cell"], row["updates"]) == (cell, updates)]
        lines = []
        for method in dict.fromkeys(row["method"] for row in group):
            mine = [row for row in group if row["method"] == method]
            lines.append([
                method,
                *(over_seeds([row["metrics"][name] for row in mine]) for name in PAPER_COLUMNS),
                f"{statistics.median(row['seconds'] for row in mine):,.0f}",
            ])  # fmt: skip
        plain = ", ".join(_plain(group[0]["metrics"]))
        parts.append(f"**{cell}, {updates:,} updates** (without meta-learning: {plain})\n\n"
                     + table(["", *PAPER_COLUMNS.values(), "seconds of training"], lines))  # fmt: skip
    return "\n\n".join(parts)


def ratings(content: dict[str, Any]) -> str:
    """From the service's own report of the study, with `--score flow --format json`."""
    began, ended = (datetime.fromisoformat(content[name]) for name in ("created_at", "ended_at"))
    parts = [
        f"{sum(content['states'].values())} jobs in {(ended - began).total_seconds() / 60:.0f} minutes; ± over seeds."
    ]
    for block in content["blocks"]:
        family, rows = block["coordinates"]["/family"], block["rows"]
        plain = rows[0]["also"]
        names = [name for name in PLAIN if name in plain]
        lines = [
            [row["coordinates"]["/method/kind"], _mean(row["score"]),
             *(_mean(row["also"][name]) for name in ("tuned", "tuned_best")),
             "" if row["best"] else f"{row['difference']:+.4f} (p = {row['p_value']:.2g})", f"{1e3 * row['seconds']:.1f}"]
            for row in rows
        ]  # fmt: skip
        parts.append(
            f"**{family['shots']} / {family['queries']}** (without meta-learning: "
            + ", ".join(f"{name.replace('_', ' ')} {_mean(plain[name])}" for name in names)
            + ")\n\n"
            + table(["", *PAPER_COLUMNS.values(), "flow, less the best's, paired", "ms an update"], lines)
        )
    return "\n\n".join(parts)


def _mean(score: dict[str, float]) -> str:
    return f"{score['mean']:.3f} ± {score['error']:.3f}"


def ideas(content: dict[str, Any]) -> str:
    rows = content["results"]
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    by_idea: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        by_idea.setdefault(row["idea"], {}).setdefault(row["cell"], []).append(row)
    lines = []
    for idea, own in by_idea.items():
        found = {cell: [row["validation"] for row in own[cell] if "failed" not in row] for cell in cells}
        scores = [over_seeds(values) if values else "diverged" for values in found.values()]
        seconds = statistics.mean(row["seconds"] for cell in cells for row in own[cell] if "failed" not in row)
        lines.append([idea, *scores, f"{seconds:.0f}"])
    return table(["", *cells, "seconds"], lines)


def default(content: dict[str, Any]) -> str:
    lines = []
    for row in content["results"]:
        scores = dict(row["scores"])
        ours = scores.pop("flow")
        better = max if row["metric"] == "accuracy" else min
        for own in ("tuned", "tuned_best", "validation"):
            scores.pop(own, None)
        best = better(scores, key=scores.__getitem__)
        others = ", ".join(f"{name.replace('_', ' ')} {score:.3f}" for name, score in scores.items())
        ahead = "yes" if better(ours, scores[best]) == ours else f"no: {best.replace('_', ' ')}"
        counts = [f"{row['iterations']:,}", f"{row['seconds']:.0f}"]
        lines.append([row["cell"], row["metric"], f"{ours:.3f}", others, ahead, *counts])
    return table(
        ["family", "", "default", "without meta-learning", "ahead of all", "meta-iterations", "seconds"], lines
    )


PLAIN = ("random", "zero", "population_mean", "user_mean", "item_mean", "user_item_effects", "kernel_ridge")
"""What needs no meta-learning."""


def _plain(metrics: dict[str, float]) -> list[str]:
    return [f"{name.replace('_', ' ')} {metrics[f'nrmse_{name}']:.3f}" for name in PLAIN if f"nrmse_{name}" in metrics]


PAPER: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "paper": ("paper", paper),
    "ratings": ("ratings", ratings),
    "recipe": ("recipe", recipe),
    "ideas": ("ideas", ideas),
    "rated": ("recipe", rated),
}
