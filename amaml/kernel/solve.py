"""A meta-gradient by the compiled kernel, where there is one and the problem is of its kind."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amaml.adjoint.discrete import Discrete
from amaml.adjoint.interpolated import Interpolated
from amaml.adjoint.sensitivity import Wanted
from amaml.flow.field import Evaluations
from amaml.flow.guard import start_vector
from amaml.flow.norms import scales
from amaml.flow.result import Failure, Result, SolveError
from amaml.flow.solve import fixed_steps
from amaml.flow.solvers import Adaptive, FixedStep
from amaml.flow.trajectory import Solution
from amaml.kernel.library import Kernel, KernelProblem, kernel
from amaml.methods.estimate import Stats
from amaml.methods.problem import Answer, Problem
from amaml.models.mlp_derivatives import MLPDerivatives

_ACTIVATIONS = ("tanh", "sigmoid", "softplus", "relu")
"""In the order of mlp_flow.cpp's enumeration."""
_OUT_OF_MEMORY, _INCONSISTENT = 1, 2
"""What the kernel returns where it solved nothing."""


def solve(problem: Problem, wanted: AbstractSet[Wanted]) -> Answer | None:
    """The answer, or None where the batched path has to give it. Raises SolveError for tasks that can't be solved."""
    asked = _ask(problem, wanted, backward=True)
    return None if asked is None else asked.answer()


def carry(problem: Problem) -> tuple[Solution, Evaluations] | None:
    """The forward solve alone, and what it evaluated; as `solve`."""
    asked = _ask(problem, frozenset(), backward=False)
    return None if asked is None else asked.carried()


def _ask(problem: Problem, wanted: AbstractSet[Wanted], *, backward: bool) -> _Solve | None:
    found = kernel()
    derivatives, solver, adjoint = problem.derivatives, problem.solver, problem.adjoint
    if (
        found is None
        or type(derivatives) is not MLPDerivatives
        or not isinstance(solver, FixedStep | Adaptive)
        or not isinstance(adjoint, Discrete | Interpolated)
        or (isinstance(adjoint, Interpolated) and not (adjoint.controlled and isinstance(solver, Adaptive)))
        or problem.theta.device.type != "cpu"
        or 0 in (*derivatives.support[0].shape, *derivatives.query_set[0].shape)
    ):
        return None
    return _Solve(found, problem, derivatives, solver, adjoint, wanted, backward=backward)


def _check_sizes(problem: Problem, derivatives: MLPDerivatives) -> None:
    """Raises ValueError where an array isn't as long as the kernel would read: it takes all lengths from the widths."""
    widths, batch = derivatives.widths, problem.batch
    parameters = sum((inputs + 1) * outputs for inputs, outputs in pairwise(widths))
    rates = problem.theta if problem.rates is None else problem.rates
    for name, tensor in (("theta", problem.theta), ("rates", rates)):
        if tensor.shape != (parameters,):
            raise ValueError(f"{name} has shape {list(tensor.shape)}, but widths {list(widths)} need [{parameters}]")
    for name, (x, y) in (("support", derivatives.support), ("query", derivatives.query_set)):
        needed = (batch, x.shape[1], widths[0]), (batch, x.shape[1], widths[-1])
        if (x.shape, y.shape) != needed:
            raise ValueError(
                f"{name}_x and {name}_y have shapes {list(x.shape)} and {list(y.shape)}, but {batch} tasks of a network of "
                f"widths {list(widths)} need {list(needed[0])} and {list(needed[1])}"
            )


class _Solve:
    """One call of the kernel: keeps alive what the pointers point to."""

    def __init__(
        self,
        found: Kernel,
        problem: Problem,
        derivatives: MLPDerivatives,
        solver: FixedStep | Adaptive,
        adjoint: Discrete | Interpolated,
        wanted: AbstractSet[Wanted],
        *,
        backward: bool,
    ) -> None:
        _check_sizes(problem, derivatives)
        self.problem, self.wanted, self._found = problem, wanted, found
        self._alive: dict[str, Tensor] = {}
        tableau, theta = solver.tableau, problem.theta
        batch, parameters, horizons = problem.batch, len(theta), len(problem.horizons)
        self.c = KernelProblem(
            layers=len(derivatives.widths) - 1,
            activation=_ACTIVATIONS.index(derivatives.activation),
            batch=batch,
            parameters=parameters,
            support_points=derivatives.support[0].shape[1],
            query_points=derivatives.query_set[0].shape[1],
            horizons=horizons,
            threads=torch.get_num_threads(),
            stages=tableau.stages,
            order=tableau.order,
            adaptive=isinstance(solver, Adaptive),
            guard=bool(solver.guard),
            checkpoints=-1 if adjoint.checkpoints is None else adjoint.checkpoints,
            controlled=adjoint.controlled,
            tensors=len(problem.sizes),
            backward=backward,
            proximal_in_query=problem.proximal_in_query,
            want_length="length" in wanted,
            want_rates="rates" in wanted,
            want_proximal="proximal" in wanted,
            proximal=problem.proximal,
            stability_limit=tableau.stability_limit,
            step_cap=tableau.guard,
        )
        if isinstance(solver, Adaptive):
            self.c.rtol, self.c.atol, self.c.max_steps = solver.rtol, solver.atol, solver.max_steps
            self._numbers("error", tableau.error or ())
            if tableau.midpoint is not None:
                self._numbers("midpoint", tableau.midpoint)
        else:
            counts, steps = zip(*fixed_steps(problem.horizons, solver.step), strict=True)
            self._hold("counts", torch.tensor(counts, dtype=torch.int64, device="cpu"))
            self._numbers("steps", steps)
        self._hold("widths", torch.tensor(derivatives.widths, dtype=torch.int64, device="cpu"))
        self._hold("sizes", torch.tensor(problem.sizes, dtype=torch.int64, device="cpu"))
        self._hold("scales", scales(theta, problem.sizes))
        self._numbers("times", problem.horizons)
        self._numbers("weights", problem.weights)
        self._numbers("a", [weight for row in tableau.a for weight in row])
        self._numbers("b", tableau.b)
        self._hold("theta", theta)
        if problem.rates is not None:
            self._hold("rates", problem.rates)
        self._hold("power_start", start_vector(theta))
        for name, pair in (("support", derivatives.support), ("query", derivatives.query_set)):
            for axis, tensor in zip("xy", pair, strict=True):
                self._hold(f"{name}_{axis}", tensor.to(theta.dtype))
        self._results("ends", theta.numpy().dtype, batch, horizons, parameters)
        for name in ("gradients", "through_theta", "by_rates"):
            self._results(name, theta.numpy().dtype, batch, parameters)
        for name in ("by_length", "losses"):
            self._results(name, theta.numpy().dtype, batch, horizons)
        for name in ("by_proximal", "lambda_max"):
            self._results(name, theta.numpy().dtype, batch)
        for name in ("accepted", "rejected", "gradient_count", "hvp_count", "code"):
            self._results(name, np.dtype(np.int64), batch)
        for name in ("failed_at", "value", "bound"):
            self._results(name, np.dtype(np.float64), batch)

    def _numbers(self, name: str, values: Sequence[float]) -> None:
        self._hold(name, torch.tensor(values, dtype=torch.float64, device="cpu"))

    def _results(self, name: str, dtype: np.dtype[Any], *shape: int) -> None:
        # NumPy's zeros come from the system untouched; torch's would wake its own threads to write them.
        self._hold(name, torch.from_numpy(np.zeros(shape, dtype)))

    def _hold(self, name: str, tensor: Tensor) -> None:
        self._alive[name] = tensor = tensor.detach().contiguous()
        setattr(self.c, name, tensor.data_ptr())

    def carried(self) -> tuple[Solution, Evaluations]:
        self._run()
        out = self._alive
        solution = Solution(list(out["ends"].unbind(dim=1)), out["accepted"], out["rejected"], out["lambda_max"])
        return solution, Evaluations(out["gradient_count"], out["hvp_count"])

    def _run(self) -> None:
        double = self.problem.theta.dtype == torch.float64
        library = self._found.library
        ended = (library.amaml_solve_float64 if double else library.amaml_solve_float32)(ctypes.byref(self.c))
        if ended == _OUT_OF_MEMORY:
            raise MemoryError(
                "the kernel ran out of memory: fewer threads, a smaller network or checkpoints=k need less"
            )
        if ended == _INCONSISTENT:
            raise ValueError("the kernel was handed sizes that aren't its network's: call it by amaml.meta_gradient")
        failed = torch.nonzero(self._alive["code"]).flatten().tolist()
        if failed:
            raise SolveError([self._failure(task) for task in failed])

    def answer(self) -> Answer:
        solution, evaluations = self.carried()
        out, target = self._alive, self.problem.target
        return Answer(
            gradients=out["gradients"],
            losses=out["losses"],
            adapted=solution.ends[-1],
            stats=Stats.of(solution, evaluations, target),
            length=self._length(discrete=target == "discrete"),
            rates=out["by_rates"] if "rates" in self.wanted else None,
            proximal=out["by_proximal"] if "proximal" in self.wanted else None,
        )

    def _failure(self, task: int) -> Failure:
        time, value, bound = (float(self._alive[name][task]) for name in ("failed_at", "value", "bound"))
        return Failure(Result(int(self._alive["code"][task])), task, time, value, bound)

    def _length(self, *, discrete: bool) -> Tensor | None:
        """dJ/dT_k [B, K]; for equal steps an interval's h is its length over a fixed N."""
        by_length = self._alive["by_length"]
        if not discrete:
            return by_length
        if "length" not in self.wanted:
            return None
        times = by_length.new_tensor(self.problem.horizons)
        by_interval = by_length / torch.diff(times, prepend=times.new_zeros(1))
        return by_interval - torch.cat([by_interval[:, 1:], torch.zeros_like(by_interval[:, :1])], dim=1)
