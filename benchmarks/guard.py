"""What the stability guard is worth: the gradient of the flow over T=20 by Dormand–Prince and its discrete adjoint, with
the guard and without, on 20 seeds that no constant was chosen on, from random and trained θ.

Each solve's error is that of the mean over 16 tasks, and the largest of any single task, relative to a float64 reference
at tolerance 1e-12. Bounds: 1,000 × tolerance for the mean, 10,000 × for a single task.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import amaml
from benchmarks.record import Run, arguments
from benchmarks.workload import Start, Work, flat, work

SEEDS = range(2000, 2020)
TOLERANCES = {torch.float32: (1e-4, 1e-5, 1e-6), torch.float64: (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)}
MEAN_BOUND, TASK_BOUND = 1_000, 10_000


def solve(job: Work, exact: Tensor, tol: float, guard: bool) -> dict[str, Any]:
    """One solve's errors over the tolerance, None where they aren't finite; the sentence where it fails."""
    try:
        found = job.solve(amaml.Dopri5(rtol=tol, atol=tol, guard=guard), amaml.Discrete())
    except amaml.SolveError as failure:
        return {"mean_over_tol": None, "worst_task_over_tol": None, "failure": str(failure)}
    per_task = flat(found.per_task, axes=1).double()
    mean = float((per_task.mean(dim=0) - exact.mean(dim=0)).norm() / exact.mean(dim=0).norm())
    worst = float(((per_task - exact).norm(dim=1) / exact.norm(dim=1)).max())
    return {
        "mean_over_tol": mean / tol if math.isfinite(mean) else None,
        "worst_task_over_tol": worst / tol if math.isfinite(worst) else None,
        "gradients": float(found.stats.gradients.double().mean()),
        "hvps": float(found.stats.hvps.double().mean()),
        "lambda_max": float(found.stats.lambda_max.max()) if guard else None,
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each θ, precision, tolerance and guard: the largest errors over the seeds (None: not finite, or failed)
    and how many solves kept both bounds."""
    keys = dict.fromkeys((row["start"], row["dtype"], row["tol"], row["guard"]) for row in rows)
    lines = []
    for key in keys:
        group = [row for row in rows if (row["start"], row["dtype"], row["tol"], row["guard"]) == key]
        line = dict(zip(("start", "dtype", "tol", "guard"), key, strict=True))
        for name in ("mean_over_tol", "worst_task_over_tol"):
            values = [row[name] for row in group]
            line[name] = None if None in values else max(values)
        lines.append({**line, "seeds": len(group), "within_bounds": sum(map(_within, group))})
    return lines


def _within(row: dict[str, Any]) -> bool:
    mean, worst = row["mean_over_tol"], row["worst_task_over_tol"]
    return mean is not None and worst is not None and mean <= MEAN_BOUND and worst <= TASK_BOUND


def main(run: Run) -> None:
    seeds = SEEDS[:1] if run.quick else SEEDS
    length, tasks = (0.5, 2) if run.quick else (20.0, 16)
    starts: tuple[Start, ...] = ("random", "trained")
    rows = []
    for start in starts:
        for seed in seeds:
            job = work(start, length, seed=seed, tasks=tasks)
            exact = job.reference()
            for dtype, tolerances in TOLERANCES.items():
                for tol in tolerances:
                    for guard in (True, False):
                        row = {
                            "start": start,
                            "seed": seed,
                            "dtype": str(dtype).removeprefix("torch."),
                            "tol": tol,
                            "guard": guard,
                        }
                        rows.append({**row, **solve(job.to(dtype), exact, tol, guard)})
            print(start, seed, [row["mean_over_tol"] for row in rows[-16:]], flush=True)
    lines = summary(rows)
    for line in lines:
        print(line)
    run.write({"bounds": {"mean": MEAN_BOUND, "task": TASK_BOUND}, "summary": lines, "rows": rows})


if __name__ == "__main__":
    main(arguments("guard"))
