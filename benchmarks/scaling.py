"""How cost grows: with the trajectory and with the number of tasks (a line through the origin's neighbourhood is fitted),
and the paper's figure, seconds and memory of a meta-update at 1 … 500 steps for all methods.

Memory as in `benchmarks.memory`; each method of the figure has a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import amaml
from amaml.methods.fomaml import fomaml
from benchmarks import peers
from benchmarks.memory import growth
from benchmarks.record import Run, arguments, backends, in_turn
from benchmarks.workload import STEP, Work, work

FIGURE = (1, 10, 20, 50, 100, 200, 300, 500)
LENGTHS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
QUICK_METHODS = ("amaml euler .01, batched", "create_graph")
TASKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def line(x: list[float], seconds: list[float]) -> dict[str, Any]:
    """A least-squares fit of seconds = slope·x + start by relative residuals, and the distance of the points from it."""
    a = np.stack([x, np.ones(len(x))], axis=1) / np.array(seconds)[:, None]
    slope, start = np.linalg.lstsq(a, np.ones(len(x)), rcond=None)[0]
    fitted = slope * np.array(x) + start
    exponent = np.polyfit(np.log(x[len(x) // 2 :]), np.log(seconds[len(x) // 2 :]), 1)[0]
    return {"x": x, "seconds": seconds, "slope": float(slope), "start": float(start),
            "largest_residual": float(np.abs(fitted / seconds - 1).max()), "exponent_of_upper_half": float(exponent)}  # fmt: skip


def linearity(quick: bool) -> dict[str, Any]:
    """Lines for each backend: Euler over T, guarded Dopri5 over T, Euler over tasks."""
    solvers: dict[str, Callable[[], Any]] = {"euler .01": amaml.Euler, "dopri5 1e-5": partial(amaml.Dopri5, 1e-5, 1e-5)}
    lengths, counts = ((0.05, 0.1, 0.2), (1, 2, 4)) if quick else (LENGTHS, TASKS)
    tasks = 2 if quick else 16
    by_length = {length: work("trained", length, tasks=tasks) for length in lengths}
    everybody = work("trained", 0.05 if quick else 1.0, tasks=max(counts))
    result = {}
    for backend, how in backends().items():
        for name, solver in solvers.items():
            cases = {length: partial(_solve, job, solver(), how) for length, job in by_length.items()}
            result[f"{name} over T, {backend}"] = _fit(cases, quick)
        cases = {count: partial(_solve, everybody.first(count), amaml.Euler(STEP), how) for count in counts}
        result[f"euler .01 over tasks, {backend}"] = _fit(cases, quick)
    return result


def _solve(job: Work, solver: Any, backend: Callable[[], Any]) -> Any:
    with backend():
        return job.solve(solver)


def _fit(cases: dict[Any, Callable[[], Any]], quick: bool) -> dict[str, Any]:
    named = {str(x): case for x, case in cases.items()}
    timings = in_turn(named, repeats=1 if quick else 7, budget=4.0, warm=not quick)
    return line([float(x) for x in cases], [timings[str(x)].median for x in cases])


def methods() -> dict[str, Callable[[Work], Any]]:
    """All methods of the figure, by name."""
    ours = {
        f"amaml {solver}, {backend}": partial(_method, how, make)
        for backend, how in backends().items()
        for solver, make in (("euler .01", amaml.Euler), ("dopri5 1e-5", partial(amaml.Dopri5, 1e-5, 1e-5)))
    }
    first_order = {f"fomaml euler .01, {backend}": partial(_first_order, how) for backend, how in backends().items()}
    return {**ours, **first_order, **peers.GRAPH_BASED, "vmapped": peers.vmapped, "authors": peers.authors,
            "fomaml task by task": peers.first_order}  # fmt: skip


def _first_order(backend: Callable[[], Any], job: Work) -> Any:
    with backend():
        return fomaml(job.params, *job.losses, job.tasks, length=job.length, solver=amaml.Euler(STEP))


def _method(backend: Callable[[], Any], solver: Callable[[], Any], job: Work) -> Any:
    return _solve(job, solver(), backend)


def figure_of(method: str, steps: list[int], tasks: int) -> list[dict[str, Any]]:
    """The points of one method, in this process, in ascending order, so that memory kept by the allocator comes from shorter
    runs."""
    solve = methods()[method]
    solve(work("trained", STEP, tasks=tasks))
    points = []
    for count in steps:
        job = work("trained", count * STEP, tasks=tasks)
        megabytes = growth(lambda job=job: solve(job))
        timing = in_turn({method: partial(solve, job)}, repeats=5, budget=1.0, warm=False)[method]
        points.append({"method": method, "steps": count, "megabytes": megabytes, **timing.summary()})
    return points


def figure(quick: bool) -> list[dict[str, Any]]:
    steps, tasks = ([1, 5], 2) if quick else (list(FIGURE), 16)
    points = []
    for method in QUICK_METHODS if quick else methods():
        case = json.dumps([method, steps, tasks])
        command = [sys.executable, "-m", "benchmarks.scaling", "--one", case]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        points += json.loads(done.stdout)
        print(points[-1], flush=True)
    return points


def main(run: Run) -> None:
    run.write({"linearity": linearity(run.quick), "figure": figure(run.quick)})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(figure_of(*json.loads(sys.argv[2]))))
    else:
        main(arguments("scaling"))
