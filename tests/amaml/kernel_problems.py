"""Problems for the kernel, and the comparison of its answers. Run as a script with the path of a compiled kernel, it solves some
problems of every kind by that kernel, compares them with the batched path and prints the largest distance."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import amaml
from amaml.flow.result import SolveError
from amaml.kernel import backend, disabled, library
from tests.amaml.problems import Tensors, apart, flat, start

SOLVERS = {
    "euler": amaml.Euler(0.05),
    "heun": amaml.Heun(0.1),
    "rk4": amaml.RK4(0.2),
    "bosh3": amaml.Bosh3(1e-4),
    "dopri5": amaml.Dopri5(1e-4),
}


def regression(
    widths: list[int],
    activation: Any = "tanh",
    dtype: torch.dtype = torch.float64,
    batch: int = 3,
    points: tuple[int, int] = (10, 7),
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments of `meta_gradient` for a random regression problem of an MLP of these widths, input and output included."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = amaml.MLP(widths[0], widths[1:-1], widths[-1], activation).to(dtype)
    tasks: Tensors = {}
    for rows, count in zip(("support", "query"), points, strict=True):
        tasks[f"{rows}_x"] = torch.randn(batch, count, widths[0], generator=generator, dtype=torch.float64).to(dtype)
        tasks[f"{rows}_y"] = torch.randn(batch, count, widths[-1], generator=generator, dtype=torch.float64).to(dtype)
    support, query = amaml.regression_losses(net)
    return {"params": start(net), "support_loss": support, "query_loss": query, "tasks": tasks}


def both(**arguments: Any) -> tuple[amaml.MetaGradient, amaml.MetaGradient]:
    """The kernel's answer, on two threads, and the batched path's on one, where its small products are faster."""
    assert backend().startswith("kernel")
    torch.set_num_threads(2)
    by_kernel = amaml.meta_gradient(**arguments)
    torch.set_num_threads(1)
    with disabled():
        assert backend() == "batched"
        return by_kernel, amaml.meta_gradient(**arguments)


def distance(a: amaml.MetaGradient, b: amaml.MetaGradient, wanted: tuple[str, ...] = ()) -> float:
    """The largest relative distance between the parts of two answers; `wanted` are derivatives of the flow's own."""
    pairs = [(flat(a.per_task, 1), flat(b.per_task, 1)), (flat(a.adapted, 1), flat(b.adapted, 1)), (a.loss, b.loss)]
    pairs.append((flat(a.grad), flat(b.grad)))
    for name in wanted:
        left, right = getattr(a, name), getattr(b, name)
        pairs.append((flat(left), flat(right)) if isinstance(left, dict) else (left, right))
    return max(apart(left, right) for left, right in pairs)


def a_bit_of_everything() -> float:
    """The largest distance in float64 over solvers, activations, shapes, checkpoints and derivatives."""
    worst = 0.0
    kinds = ["tanh", "sigmoid", "relu", "softplus", "tanh"]
    shapes = [[1, 32, 32, 1], [3, 5, 2], [2, 17, 4, 9, 3], [20, 16, 100, 17], [5, 33, 1]]
    points = [(100, 30), (1, 1), (16, 17), (300, 19), (30, 128)]
    for (name, solver), kind, widths, count in zip(SOLVERS.items(), kinds, shapes, points, strict=True):
        problem = regression(widths, kind, points=count)
        rates = {key: torch.full_like(value, 0.7) for key, value in problem["params"].items()}
        adjoints: list[Any] = [amaml.Discrete(checkpoints=checkpoints) for checkpoints in (None, 3)]
        if not solver.fixed:
            adjoints += [amaml.Interpolated(checkpoints=checkpoints) for checkpoints in (None, 3)]
        for adjoint in adjoints:
            a, b = both(
                **problem, solver=solver, adjoint=adjoint, rates=rates, proximal=0.3,
                proximal_in_query=True, horizons=[(0.2, 1.0), (0.5, 0.5)], wrt=["length", "rates", "proximal"],
            )  # fmt: skip
            worst = max(worst, distance(a, b, ("length", "rates", "proximal")))
            single = {key: value.float() for key, value in problem["tasks"].items()}
            theta = {key: value.float() for key, value in problem["params"].items()}
            amaml.meta_gradient(**{**problem, "tasks": single, "params": theta}, length=0.5, solver=SOLVERS[name])
    with suppress(SolveError):  # for the search, which ends in it
        amaml.meta_gradient(**regression([1, 8, 8, 1], "relu"), length=1.0, solver=amaml.Dopri5(1e-4))
    return worst


if __name__ == "__main__":
    library.cached = lambda: Path(sys.argv[1])
    print(a_bit_of_everything())
