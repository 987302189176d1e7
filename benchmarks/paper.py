"""The paper's synthetic experiments on held-out tasks: every method on equal tasks, trajectory, updates and optimizer, three
seeds.

    python -m benchmarks.paper [CELL …] [--methods …] [--seeds 3]

Rows that `results/paper.json` holds already are kept and not run again, so that a run can be cut and go on. The ratings of the
paper are a study of the service: examples/studies/paper-ratings.yaml.
"""

from __future__ import annotations

import argparse
import fcntl
import json
from pathlib import Path
from typing import Any

import amaml
from amaml.spec import JobSpec
from benchmarks.record import RESULTS, machine, versions

EULER = {"kind": "euler", "guard": False}
"""The target is gradient descent as it is, whose gradient is exact whatever the step does. Initializations of every method get a
few per cent stiffer than the step's stability region here and there, where the check would end the run."""
METHODS: dict[str, dict[str, Any]] = {
    "amaml": {"kind": "amaml"},
    "amaml, learning rates": {"kind": "amaml", "learn": ["rates"]},
    "reptile": {"kind": "reptile"},
    "fomaml": {"kind": "fomaml"},
    "imaml": {"kind": "imaml", "proximal": 1.0},
    "maml": {"kind": "maml"},
    "random": {"kind": "random"},
}


def synthetic(kind: str, shots: int, updates: int, every: int) -> dict[str, Any]:
    """T=3 in 60 steps of .05, five tasks an update, Adam 3e-3."""
    return {
        "family": {"kind": kind, "dim": 2, "shots": shots, "queries": shots, "train_tasks": 100, "test_tasks": 100},
        "trajectory": {"length": 3.0},
        "solver": EULER | {"step": 0.05},
        "meta": {"iterations": updates, "tasks_per_batch": 5, "optimizer": {"kind": "adam", "lr": 3e-3}},
        "evaluation": {"every": every, "tasks": 100, "epochs": 1000},
    }


CELLS: dict[str, dict[str, Any]] = {
    "cosmixture 50": synthetic("cosmixture", 50, 20_000, 5_000),
    "cosmixture 100": synthetic("cosmixture", 100, 5_000, 5_000),
    "alpine 50": synthetic("alpine", 50, 20_000, 5_000),
}


def run(cell: str, method: str, seed: int) -> list[dict[str, Any]]:
    """A row for each evaluation."""
    given = CELLS[cell]
    spec = JobSpec.model_validate(given | {"method": METHODS[method], "runtime": {"seed": seed, "threads": 1}})
    done = amaml.train(spec)
    metrics = {name: dict(points) for name, points in done.metrics.items()}
    seconds = metrics["seconds"]
    rows = []
    for updates, evaluation in done.evaluations.items():
        scores = {name: points[updates] for name, points in metrics.items() if updates in points}
        rows.append({
            "cell": cell, "method": method, "seed": seed, "updates": updates,
            "seconds": sum(value for step, value in seconds.items() if step <= updates),
            "metrics": scores, "flow_per_task": evaluation.flow.tolist(),
        })  # fmt: skip
    return rows


def add(path: Path, rows: list[dict[str, Any]], benchmark: str = "paper") -> None:
    """Adds rows to the file; several processes may do so at the same time."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = json.loads(path.read_text())["results"] if path.exists() else []
        content = {"benchmark": benchmark, "command": f"python -m benchmarks.{benchmark}", "machine": machine(),
                   "versions": versions(), "results": kept + rows}  # fmt: skip
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper")
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"of {', '.join(CELLS)}; all by default")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["amaml", "reptile", "fomaml"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    given = parser.parse_args()
    path = given.output / "paper.json"
    for seed in range(given.seeds):
        for cell in given.cells or CELLS:
            for method in given.methods:
                rows = json.loads(path.read_text())["results"] if path.exists() else []
                if any((row["cell"], row["method"], row["seed"]) == (cell, method, seed) for row in rows):
                    continue
                found = run(cell, method, seed)
                add(path, found)
                last = found[-1]["metrics"]
                print(cell, method, seed, f"flow {last['nrmse_flow']:.3f} tuned {last['nrmse_tuned']:.3f}", flush=True)


if __name__ == "__main__":
    main()
