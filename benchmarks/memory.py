"""The growth of the process by a meta-gradient: the peak of resident memory (VmHWM, reset by writing 5 to
/proc/self/clear_refs) over the resident baseline, each kind in a fresh process, after a short run, shorter ones first.

16 tasks, trained θ, float32; a graph-based peer holds one task's trajectory at a time. Linux alone.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import amaml
from amaml.adjoint.protocol import Adjoint
from amaml.flow.solvers import Solver
from benchmarks import peers
from benchmarks.record import Run, arguments, backends
from benchmarks.workload import STEP, Work, work

MB = 2**20


def growth(solve: Callable[[], object]) -> float:
    """Megabytes (2²⁰ bytes) between the resident memory before and the peak during the call."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    solve()
    return (_status("VmHWM") - before) / MB


def _status(name: str) -> int:
    """Bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


SOLVES: dict[str, Callable[[int | None], tuple[Solver, Adjoint]]] = {
    "euler": lambda checkpoints: (amaml.Euler(STEP), amaml.Discrete(checkpoints)),
    "dopri5 1e-5, interpolated": lambda checkpoints: (amaml.Dopri5(1e-5), amaml.Interpolated(checkpoints=checkpoints)),
    "dopri5 1e-5, discrete": lambda checkpoints: (amaml.Dopri5(1e-5), amaml.Discrete(checkpoints)),
}


def of_one_kind(kind: str, solver: str, checkpoints: int | None, lengths: list[int], tasks: int) -> list[float]:
    """The growth of this process by a meta-gradient over each number of steps of .01 in turn."""

    def solve(steps: int) -> Callable[[], object]:
        job = work("trained", steps * STEP, tasks=tasks)
        if kind == "create_graph":
            return partial(peers.create_graph, job)
        return partial(_ours, kind, SOLVES[solver](checkpoints), job)

    solve(4)()
    return [growth(solve(steps)) for steps in lengths]


def _ours(backend: str, how: tuple[Solver, Adjoint], job: Work) -> object:
    with backends()[backend]():
        return job.solve(*how)


def main(run: Run) -> None:
    lengths = [20, 40] if run.quick else [200, 2_000, 20_000]
    kinds: list[tuple[str, str, int | None, list[int], int]] = [
        (backend, solver, checkpoints, lengths if solver == "euler" else lengths[:2], 2 if run.quick else 16)
        for backend in backends()
        for solver in SOLVES
        for checkpoints in ((None,) if run.quick else (None, 32))
    ]
    kinds.append(("create_graph", "euler", None, lengths[:2], 1))
    rows = []
    for kind in kinds:
        command = [sys.executable, "-m", "benchmarks.memory", "--one", json.dumps(kind)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        grown = json.loads(done.stdout)
        name, solver, checkpoints, steps, tasks = kind
        rows.append({"case": name, "solver": solver, "checkpoints": checkpoints, "tasks": tasks, "steps": steps,
                     "megabytes": grown, "longest_over_shortest": grown[-1] / max(grown[0], 0.01)})  # fmt: skip
        print(rows[-1], flush=True)
    run.write({"rows": rows})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(of_one_kind(*json.loads(sys.argv[2]))))
    else:
        main(arguments("memory"))
