"""Error against cost of every solver with every adjoint: the gradient of the flow, 16 tasks, trained θ, float64, T=2 and
T=20, cost in evaluations for each task and in seconds.

Explicit fixed steps go from .08 to .0025, adaptive solvers from 1e-3 to 1e-9 or as far as a solve takes no more than LIMIT
seconds. `backsolve` fails on all but short flows: the sentence is kept, and tighter tolerances, which fail no less, aren't tried.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

import amaml
from benchmarks import peers
from benchmarks.record import Run, arguments
from benchmarks.workload import Work, error, flat, work

LIMIT = 5.0
GRAPH_FITS = 2.0
"""A longer trajectory's graph, which torchode keeps, was more than the 24 GB of the machine that this was written on."""
STEPS = (0.08, 0.04, 0.02, 0.01, 0.005, 0.0025)
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
FIXED = {"euler": amaml.Euler, "heun": amaml.Heun, "rk4": amaml.RK4}
ADAPTIVE = {"bosh3": amaml.Bosh3, "dopri5": amaml.Dopri5}
GRID_ADJOINTS = {
    "discrete": amaml.Discrete(),
    "interpolated heun": amaml.Interpolated("heun"),
    "interpolated euler": amaml.Interpolated("euler"),
}
ADJOINTS = {"discrete": amaml.Discrete(), "interpolated adaptive": amaml.Interpolated(), "backsolve": amaml.Backsolve()}


def pairs(quick: bool) -> Iterator[tuple[str, str, Any, Any, float]]:
    """(solver, adjoint, both as objects, step or tolerance)."""
    for kind, solver in FIXED.items():
        for name, adjoint in GRID_ADJOINTS.items():
            for step in STEPS[2:3] if quick else STEPS:
                yield kind, name, solver(step=step), adjoint, step
    for kind, solver in ADAPTIVE.items():
        for guard in (True, False):
            for name, adjoint in ADJOINTS.items():
                if name == "backsolve" and not guard:
                    continue
                for tol in TOLERANCES[2:3] if quick else TOLERANCES:
                    label = kind if guard else f"{kind}, no guard"
                    yield label, name, solver(rtol=tol, atol=tol, guard=guard), adjoint, tol


def ours(job: Work, solver: Any, adjoint: Any, exact: torch.Tensor) -> dict[str, Any]:
    begin = time.perf_counter()
    try:
        found = job.solve(solver, adjoint)
    except amaml.SolveError as failure:
        return {"failure": str(failure)}
    seconds = time.perf_counter() - begin
    wrong = error(flat(found.grad), exact)
    gradients, hvps = (float(count.double().mean()) for count in (found.stats.gradients, found.stats.hvps))
    return {"error": wrong if wrong < 1e300 else "not finite", "seconds": seconds, "gradients": gradients, "hvps": hvps}


def peer(job: Work, call: Any, tol: float, exact: torch.Tensor) -> dict[str, Any]:
    begin = time.perf_counter()
    try:
        found = call(job, tol)
    except (peers.BudgetSpent, AssertionError) as failure:  # torchdiffeq asserts that its step doesn't underflow
        return {"failure": str(failure)}
    wrong = error(found, exact)
    return {"error": wrong if wrong < 1e300 else "not finite", "seconds": time.perf_counter() - begin}


def _is_last(row: dict[str, Any]) -> bool:
    """Whether smaller settings of the same pair would only take longer. A fixed step that is too large may get stable."""
    return row["seconds"] > LIMIT if "seconds" in row else row["solver"] not in FIXED


def main(run: Run) -> None:
    rows = []
    for length in (0.1,) if run.quick else (2.0, 20.0):
        job = work("trained", length, tasks=2 if run.quick else 16)
        exact = job.reference().mean(dim=0)
        job = job.to(torch.float64)
        ended = set()
        for solver, adjoint, how, back, setting in pairs(run.quick):
            if (solver, adjoint) in ended:
                continue
            rows.append({"length": length, "solver": solver, "adjoint": adjoint, "setting": setting,
                         **ours(job, how, back, exact)})  # fmt: skip
            print(rows[-1], flush=True)
            if _is_last(rows[-1]):
                ended.add((solver, adjoint))
        if run.quick:
            continue
        others = {"torchdiffeq odeint_adjoint": peers.torchdiffeq}
        if length <= GRAPH_FITS:
            others["torchode AutoDiffAdjoint"] = peers.torchode
        for name, call in others.items():
            for tol in TOLERANCES[:6]:
                rows.append({"length": length, "solver": name, "adjoint": "its own", "setting": tol,
                             **peer(job, call, tol, exact)})  # fmt: skip
                print(rows[-1], flush=True)
                if _is_last(rows[-1]):
                    break
    run.write({"rows": rows})


if __name__ == "__main__":
    main(arguments("work_precision"))
