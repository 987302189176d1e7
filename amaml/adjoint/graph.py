"""Solvers of torchdiffeq by their names: the discrete adjoint by the graph that torchdiffeq itself leaves.

Only the field is ours: its backward pass is an HVP, and what arrives there is the stage's weighted adjoint k̄. Memory
grows with the number of steps; for the solvers written here use `Discrete`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torchdiffeq
from torch import Tensor

from amaml.adjoint.sensitivity import Sensitivity
from amaml.flow.field import GradientFlow
from amaml.flow.guard import PowerIteration
from amaml.flow.result import Failure, Result, SolveError, raise_where
from amaml.flow.solve import largest_step
from amaml.flow.solvers import TorchDiffEq

LOOKS = 16
"""Places along each stretch where λmax is estimated."""


class _Field(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, solve: GraphSolve) -> Tensor:
        ctx.save_for_backward(u)
        ctx.solve = solve
        return solve.flow(u)

    @staticmethod
    def backward(ctx: Any, weighted: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        with torch.no_grad():
            solve: GraphSolve = ctx.solve
            if not solve.sensitivity.idle(solve.flow.proximal):
                solve.sensitivity.visit(solve.flow, u, weighted)
            return solve.flow.jacobian_transposed(u, weighted), None


class GraphSolve:
    """The forward solve to all horizons, its graph kept until `adjoint` is called; without `graph` it can't be."""

    def __init__(
        self, flow: GradientFlow, batch: int, horizons: list[float], solver: TorchDiffEq, *, graph: bool = True
    ) -> None:
        self.flow, self.horizons, self.solver = flow, horizons, solver
        u = flow.theta.expand(batch, -1).clone()
        self.lambda_max = u.new_full((batch,), float("nan"))
        options = self._guarded_options(u) if solver.guard else self._options(float("inf"))
        self.sensitivity = Sensitivity(u, set())
        self._stretches: list[tuple[Tensor, Tensor]] = []
        for start, end in pairwise([0.0, *horizons]):
            before = u.detach().requires_grad_(graph)
            with torch.set_grad_enabled(graph):
                u = self._odeint(before, [start, end], options)[-1]
            self._stretches.append((before, u))
        self.ends = [after.detach() for _, after in self._stretches]

    def adjoint(self, jumps: list[Tensor], sensitivity: Sensitivity) -> Tensor:
        """λ(0) [B, P]; λ jumps by `jumps[k]` at the k-th horizon."""
        self.sensitivity = sensitivity
        adjoint = torch.zeros_like(jumps[-1])
        for k, (before, after) in reversed(list(enumerate(self._stretches))):
            (adjoint,) = torch.autograd.grad(after, before, adjoint + jumps[k])
            sensitivity.close_stretch(k)
        return adjoint

    def _odeint(self, u: Tensor, times: list[float], options: dict[str, Any]) -> Tensor:
        """u at the times [len(times), B, P]."""
        solver = self.solver
        fixed = solver.step is not None
        t = torch.tensor(times, dtype=u.dtype if fixed else torch.float64, device=u.device)

        def field(_: Tensor, v: Tensor) -> Tensor:
            out: Tensor = _Field.apply(v, self)  # type: ignore[no-untyped-call]
            return out

        try:
            out: Tensor = torchdiffeq.odeint(
                field, u, t, rtol=solver.rtol, atol=solver.atol, method=solver.method, options=options
            )
        except AssertionError as error:  # torchdiffeq says underflow and non-finite states by assertions
            code = Result.STEP_UNDERFLOW if "underflow" in str(error) else Result.NON_FINITE
            raise SolveError([Failure(code, 0, times[0])]) from error
        raise_where(~out[-1].detach().isfinite().all(dim=1), Result.NON_FINITE, times[-1])
        return out

    def _options(self, longest: float) -> dict[str, Any]:
        step = self.solver.step
        if step is None:
            return {"max_step": longest, "dtype": torch.float64}

        def grid(_: Any, __: Tensor, t: Tensor) -> Tensor:
            stretch = float(t[-1] - t[0])
            count = max(1, round(stretch / step))
            return torch.linspace(float(t[0]), float(t[-1]), count + 1, dtype=t.dtype, device=t.device)

        return {"grid_constructor": grid}

    def _guarded_options(self, u: Tensor) -> dict[str, Any]:
        """A first solve without a graph finds λmax along the way; the cap is for the whole batch and the whole way."""
        power = PowerIteration(self.flow, u)
        self.lambda_max = power.lambda_max
        self._check_fixed_step(0.0)
        for start, end in pairwise([0.0, *self.horizons]):
            times = [start + (end - start) * i / LOOKS for i in range(LOOKS + 1)]
            path = self._odeint(u, times if self.solver.step is None else [start, end], self._options(float("inf")))
            for state in path[1:]:
                power.follow(*power.look(self.flow, state), None)
                self.lambda_max = torch.maximum(self.lambda_max, power.lambda_max)
            u = path[-1]
        self._check_fixed_step(self.horizons[-1])
        stiffest = float(self.lambda_max.max())
        return self._options(self.solver.stability / stiffest if stiffest else float("inf"))

    def _check_fixed_step(self, t: float) -> None:
        if self.solver.step is not None:
            limit, product = self.solver.stability, self.solver.step * self.lambda_max
            bound = largest_step(self.horizons, self.lambda_max, limit)
            raise_where(~(product <= limit), Result.STABILITY_LIMIT, t, product, bound)
