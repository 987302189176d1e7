"""A meta-gradient by the compiled kernel, where there is one and it can solve the problem."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise

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
from amaml.flow.tableau import Tableau
from amaml.flow.trajectory import Solution
from amaml.kernel.cuda import CudaKernel
from amaml.kernel.library import Kernel, kernel
from amaml.kernel.problem import ACTIVATIONS, KernelProblem
from amaml.methods.estimate import Stats
from amaml.methods.problem import Answer, GradientProblem
from amaml.models.mlp.derivatives import MLPDerivatives

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64}
_ROOM, _MORE_ROOM = 4096, 8
"""The number of adaptive steps for which a GPU block has room at first, and its factor of growth when a task needs more."""
_NO_ROOM = 100
"""The code of a task that needed more steps than there was room for."""


def solve(problem: GradientProblem, wanted: AbstractSet[Wanted]) -> Answer | None:
    """The answer; None where the batched path has to compute it. Raises SolveError for tasks that can't be solved."""
    asked = _ask(problem, wanted, backward=True)
    return None if asked is None else asked.answer()


def carry(problem: GradientProblem) -> tuple[Solution, Evaluations] | None:
    """The forward solve alone, with its numbers of evaluations; None where the batched path has to compute it. Raises as
    `solve`."""
    asked = _ask(problem, frozenset(), backward=False)
    return None if asked is None else asked.carried()


def _ask(problem: GradientProblem, wanted: AbstractSet[Wanted], *, backward: bool) -> _Solve | None:
    found = kernel(problem.theta.device)
    derivatives, solver, adjoint = problem.derivatives, problem.solver, problem.adjoint
    if (
        found is None
        or type(derivatives) is not MLPDerivatives
        or not isinstance(solver, FixedStep | Adaptive)
        or not isinstance(adjoint, Discrete | Interpolated)
        or (isinstance(adjoint, Interpolated) and not (adjoint.controlled and isinstance(solver, Adaptive)))
        or 0 in (*derivatives.support[0].shape, *derivatives.query_set[0].shape)
    ):
        return None
    asked = _Solve(found, problem, derivatives, solver, adjoint, wanted, backward=backward)
    return asked if asked.fits() else None


def _check_sizes(problem: GradientProblem, derivatives: MLPDerivatives) -> None:
    """Raises ValueError where an array's shape doesn't follow from the widths, from which the kernel computes all lengths."""
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
    """One call of the kernel; it holds the tensors that the structure's pointers point to."""

    def __init__(
        self,
        found: Kernel | CudaKernel,
        problem: GradientProblem,
        derivatives: MLPDerivatives,
        solver: FixedStep | Adaptive,
        adjoint: Discrete | Interpolated,
        wanted: AbstractSet[Wanted],
        *,
        backward: bool,
    ) -> None:
        _check_sizes(problem, derivatives)
        self.problem, self.wanted, self._found = problem, wanted, found
        self.widths = derivatives.widths
        self._alive: dict[str, Tensor] = {}
        self._lists: dict[str, Tensor] = {}
        self._steps = 0
        tableau = solver.tableau
        self.c = KernelProblem(
            layers=len(derivatives.widths) - 1,
            activation=ACTIVATIONS.index(derivatives.activation),
            batch=problem.batch,
            parameters=len(problem.theta),
            support_points=derivatives.support[0].shape[1],
            query_points=derivatives.query_set[0].shape[1],
            horizons=len(problem.horizons),
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
        self._give_steps(solver)
        self._give_problem(derivatives, tableau)
        self._give_room_for_results()
        self._place()

    def _give_steps(self, solver: FixedStep | Adaptive) -> None:
        """The tolerances of an adaptive solver, or the numbers and sizes of fixed steps."""
        horizons, sizes = self.problem.horizons, self.problem.sizes
        if isinstance(solver, Adaptive):
            self.c.rtol, self.c.atol, self.c.max_steps = solver.rtol, solver.atol, solver.max_steps
            self.c.room = min(len(horizons) * solver.max_steps, _ROOM)
            self._hold("scales", scales(self.problem.theta, sizes))
            self._numbers("error", solver.tableau.error or ())
            if solver.tableau.midpoint is not None:
                self._numbers("midpoint", solver.tableau.midpoint)
        else:
            counts, steps = zip(*fixed_steps(horizons, solver.step), strict=True)
            self._integers("counts", counts)
            self._numbers("steps", steps)
            self._steps = sum(counts)

    def _give_problem(self, derivatives: MLPDerivatives, tableau: Tableau) -> None:
        """Everything else that the kernel reads: the network's shape, horizons, the tableau, θ, rates and the tasks."""
        problem, theta = self.problem, self.problem.theta
        self._integers("widths", derivatives.widths)
        self._integers("sizes", problem.sizes)
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

    def _give_room_for_results(self) -> None:
        """Arrays of zeros, to which the kernel adds or writes."""
        dtype = self.problem.theta.dtype
        batch, horizons, parameters = self.problem.batch, len(self.problem.horizons), len(self.problem.theta)
        self._results("ends", dtype, batch, horizons, parameters)
        for name in ("gradients", "through_theta", "by_rates"):
            self._results(name, dtype, batch, parameters)
        for name in ("by_length", "losses"):
            self._results(name, dtype, batch, horizons)
        for name in ("by_proximal", "lambda_max"):
            self._results(name, dtype, batch)
        for name in ("accepted", "rejected", "gradient_count", "hvp_count", "code"):
            self._results(name, torch.int64, batch)
        for name in ("failed_at", "value", "bound"):
            self._results(name, torch.float64, batch)

    def _integers(self, name: str, values: Sequence[int]) -> None:
        self._lists[name] = torch.tensor(values, dtype=torch.int64, device="cpu")

    def _numbers(self, name: str, values: Sequence[float]) -> None:
        self._lists[name] = torch.tensor(values, dtype=torch.float64, device="cpu")

    def _place(self) -> None:
        """Copies the lists to the kernel's device as one array, since on a GPU each copy costs about the same."""
        together = torch.cat([values.view(torch.int64) for values in self._lists.values()])
        together = self._alive["lists"] = together.to(self.problem.theta.device)
        at = together.data_ptr()
        for name, values in self._lists.items():
            setattr(self.c, name, at)
            at += values.nbytes

    def _results(self, name: str, dtype: torch.dtype, *shape: int) -> None:
        device = self.problem.theta.device
        if device.type == "cpu":
            # The system gives NumPy memory of zeros without writing it; torch.zeros would start PyTorch's threads to write it.
            self._hold(name, torch.from_numpy(np.zeros(shape, _NUMPY[dtype])))
        else:
            self._hold(name, torch.zeros(shape, dtype=dtype, device=device))

    def _hold(self, name: str, tensor: Tensor) -> None:
        self._alive[name] = tensor = tensor.detach().contiguous()
        setattr(self.c, name, tensor.data_ptr())

    def fits(self) -> bool:
        """Whether the kernel has enough memory for this network and these points."""
        return self._found.fits(self.c, self.problem.theta.dtype, self.widths, self._steps)

    def carried(self) -> tuple[Solution, Evaluations]:
        self._run()
        out = self._alive
        solution = Solution(list(out["ends"].unbind(dim=1)), out["accepted"], out["rejected"], out["lambda_max"])
        return solution, Evaluations(out["gradient_count"], out["hvp_count"])

    def _run(self) -> None:
        self._found.run(self.c, self.problem.theta.dtype, self.widths, self._steps)
        code = self._alive["code"].cpu()
        while bool((code == _NO_ROOM).any()):
            self.c.room *= _MORE_ROOM
            for name in ("gradients", "through_theta", "by_rates", "code"):  # the results that the kernel adds to
                self._alive[name].zero_()
            self._found.run(self.c, self.problem.theta.dtype, self.widths, self._steps)
            code = self._alive["code"].cpu()
        failed = torch.nonzero(code).flatten().tolist()
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
        """dJ/dT_k [B, K]; for fixed steps, the derivative holds the number of steps of each interval constant."""
        by_length = self._alive["by_length"]
        if not discrete:
            return by_length
        if "length" not in self.wanted:
            return None
        times = by_length.new_tensor(self.problem.horizons)
        by_interval = by_length / torch.diff(times, prepend=times.new_zeros(1))
        return by_interval - torch.cat([by_interval[:, 1:], torch.zeros_like(by_interval[:, :1])], dim=1)
