"""Which recipe is best for the same seconds, Reptile's or A-MAML's? On the paper's synthetic cells, with equal effort for both.

    python -m benchmarks.recipe search [CELL …]
    python -m benchmarks.recipe confirm [CELL …]

`search` trains every candidate on every cell with a seed of its own for the same processor seconds on one core, and looks at
validation tasks alone; each method has as many candidates. What is best over the cells is chosen for each method. `confirm`
trains the chosen two anew with five other seeds and looks at test tasks. The results of the search are to be committed before
any of the other. Rows that `results/recipe.json` holds are kept, so a run can be cut, and several may run on different cells.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import pairwise
from typing import Any, NamedTuple

import amaml
from amaml.run.training import Training
from amaml.spec import JobSpec
from benchmarks.paper import add, synthetic
from benchmarks.record import RESULTS

SECONDS = 80.0
"""Of the processor, for training: about what 24,000 updates of Reptile take."""
LOOKS = 10
"""Evaluations on validation tasks, beside that of the start; the best θ is kept."""
TRIAL = 300
"""Meta-iterations that tell what one costs, by the later half of them: the first ones draw every task's points."""
SEARCH_SEED, SEEDS = 100, (0, 1, 2, 3, 4)
CELLS = {f"{kind} {shots}": (kind, shots) for kind in ("cosmixture", "alpine") for shots in (50, 100)}
REPTILE, RATES = {"kind": "reptile"}, {"kind": "amaml", "learn": ["rates"]}
MEDIAN: dict[str, Any] = {"per": "task", "at": "median"}


class Stage(NamedTuple):
    """A share of a candidate's seconds; its optimizer is Adam, the rate a cosine down to 0 unless it is constant."""

    method: dict[str, Any]
    lr: float
    share: float = 1.0
    clip: dict[str, Any] | None = None
    schedule: str = "cosine"


class Candidate(NamedTuple):
    stages: list[Stage]
    queries: int | str | None = None
    """Null: as many as shots."""
    tasks: int = 5
    step: float = 0.05
    learn_lr: float | None = None
    average: float | None = None


CANDIDATES: dict[str, Candidate] = {
    "reptile 3e-3": Candidate([Stage(REPTILE, 3e-3)]),
    "reptile 1e-2": Candidate([Stage(REPTILE, 1e-2)]),
    "reptile 2e-2": Candidate([Stage(REPTILE, 2e-2)]),
    "reptile 1e-2, clipped": Candidate([Stage(REPTILE, 1e-2, clip=MEDIAN)]),
    "reptile 2e-2, 10 tasks": Candidate([Stage(REPTILE, 2e-2)], tasks=10),
    "reptile 1e-2, step .1": Candidate([Stage(REPTILE, 1e-2)], step=0.1),
    "reptile 2e-2, step .1, 10 tasks": Candidate([Stage(REPTILE, 2e-2)], step=0.1, tasks=10),
    "reptile 1e-2, averaged": Candidate([Stage(REPTILE, 1e-2, schedule="constant")], average=0.999),
    "rates 1e-2": Candidate([Stage(RATES, 1e-2, clip=MEDIAN)], queries="all"),
    "reptile 30 %, rates 1e-2": Candidate([Stage(REPTILE, 1e-2, 0.3), Stage(RATES, 1e-2, 0.7, MEDIAN)], queries="all"),
    "reptile 30 %, rates 3e-3": Candidate([Stage(REPTILE, 1e-2, 0.3), Stage(RATES, 3e-3, 0.7, MEDIAN)], queries="all"),
    "reptile 50 %, rates 1e-2": Candidate([Stage(REPTILE, 1e-2, 0.5), Stage(RATES, 1e-2, 0.5, MEDIAN)], queries="all"),
    "reptile 50 %, rates 3e-3": Candidate([Stage(REPTILE, 1e-2, 0.5), Stage(RATES, 3e-3, 0.5, MEDIAN)], queries="all"),
    "reptile 50 %, rates 1e-3 and 1e-2": Candidate(
        [Stage(REPTILE, 1e-2, 0.5), Stage(RATES, 1e-3, 0.5, MEDIAN)], queries="all", learn_lr=1e-2
    ),
    "reptile 50 %, rates 3e-4 and 1e-2": Candidate(
        [Stage(REPTILE, 1e-2, 0.5), Stage(RATES, 3e-4, 0.5, {"per": "task", "at": 0.5})], learn_lr=1e-2
    ),
    "reptile 50 %, rates 3e-3, averaged": Candidate(
        [Stage(REPTILE, 1e-2, 0.5), Stage(RATES, 3e-3, 0.5, MEDIAN)], queries="all", average=0.99
    ),
}


def spec_of(cell: str, candidate: Candidate, seed: int, iterations: list[int]) -> JobSpec:
    """A run of so many meta-iterations a stage."""
    kind, shots = CELLS[cell]
    total = sum(iterations)
    spec = synthetic(kind, shots, total, max(1, total // LOOKS))
    spec["family"]["queries"] = candidate.queries or shots
    spec["solver"]["step"] = candidate.step
    phases = [
        {"method": stage.method, "share": count / total, "clip": stage.clip,
         "optimizer": {"kind": "adam", "lr": stage.lr, "schedule": stage.schedule}}
        for stage, count in zip(candidate.stages, iterations, strict=True)
    ]  # fmt: skip
    spec["meta"] |= {"tasks_per_batch": candidate.tasks, "phases": phases, "average": candidate.average}
    if any(stage.method is RATES for stage in candidate.stages):
        spec["meta"]["learn_lr"] = candidate.learn_lr
    spec["runtime"] = {"seed": seed, "threads": 1}
    spec["evaluation"] |= {"select": "validation", "epochs": 1}
    return JobSpec.model_validate(spec)


def iterations_of(cell: str, candidate: Candidate) -> list[int]:
    """How many meta-iterations each stage's seconds are enough for, by a trial of each."""
    counts = []
    for stage in candidate.stages:
        alone = candidate._replace(stages=[stage._replace(share=1.0)])
        trial = Training.start(spec_of(cell, alone, SEARCH_SEED, [TRIAL]))
        times = [time.process_time() for report in trial if "meta_loss" in report.metrics]
        costs = [later - earlier for earlier, later in pairwise(times)]
        cost = statistics.median(costs[TRIAL // 2 :])
        counts.append(max(1, round(SECONDS * stage.share / cost)))
    return counts


def run(cell: str, name: str, seed: int) -> dict[str, Any]:
    """A row of the table. Test tasks are none of the search's business."""
    candidate = CANDIDATES[name]
    counts = iterations_of(cell, candidate)
    began = time.process_time()
    done = amaml.train(spec_of(cell, candidate, seed, counts))
    looks = [value for _, value in done.metrics["nrmse_validation"]]
    row = {"cell": cell, "candidate": name, "seed": seed, "iterations": counts,
           "seconds": time.process_time() - began, "validation": min(looks)}  # fmt: skip
    if seed == SEARCH_SEED:
        return row
    at = looks.index(min(looks))
    return row | {metric: done.metrics[f"nrmse_{metric}"][at][1] for metric in ("flow", "kernel_ridge")}


class Table:
    """The rows that are there; others are run when they are asked for."""

    def __init__(self) -> None:
        self._path = RESULTS / "recipe.json"

    def row(self, cell: str, name: str, seed: int) -> dict[str, Any]:
        rows = json.loads(self._path.read_text())["results"] if self._path.exists() else []
        for row in rows:
            if (row["cell"], row["candidate"], row["seed"]) == (cell, name, seed):
                return dict(row)
        row = run(cell, name, seed)
        add(self._path, [row], "recipe")
        numbers = " ".join(f"{key} {row[key]:.3f}" for key in ("validation", "flow") if key in row)
        print(f"{cell}, {name}, seed {seed}: {numbers}, {row['seconds']:.0f} s, {row['iterations']}", flush=True)
        return row


def best(table: Table, *, reptile: bool) -> str:
    """The method's candidate with the smallest mean, over the cells, of its validation error over the cell's smallest."""
    names = [name for name, one in CANDIDATES.items() if (one.stages[-1].method is REPTILE) == reptile]
    errors = {cell: {name: table.row(cell, name, SEARCH_SEED)["validation"] for name in names} for cell in CELLS}
    return min(names, key=lambda name: statistics.mean(own[name] / min(own.values()) for own in errors.values()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe")
    parser.add_argument("part", choices=("search", "confirm"))
    parser.add_argument("cells", nargs="*", default=list(CELLS), help="by name; all of them unless some are named")
    given = parser.parse_args()
    table = Table()
    if given.part == "search":
        for name in CANDIDATES:
            for cell in given.cells:
                table.row(cell, name, SEARCH_SEED)
        return
    chosen = [best(table, reptile=reptile) for reptile in (True, False)]
    print("chosen on validation tasks:", " | ".join(chosen), flush=True)
    for seed in SEEDS:
        for cell in given.cells:
            for name in chosen:
                table.row(cell, name, seed)


if __name__ == "__main__":
    main()
