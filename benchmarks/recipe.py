"""Is there a recipe with which A-MAML beats Reptile for the same seconds? On the paper's four synthetic cells.

    python -m benchmarks.recipe

Every candidate gets the processor's seconds of 24,000 Reptile updates on one core, some in two stages of which the second
starts from what the first has learned. Candidates are compared on validation tasks of the cells with 50 shots, with a seed of
their own; the best of each method then trains anew on all cells with three other seeds and is scored on test tasks. Rows that
`results/recipe.json` holds are kept, so a run can be cut.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import amaml
from amaml.spec import JobSpec
from benchmarks.paper import add, synthetic
from benchmarks.record import RESULTS

UPDATES = 24_000
"""Of Reptile; other methods get fewer by their cost."""
COST = {"reptile": 1.0, "amaml": 2.4, "amaml, rates": 3.2}
"""Seconds of an update over one of Reptile's: 60 steps, 5 tasks, one thread. What a run really took is in its row."""
SEARCH_SEED, SEEDS = 100, (0, 1, 2)
SEARCHED = ("cosmixture 50", "alpine 50")
CELLS = {f"{kind} {shots}": (kind, shots) for kind in ("cosmixture", "alpine") for shots in (50, 100)}
METHODS: dict[str, dict[str, Any]] = {
    "reptile": {"kind": "reptile"},
    "amaml": {"kind": "amaml"},
    "amaml, rates": {"kind": "amaml", "learn": ["rates"]},
}


class Stage(NamedTuple):
    """A part of a run's seconds."""

    method: str
    share: float = 1.0
    schedule: str = "cosine"
    lr: float = 3e-3
    grows: bool = False
    """T = .75 for the first quarter of the updates, 1.5 for the second, then 3."""

    @property
    def updates(self) -> int:
        # A shorter trajectory costs less: with growth, as many updates more as the first half saves.
        cheaper = (0.25 * 0.25 + 0.25 * 0.5 + 0.5) if self.grows else 1.0
        return round(UPDATES * self.share / COST[self.method] / cheaper)


CANDIDATES: dict[str, list[Stage]] = {
    "reptile, constant rate": [Stage("reptile", schedule="constant")],
    "reptile, rate 1e-2": [Stage("reptile", lr=1e-2)],
    "reptile, rate 3e-2": [Stage("reptile", lr=3e-2)],
    "amaml": [Stage("amaml")],
    "amaml, rate 1e-2": [Stage("amaml", lr=1e-2)],
    "amaml, growing T": [Stage("amaml", grows=True)],
    "amaml, learned rates": [Stage("amaml, rates")],
    "reptile, then amaml": [Stage("reptile", 0.5, "constant"), Stage("amaml", 0.5)],
    "reptile, then amaml for a quarter": [Stage("reptile", 0.75, "constant"), Stage("amaml", 0.25)],
    "reptile, then amaml with learned rates": [Stage("reptile", 0.5, "constant"), Stage("amaml, rates", 0.5)],
    "reptile at 1e-2, then amaml at 3e-4": [Stage("reptile", 0.75, lr=1e-2), Stage("amaml", 0.25, lr=3e-4)],
    "reptile at 1e-2, then amaml with learned rates at 3e-4": [
        Stage("reptile", 0.75, lr=1e-2), Stage("amaml, rates", 0.25, lr=3e-4)
    ],
    "reptile at 1e-2, then amaml with learned rates at 1e-3": [
        Stage("reptile", 0.5, lr=1e-2), Stage("amaml, rates", 0.5, lr=1e-3)
    ],
    "reptile at 1e-2, then amaml with learned rates at 1e-3 for a quarter": [
        Stage("reptile", 0.75, lr=1e-2), Stage("amaml, rates", 0.25, lr=1e-3)
    ],
}  # fmt: skip


def run(cell: str, candidate: str, seed: int) -> dict[str, Any]:
    """Trains stage after stage; the last one's scores. Seconds are the processor's, evaluation included: other work doesn't
    lengthen them."""
    began, start = time.process_time(), None
    with tempfile.TemporaryDirectory() as folder:
        for number, stage in enumerate(stages := CANDIDATES[candidate]):
            kind, shots = CELLS[cell]
            spec = synthetic(kind, shots, stage.updates, stage.updates)
            spec["method"] = METHODS[stage.method]
            spec["meta"]["optimizer"] = {"kind": "adam", "lr": stage.lr, "schedule": stage.schedule}
            spec["runtime"] = {"seed": seed, "threads": 1}
            spec["evaluation"] |= {"select": "validation", "epochs": 1000 if number + 1 == len(stages) else 1}
            if stage.grows:
                quarter = stage.updates // 4
                spec["trajectory"]["schedule"] = [[0, 0.75], [quarter, 1.5], [2 * quarter, 3.0]]
            done = amaml.train(JobSpec.model_validate(spec), initialization=start)
            start = Path(folder) / f"{number}.safetensors"
            done.save(start)
    last = {name: points[-1][1] for name, points in done.metrics.items()}
    scores = {name: last[f"nrmse_{name}"] for name in ("validation", "flow", "tuned", "tuned_best")}
    return {"cell": cell, "candidate": candidate, "seed": seed, "updates": [one.updates for one in stages],
            "seconds": time.process_time() - began, **scores}  # fmt: skip


class Table:
    """The rows that are there; others are run when they are asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def row(self, cell: str, candidate: str, seed: int) -> dict[str, Any]:
        rows = json.loads(self._path.read_text())["results"] if self._path.exists() else []
        for row in rows:
            if (row["cell"], row["candidate"], row["seed"]) == (cell, candidate, seed):
                return dict(row)
        row = run(cell, candidate, seed)
        add(self._path, [row], "recipe")
        print(f"{cell}, {candidate}, seed {seed}: validation {row['validation']:.3f} flow {row['flow']:.3f} tuned "
              f"{row['tuned']:.3f}, {row['seconds']:.0f} s", flush=True)  # fmt: skip
        return row


def best(table: Table, names: list[str]) -> str:
    """The candidate with the smallest mean, over the cells searched, of its validation error over the cell's smallest."""
    errors = {cell: {name: table.row(cell, name, SEARCH_SEED)["validation"] for name in names} for cell in SEARCHED}
    return min(names, key=lambda name: statistics.mean(own[name] / min(own.values()) for own in errors.values()))


def main() -> None:
    table = Table(RESULTS / "recipe.json")
    pure = [name for name, stages in CANDIDATES.items() if all(stage.method == "reptile" for stage in stages)]
    chosen = [best(table, pure), best(table, [name for name in CANDIDATES if name not in pure])]
    print("chosen on validation tasks:", " | ".join(chosen), flush=True)
    for seed in SEEDS:
        for cell in CELLS:
            for name in chosen:
                table.row(cell, name, seed)


if __name__ == "__main__":
    main()
