"""The flow's gradient by Dormand–Prince and each adjoint, over tolerances: with λ under error control, and by the reverse of the
steps, with the stability guard and without. On 20 seeds that were not used to choose any constant, from random and trained θ.

Each solve's error is that of the mean over 16 tasks, and the largest of any single task, relative to a float64 reference at
tolerance 1e-12. Bounds: 10 × tolerance for the mean, 100 × for a single task.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch
from torch import Tensor

import amaml
from amaml.adjoint.protocol import Adjoint
from benchmarks.record import Run, arguments
from benchmarks.workload import Start, Work, flat, work

SEEDS = range(2000, 2020)
LENGTHS = (2.0, 20.0)
TOLERANCES = {
    torch.float32: (1e-4, 1e-5, 1e-6),
    torch.float64: (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10),
}
CASES: dict[str, tuple[bool, Adjoint]] = {
    "interpolated": (False, amaml.Interpolated()),
    "discrete, guard": (True, amaml.Discrete()),
    "discrete, no guard": (False, amaml.Discrete()),
}
MEAN_BOUND, TASK_BOUND = 10, 100


def solve(job: Work, exact: Tensor, tol: float, case: str) -> dict[str, Any]:
    """The seconds of one solve, and its errors divided by the tolerance (None: not finite); the error's message where it
    fails."""
    guard, adjoint = CASES[case]
    begin = time.perf_counter()
    try:
        found = job.solve(amaml.Dopri5(rtol=tol, atol=tol, guard=guard), adjoint)
    except amaml.SolveError as failure:
        return {"mean_over_tol": None, "worst_task_over_tol": None, "seconds": None, "failure": str(failure)}
    seconds = time.perf_counter() - begin
    mean, worst = errors(flat(found.per_task, axes=1).double(), exact)
    return {
        "mean_over_tol": mean / tol if math.isfinite(mean) else None,
        "worst_task_over_tol": worst / tol if math.isfinite(worst) else None,
        "seconds": seconds,
        "gradients": float(found.stats.gradients.double().mean()),
        "hvps": float(found.stats.hvps.double().mean()),
    }


def errors(per_task: Tensor, exact: Tensor) -> tuple[float, float]:
    """The relative error of the mean over tasks, and the largest relative error of a task."""
    mean = (per_task.mean(dim=0) - exact.mean(dim=0)).norm() / exact.mean(dim=0).norm()
    return float(mean), float(((per_task - exact).norm(dim=1) / exact.norm(dim=1)).max())


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each length, precision, tolerance and case: the largest errors over seeds and θ (None: not finite, or failed),
    the number of solves within both bounds, and the median ratio of their seconds to those of the guarded discrete adjoint."""
    names = ("length", "dtype", "tol", "case")
    lines = []
    for key in dict.fromkeys(tuple(row[name] for name in names) for row in rows):
        group = [row for row in rows if tuple(row[name] for name in names) == key]
        line = dict(zip(names, key, strict=True))
        for name in ("mean_over_tol", "worst_task_over_tol"):
            values = [row[name] for row in group]
            line[name] = None if None in values else max(values)
        ratios = [
            row["seconds"] / row["seconds_of_guarded"] for row in group if row["seconds"] and row["seconds_of_guarded"]
        ]
        line["time_over_guarded"] = statistics.median(ratios) if ratios else None
        lines.append({**line, "solves": len(group), "within_bounds": sum(map(_within, group))})
    return lines


def _within(row: dict[str, Any]) -> bool:
    mean, worst = row["mean_over_tol"], row["worst_task_over_tol"]
    return mean is not None and worst is not None and mean <= MEAN_BOUND and worst <= TASK_BOUND


def of_one_work(job: Work) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The rows of the results, and the distance of the reference from a solve at ten times its tolerance."""
    exact = job.reference()
    looser = job.to(torch.float64).solve(amaml.Dopri5(rtol=1e-11, atol=1e-11))
    mean, worst = errors(flat(looser.per_task, axes=1), exact)
    rows = []
    for dtype, tolerances in TOLERANCES.items():
        same = job.to(dtype)
        for tol in tolerances:
            found = {case: solve(same, exact, tol, case) for case in CASES}
            facts = {
                "start": job.start,
                "length": job.length,
                "seed": job.seed,
                "dtype": str(dtype).removeprefix("torch."),
                "tol": tol,
            }
            guarded = found["discrete, guard"]["seconds"]
            rows += [{**facts, "case": case, **row, "seconds_of_guarded": guarded} for case, row in found.items()]
    return rows, {"mean": mean, "worst_task": worst}


def main(run: Run) -> None:
    seeds = SEEDS[:1] if run.quick else SEEDS
    lengths, tasks = ((0.5,), 2) if run.quick else (LENGTHS, 16)
    starts: tuple[Start, ...] = ("random", "trained")
    rows, converged = [], []
    for length in lengths:
        for start in starts:
            for seed in seeds:
                own, apart = of_one_work(work(start, length, seed=seed, tasks=tasks))
                rows += own
                converged.append(apart)
                print(
                    length,
                    start,
                    seed,
                    apart,
                    [row["mean_over_tol"] for row in own if row["case"] == "interpolated"],
                    flush=True,
                )
    lines = summary(rows)
    for line in lines:
        print(line)
    reference = {name: max(apart[name] for apart in converged) for name in ("mean", "worst_task")}
    run.write({"bounds": {"mean": MEAN_BOUND, "task": TASK_BOUND}, "reference_from_ten_times_its_tolerance": reference,
               "summary": lines, "rows": rows})  # fmt: skip


if __name__ == "__main__":
    main(arguments("adjoints"))
