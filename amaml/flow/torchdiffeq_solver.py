"""The forward solve by torchdiffeq, which keeps the autograd graph where an adjoint follows.

The field is an autograd function whose backward pass is a Hessian-vector product; its argument is the stage's cotangent k̄.
Memory grows with the number of steps; the solvers of `amaml.flow.solvers` don't need that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self

import torch
import torchdiffeq
from torch import Tensor

from amaml.flow.field import GradientFlow
from amaml.flow.guard import PowerIteration
from amaml.flow.result import Failure, Result, SolveError, raise_where
from amaml.flow.snapshots import Snapshots
from amaml.flow.solve import fixed_steps
from amaml.flow.solvers import require_positive
from amaml.flow.trajectory import Solution, largest_step

ESTIMATES = 16
"""The number of estimates of λmax in each interval between horizons."""
_FIXED = {
    "euler": 2.0, "midpoint": 2.0, "heun2": 2.0, "heun3": 2.51, "rk4": 2.785, "explicit_adams": 0.3, "implicit_adams": 1.28,
}  # fmt: skip
_ADAPTIVE = {"dopri8": 2.0, "dopri5": 2.0, "bosh3": 1.5, "adaptive_heun": 1.5, "fehlberg2": 1.5}


@dataclass
class GraphSolution(Solution):
    """A solution with the autograd graph of every interval between horizons."""

    intervals: list[tuple[Tensor, Tensor]]
    """u before and after each interval."""
    visit: list[Callable[[Tensor, Tensor], None]]
    """Functions that backpropagation calls with (u, k̄) of every stage; the list is empty at first."""


class _Field(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, flow: GradientFlow, visit: list[Callable[[Tensor, Tensor], None]]) -> Tensor:
        ctx.save_for_backward(u)
        ctx.flow, ctx.visit = flow, visit
        return flow(u)

    @staticmethod
    def backward(ctx: Any, weighted: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        with torch.no_grad():
            for visit in ctx.visit:
                visit(u, weighted)
            return ctx.flow.jacobian_transposed(u, weighted), None, None


@dataclass(frozen=True)
class TorchDiffEq:
    """A solver of torchdiffeq by its name there. The whole batch has one step size, and the gradient is backpropagated through
    the solver's autograd graph.

    Give `step` for a fixed-step method, `rtol` and `atol` for an adaptive one.
    """

    method: str
    rtol: float = 1e-6
    atol: float = 1e-6
    step: float | None = None
    guard: bool | None = None
    adjoint: ClassVar[Literal["discrete", "interpolated", "graph"]] = "graph"

    def __post_init__(self) -> None:
        if self.method not in {**_FIXED, **_ADAPTIVE}:
            raise ValueError(
                f"method {self.method!r} is unknown: choose one of {', '.join(sorted({**_FIXED, **_ADAPTIVE}))}"
            )
        if (self.method in _FIXED) != (self.step is not None):
            remedy = "give it a step" if self.method in _FIXED else "give it rtol and atol, and no step"
            raise ValueError(f"torchdiffeq's {self.method} is {'a fixed-step' if self.method in _FIXED else 'an adaptive'} "
                             f"method: {remedy}")  # fmt: skip
        require_positive("rtol", self.rtol)
        require_positive("atol", self.atol)
        if self.step is not None:
            require_positive("step", self.step)

    @property
    def fixed(self) -> bool:
        return self.step is not None

    def guarded(self, guard: bool) -> Self:
        return replace(self, guard=guard)

    def steps(self, horizons: list[float]) -> list[int] | None:
        return None if self.step is None else [count for count, _ in fixed_steps(horizons, self.step)]

    def solve(
        self, field: GradientFlow, batch: int, horizons: list[float], snapshots: Snapshots | None = None
    ) -> GraphSolution:
        u = field.theta.expand(batch, -1).clone()
        solve = _Solve(self, field, u)
        options = solve.guarded_options(u, horizons) if self.guard is not False else solve.options(float("inf"))
        graph, intervals = snapshots is not None, []
        for start, end in pairwise([0.0, *horizons]):
            before = u.detach().requires_grad_(graph)
            with torch.set_grad_enabled(graph):
                u = solve.odeint(before, [start, end], options)[-1]
            intervals.append((before, u))
        unknown = torch.full((batch,), -1, device=u.device)
        ends = [after.detach() for _, after in intervals]
        return GraphSolution(ends, unknown, unknown, solve.lambda_max, intervals, solve.visit)

    @property
    def stability(self) -> float:
        """Cap on h·λmax: for an adaptive method kept by its `max_step`, for a fixed-step one a limit that fails the solve."""
        return {**_FIXED, **_ADAPTIVE}[self.method]


class _Solve:
    """Calls of torchdiffeq for one problem."""

    def __init__(self, solver: TorchDiffEq, flow: GradientFlow, u: Tensor) -> None:
        self.solver, self.flow = solver, flow
        self.lambda_max = u.new_full((len(u),), float("nan"))
        self.visit: list[Callable[[Tensor, Tensor], None]] = []

    def odeint(self, u: Tensor, times: list[float], options: dict[str, Any]) -> Tensor:
        """u at the times [len(times), B, P]."""
        solver = self.solver
        t = torch.tensor(times, dtype=u.dtype if solver.fixed else torch.float64, device=u.device)

        def field(_: Tensor, v: Tensor) -> Tensor:
            out: Tensor = _Field.apply(v, self.flow, self.visit)  # type: ignore[no-untyped-call]
            return out

        try:
            out: Tensor = torchdiffeq.odeint(
                field, u, t, rtol=solver.rtol, atol=solver.atol, method=solver.method, options=options
            )
        except AssertionError as error:  # torchdiffeq reports underflow and states that aren't finite by assertions
            code = Result.STEP_UNDERFLOW if "underflow" in str(error) else Result.NON_FINITE
            raise SolveError([Failure(code, 0, times[0])]) from error
        raise_where(~out[-1].detach().isfinite().all(dim=1), Result.NON_FINITE, times[-1])
        return out

    def options(self, longest: float) -> dict[str, Any]:
        step = self.solver.step
        if step is None:
            return {"max_step": longest, "dtype": torch.float64}

        def grid(_: Any, __: Tensor, t: Tensor) -> Tensor:
            interval = float(t[-1] - t[0])
            count = max(1, round(interval / step))
            return torch.linspace(float(t[0]), float(t[-1]), count + 1, dtype=t.dtype, device=t.device)

        return {"grid_constructor": grid}

    def guarded_options(self, u: Tensor, horizons: list[float]) -> dict[str, Any]:
        """A first solve without a graph estimates λmax along the trajectory; the largest estimate caps all steps of the batch."""
        power = PowerIteration(self.flow, u)
        self.lambda_max = power.lambda_max
        self._check_fixed_step(0.0, horizons)
        for start, end in pairwise([0.0, *horizons]):
            times = [start + (end - start) * i / ESTIMATES for i in range(ESTIMATES + 1)]
            path = self.odeint(u, [start, end] if self.solver.fixed else times, self.options(float("inf")))
            for state in path[1:]:
                power.follow(*power.iterate(self.flow, state), None)
                self.lambda_max = torch.maximum(self.lambda_max, power.lambda_max)
            u = path[-1]
        self._check_fixed_step(horizons[-1], horizons)
        stiffest = float(self.lambda_max.max())
        return self.options(self.solver.stability / stiffest if stiffest else float("inf"))

    def _check_fixed_step(self, t: float, horizons: list[float]) -> None:
        if self.solver.step is not None:
            limit, product = self.solver.stability, self.solver.step * self.lambda_max
            bound = largest_step(horizons, self.lambda_max, limit)
            raise_where(~(product <= limit), Result.STABILITY_LIMIT, t, product, bound)
