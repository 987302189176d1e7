"""Seconds for a meta-gradient, ours and the peers', in one process in turn; JAX in its own process, in the same rounds.

Three questions, float32, 16 tasks:
- `exact_maml`: 200 Euler steps of .01, all computing the same number;
- `flow`: the gradient of the flow within 1e-3 of its reference, T=2 and T=20; peers at the error that they have;
- `threads`: two threads and one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

import amaml
from benchmarks import peers
from benchmarks.record import Run, Timing, arguments, backends, in_turn, threads
from benchmarks.workload import Start, Work, error, flat, work

REPEATS = 15
BUDGET = 12.0
"""Seconds for each case."""
TARGET = 1e-3
TOLERANCES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)


def ours(solver: Any, backend: Callable[[], Any], job: Work) -> Tensor:
    with backend():
        return flat(job.solve(solver).grad)


def exact_maml(start: Start, quick: bool) -> dict[str, Any]:
    """The gradient of 200 steps of gradient descent by every method; that of the authors approximates the flow's instead."""
    job = work(start, 0.05 if quick else 2.0, tasks=2 if quick else 16)
    exact = flat(job.to(torch.float64).solve(amaml.Euler(0.01)).grad)
    cases: dict[str, Callable[[], Tensor]] = {
        f"amaml {name}": partial(ours, amaml.Euler(0.01), backend, job) for name, backend in backends().items()
    }
    cases |= {name: partial(peer, job) for name, peer in _eager_peers(quick).items()}
    return _compared(job, cases, exact, quick, jax_tolerance=None)


def flow(start: Start, length: float, quick: bool) -> dict[str, Any]:
    """The flow's gradient: ours at the loosest tolerance that reaches 1e-3 on these tasks, peers as they are."""
    job = work(start, 0.05 if quick else length, tasks=2 if quick else 16)
    exact = job.reference().mean(dim=0)
    solvers = {kind.__name__.lower(): _loosest(kind, job, exact) for kind in (amaml.Dopri5, amaml.Bosh3)}
    cases: dict[str, Callable[[], Tensor]] = {
        f"amaml {name}, {kind} {solver.rtol:g}": partial(ours, solver, backend, job)
        for name, backend in backends().items()
        for kind, solver in solvers.items()
    }
    long = length > 2.0
    # Fixed steps cost the same from every θ, so for the long trajectory the peers run from one θ only.
    peers_too = {} if start == "random" and long else _eager_peers(quick)
    cases |= {name: partial(peer, job) for name, peer in peers_too.items()}
    return {**_compared(job, cases, exact, quick, jax_tolerance=1e-5, slow=long), "length": length}


def _loosest(kind: type[amaml.Dopri5 | amaml.Bosh3], job: Work, exact: Tensor) -> amaml.Dopri5 | amaml.Bosh3:
    return next(solver for solver in map(kind, TOLERANCES) if error(flat(job.solve(solver).grad), exact) < TARGET)


def _eager_peers(quick: bool) -> dict[str, peers.Peer]:
    """The peers; in quick mode only those that need no package except PyTorch."""
    if quick:
        return {"create_graph": peers.create_graph, "vmapped": peers.vmapped, "authors": peers.authors}
    return {**peers.GRAPH_BASED, "vmapped": peers.vmapped, "authors": peers.authors}


def _compared(
    job: Work,
    cases: dict[str, Callable[[], Tensor]],
    exact: Tensor,
    quick: bool,
    *,
    jax_tolerance: float | None,
    slow: bool = False,
) -> dict[str, Any]:
    """Seconds and errors of all, ratios to ours. `slow`: peers once, without a run before."""
    if quick:
        return _summary(in_turn(cases, repeats=1, budget=1.0, warm=False), exact)
    name = "jax scan of Euler" if jax_tolerance is None else f"diffrax, tol {jax_tolerance:g}"
    with peers.JaxPeer(job, jax_tolerance) as jax:
        if slow:
            fast = {name: case for name, case in cases.items() if name.startswith("amaml")}
            timings = in_turn({**fast, name: jax}, repeats=REPEATS, budget=BUDGET)
            rest = {name: case for name, case in cases.items() if name not in fast}
            timings |= in_turn(rest, repeats=1, budget=BUDGET, warm=False)
        else:
            timings = in_turn({**cases, name: jax}, repeats=REPEATS, budget=BUDGET)
        return {**_summary(timings, exact), "jax_compile_seconds": jax.compile_seconds, "jax": jax.versions}


def _summary(timings: dict[str, Timing], exact: Tensor) -> dict[str, Any]:
    rows = {name: {**timing.summary(), "error": error(timing.value, exact)} for name, timing in timings.items()}
    for row in rows.values():
        if row["error"] != row["error"] or row["error"] == float("inf"):
            row["error"] = "not finite"
    graph = [name for name in rows if name in peers.GRAPH_BASED]
    best = min(graph, key=lambda name: rows[name]["seconds"], default=None)
    others = [name for name in rows if not name.startswith("amaml")]
    ratios = {
        mine: {other: rows[other]["seconds"] / rows[mine]["seconds"] for other in others}
        for mine in rows
        if mine.startswith("amaml")
    }
    return {"rows": rows, "best_graph_based": best, "ratios": ratios}


def thread_scaling(quick: bool) -> dict[str, Any]:
    """The same problem on one thread and on two, in turn."""
    job = work("trained", 0.05 if quick else 2.0, tasks=2 if quick else 16)
    solvers = {"euler .01": amaml.Euler(0.01), "dopri5 1e-5": amaml.Dopri5(rtol=1e-5, atol=1e-5)}

    def with_threads(count: int, case: Callable[[], Tensor]) -> Tensor:
        with threads(count):
            return case()

    cases = {
        f"{solver}, {backend}, {count}": partial(with_threads, count, partial(ours, solvers[solver], how, job))
        for solver in solvers
        for backend, how in backends().items()
        for count in (1, 2)
    }
    timings = in_turn(cases, repeats=1 if quick else REPEATS, budget=BUDGET)
    rows = {name: timing.summary() for name, timing in timings.items()}
    pairs = {name.removesuffix(", 1") for name in rows if name.endswith(", 1")}
    return {
        "rows": rows,
        "speedup": {p: rows[f"{p}, 1"]["seconds"] / rows[f"{p}, 2"]["seconds"] for p in sorted(pairs)},
    }


def main(run: Run) -> None:
    begin = time.perf_counter()
    starts: tuple[Start, ...] = ("trained",) if run.quick else ("trained", "random")
    lengths = (2.0,) if run.quick else (2.0, 20.0)
    results = {
        "exact_maml": {start: exact_maml(start, run.quick) for start in starts},
        "flow": {f"{start}, T={length:g}": flow(start, length, run.quick) for start in starts for length in lengths},
        "threads": thread_scaling(run.quick),
    }
    results["seconds_altogether"] = time.perf_counter() - begin
    run.write(results)
    for title, part in chain(results["exact_maml"].items(), results["flow"].items()):
        for name, row in part["rows"].items():
            print(f"{title:18} {name:30} {1e3 * row['seconds']:10.1f} ms   error {row['error']:.1e}")


if __name__ == "__main__":
    main(arguments("speed"))
