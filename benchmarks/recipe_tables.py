"""The tables on the search for training recipes, and on those found."""

from __future__ import annotations

import statistics
from typing import Any

from scipy import stats

from benchmarks.markdown import over_seeds, table
from benchmarks.recipe import (
    ALONE,
    AMAMLS,
    CELLS,
    DATA,
    FOMAMLS,
    LEARNERS,
    PRESETS,
    RATED,
    REPTILES,
    SEARCH_SEED,
)  # fmt: skip
from benchmarks.recipe import PAPER as PAPER_CELLS


def recipe(content: dict[str, Any]) -> str:
    rows = [row for row in content["results"] if row["cell"] in PAPER_CELLS]
    searched = [row for row in rows if row["seed"] == SEARCH_SEED]
    found = [
        "The search, one seed, validation tasks, after the flow; *over the best*: the mean over the cells of the error over the "
        "cell's smallest.",
        _searched(searched, list(PAPER_CELLS)),
    ]
    trained = [row for row in rows if row["seed"] != SEARCH_SEED and "control" not in row]
    confirmed = [row for row in trained if row["candidate"] not in ALONE]
    found += [
        "The chosen two, trained again with other seeds, test tasks, after the flow:",
        _confirmed(confirmed, "kernel_ridge"),
        "The other methods for as many seconds, each with the clip at the median, Adam at 1e-2 with a cosine and all query "
        "points, and the chosen two, two seeds:",
        _by_method(trained),
    ]
    controls = [row for row in rows if "control" in row]
    if controls:
        found += [
            "Each θ with and without the rates that the second has learned, one seed, test tasks:",
            _controls(controls),
        ]
    return "\n\n".join(found)


def rated(content: dict[str, Any]) -> str:
    rows = [row for row in content["results"] if row["cell"] in RATED and row["candidate"] in (*FOMAMLS, *AMAMLS)]
    return "\n\n".join([
        "The search, one seed, validation users, after the flow:",
        _searched([row for row in rows if row["seed"] == SEARCH_SEED], RATED),
        "The chosen two, trained again with ten other seeds, test users, after the flow:",
        _confirmed([row for row in rows if row["seed"] != SEARCH_SEED], "user_item_effects"),
    ])  # fmt: skip


def preset(content: dict[str, Any]) -> str:
    searched = [row for row in content["results"] if row["seed"] == SEARCH_SEED]
    kept = [name for name in PRESETS if name in REPTILES or name in LEARNERS]
    synthetic = [name for name in CELLS if name not in DATA]
    return "\n\n".join([
        _searched([row for row in searched if row["candidate"] in kept], synthetic),
        _searched([row for row in searched if row["candidate"] in (*kept, *AMAMLS)], DATA),
    ])  # fmt: skip


def _searched(rows: list[dict[str, Any]], cells: list[str]) -> str:
    """A line a candidate."""
    searched = {(row["candidate"], row["cell"]): row for row in rows if row["cell"] in cells}
    least = {cell: min(row["validation"] for (_, of), row in searched.items() if of == cell) for cell in cells}
    lines = []
    for name in dict.fromkeys(name for name, _ in searched):
        mine = {cell: searched[name, cell] for cell in cells if (name, cell) in searched}
        ratio = statistics.mean(row["validation"] / least[cell] for cell, row in mine.items())
        seconds = statistics.mean(row["seconds"] for row in mine.values())
        errors = [f"{mine[cell]['validation']:.3f}" if cell in mine else "not run" for cell in cells]
        lines.append([name, *errors, f"{ratio:.2f}", f"{seconds:,.0f}"])
    return table(["", *cells, "over the best", "seconds"], lines)


def _confirmed(rows: list[dict[str, Any]], baseline: str) -> str:
    """The chosen two and a baseline that needs no meta-learning; what the second is ahead of either, seed by seed."""
    lines = []
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    for cell in dict.fromkeys(row["cell"] for row in rows):
        first, second = (
            {row["seed"]: row for row in rows if (row["cell"], row["candidate"]) == (cell, name)} for name in names
        )
        plain = {seed: row[baseline] for seed, row in first.items()}
        errors = [over_seeds([row["flow"] for row in own.values()]) for own in (first, second)]
        apart = [[second[seed]["flow"] - first[seed]["flow"] for seed in first if seed in second],
                 [second[seed]["flow"] - plain[seed] for seed in first if seed in second]]  # fmt: skip
        shown = [f"{statistics.mean(own):+.3f} ± {_half_interval(own):.3f}" for own in apart]
        lines.append([cell, *errors, shown[0], f"{statistics.mean(plain.values()):.3f}", shown[1]])
    other = baseline.replace("_", " ")
    return table(["", *names, "difference, 95 %", other, f"difference to {other}, 95 %"], lines)


def _by_method(rows: list[dict[str, Any]]) -> str:
    """A line a candidate: those seeds' errors that all of them have."""
    cells, names = list(PAPER_CELLS), list(dict.fromkeys(row["candidate"] for row in rows))
    found = {(row["cell"], row["candidate"], row["seed"]): row["flow"] for row in rows}
    lines = []
    for name in names:
        shared = [
            [
                seed
                for _, one, seed in found
                if (_, one) == (cell, name) and all((cell, other, seed) in found for other in names)
            ]
            for cell in cells
        ]
        lines.append([name, *(over_seeds([found[cell, name, seed] for seed in seeds])
                              for cell, seeds in zip(cells, shared, strict=True))])  # fmt: skip
    return table(["", *cells], lines)


def _half_interval(values: list[float]) -> float:
    """Of the mean, by Student's t, 95 %."""
    return float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def _controls(rows: list[dict[str, Any]]) -> str:
    with_rates = {"plain": "", "rates": ", with the rates"}
    return table(
        ["", "θ of", "after the flow to T", "after 1,000 epochs", "the curve's best epoch"],
        [[row["cell"], row["candidate"] + with_rates[row["control"]],
          *(f"{row[score]:.3f}" for score in ("flow", "tuned", "tuned_best"))] for row in rows],
    )  # fmt: skip
