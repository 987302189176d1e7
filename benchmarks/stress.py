"""A thousand random problems, of kinds that are known to mislead solvers: is any gradient silently wrong?

Each is solved with a certificate. The result is either an error, or a gradient, which is compared for every task with a reference
that shares no code with the engine (`benchmarks.stress_problems`). A gradient is silently wrong if it is further from the
reference than ten times its certificate (and the reference's own error).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

import amaml
from benchmarks.record import Run, arguments
from benchmarks.stress_problems import KINDS, drawn
from benchmarks.stress_problems.problem import StressProblem, flat

PROBLEMS = 1_000
MARGIN = 10


def judged(problem: StressProblem) -> dict[str, Any]:
    """The engine's answer, and for each task its error relative to its certificate."""
    try:
        answer = amaml.meta_gradient(problem.params, *problem.losses, problem.tasks, **problem.question, certify=True)
    except amaml.SolveError as error:
        return {"outcome": error.failures[0].code.name.lower(), "sentence": str(error)}
    except ValueError as error:
        return {"outcome": "refused", "sentence": str(error)}
    assert answer.certificate is not None
    admitted = answer.certificate.error.tolist()
    errors, beyond = [0.0], [0.0]
    outcome = "within its certificate" if all(map(math.isfinite, admitted)) else "certificate unknown"
    for task, gradient in enumerate(flat(answer.per_task, axes=1).double()):
        exact = problem.reference(task)
        if exact is None:
            outcome = "no reference" if math.isfinite(admitted[task]) else outcome
            continue
        errors.append(distance(gradient, exact))
        if math.isfinite(admitted[task]):
            beyond.append(errors[-1] / (MARGIN * admitted[task] + problem.reference_error))
    if max(beyond) > 1:
        outcome = "silently wrong"
    return {
        "outcome": outcome,
        "sentence": next((reason for reason in answer.certificate.reasons if reason is not None), ""),
        "largest_error": _number(max(errors)),
        "largest_certificate": _number(max(admitted)),
        "beyond": max(beyond),
    }


def _number(value: float) -> float | None:
    """The number for JSON; None for infinity, which JSON doesn't have."""
    return value if math.isfinite(value) else None


def distance(gradient: Tensor, exact: Tensor) -> float:
    """The relative distance; infinite from 0, unless both are 0."""
    if not exact.any():
        return math.inf if gradient.any() else 0.0
    return float((gradient - exact).norm() / exact.norm())


def row_of(number: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    problem = drawn(number)
    solver, adjoint = problem.question["solver"], problem.question.get("adjoint")
    rtol = solver.rtol if isinstance(adjoint, amaml.Interpolated) else None
    return {"problem": number, **problem.facts, "rtol_of_lambda": rtol, **judged(problem)}


def kinds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each kind: the results of its problems, and the median certificate of gradients with error control on λ, in
    units of their rtol (None: there was none)."""
    lines = []
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind]
        certified = [
            row["largest_certificate"] / row["rtol_of_lambda"]
            for row in own
            if row["rtol_of_lambda"] is not None and row.get("largest_certificate") is not None
        ]
        lines.append({
            "kind": kind,
            "outcomes": dict(Counter(row["outcome"] for row in own)),
            "certified": len(certified),
            "median_certificate_over_rtol": statistics.median(certified) if certified else None,
        })  # fmt: skip
    return lines


def main(run: Run) -> None:
    count = len(KINDS) if run.quick else PROBLEMS
    # Fresh processes: those forked from one that has used PyTorch's threads can hang.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
        rows = list(workers.map(row_of, range(count)))
    outcomes = Counter(row["outcome"] for row in rows)
    run.write({"outcomes": dict(outcomes), "kinds": kinds(rows), "rows": rows})
    for outcome, count in outcomes.most_common():
        print(f"{outcome:26} {count}")


if __name__ == "__main__":
    main(arguments("stress"))
