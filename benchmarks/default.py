"""The default preset on every family, from a spec with nothing but the family: how long it takes, and which baselines it beats.

    python -m benchmarks.default --data FOLDER

FOLDER is as in `benchmarks.recipe`. One seed, all cores of the machine; the time is the wall time of the whole run with its
evaluations.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import amaml
from benchmarks.paper import add
from benchmarks.recipe import FAMILIES, FILES
from benchmarks.record import RESULTS

CELLS: dict[str, dict[str, Any]] = {
    "cosmixture": {"kind": "cosmixture"},
    "alpine": {"kind": "alpine"},
    **{name: cell["family"] for name, cell in FAMILIES.items()},
}


def run(family: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The scores of the final θ on test tasks."""
    began = time.perf_counter()
    done = amaml.train({"family": family}, {name: folder / file for name, file in FILES.items()})
    seconds = time.perf_counter() - began
    metric = "accuracy" if "accuracy_flow" in done.metrics else "nrmse"
    validation = done.metrics.get(f"{metric}_validation", [])
    step = done.spec.meta.iterations
    if validation:
        step, _ = (max if metric == "accuracy" else min)(validation, key=lambda point: point[1])
    scores = {
        name.removeprefix(f"{metric}_"): dict(points)[step]
        for name, points in done.metrics.items()
        if name.startswith(metric) and not name.endswith("_error") and step in dict(points)
    }
    return {
        "metric": metric,
        "seconds": seconds,
        "iterations": done.spec.meta.iterations,
        "kept": step,
        "scores": scores,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.default")
    parser.add_argument("--data", type=Path, required=True, help="the folder of ml-100k.inter and MathAchieve.csv")
    given = parser.parse_args()
    path = RESULTS / "default.json"
    path.unlink(missing_ok=True)
    for cell, family in CELLS.items():
        row = {"cell": cell, **run(family, given.data)}
        add(path, [row], "default")
        print(row, flush=True)


if __name__ == "__main__":
    main()
