"""The adjoint differential equation as a problem for the integrator: its state, its error test and its integrals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from amaml.adjoint.sensitivity import Sensitivity
from amaml.flow.control import over
from amaml.flow.field import GradientFlow
from amaml.flow.result import SolveError

SHARE = 0.5
"""The share of the tolerance that the error of one step may use. It is larger than that of u, since an error of λ is an error of
the gradient, and nothing amplifies it."""
ROUNDING = 4.0
"""Errors of λ below this many units in the last place of its norm count as rounding."""


@contextmanager
def failures_in_forward_time(end: float) -> Iterator[None]:
    """Converts the times of failures of a solve in reversed time s = end − t to t."""
    try:
        yield
    except SolveError as error:
        raise SolveError([replace(failure, time=end - failure.time) for failure in error.failures]) from error


class AdjointEquation:
    """dλ/ds = (∂f/∂u)ᵀ λ in reversed time s, together with the integrals of `sensitivity`: a state [A, P + Q], λ [A, P] first.

    The error of λ is measured separately for each parameter tensor, relative to the present norm of λ's part: a contracting flow
    shrinks λ by many orders of magnitude, so an error relative to λ at the horizon would control nothing. The norm that a nearly
    vanishing part is compared with is at least `rtol` times the norm of the whole λ. The error of an integral is measured
    relative to the sum of the norms of its changes so far.
    """

    def __init__(self, field: GradientFlow, sensitivity: Sensitivity, rtol: float, lambda_max: Tensor) -> None:
        self.sensitivity, self.rtol = sensitivity, rtol
        self.lambda_max = lambda_max
        """The whole batch's estimates [B], raised to the largest ‖(∂f/∂u)ᵀλ‖/‖λ‖ of the steps: a lower bound of the stiffness."""
        self._norms, self._parameters = field.norms, len(field.theta)
        self._gone = sensitivity.total.new_zeros(len(sensitivity.total), len(sensitivity.parts))

    def state(self, adjoint: Tensor) -> Tensor:
        """The state: λ [B, P] and the integrals so far."""
        return torch.cat([adjoint, self.sensitivity.total], dim=1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """λ and the integrals."""
        return state[:, : self._parameters], state[:, self._parameters :]

    def slope(self, field: GradientFlow, u: Tensor, state: Tensor) -> Tensor:
        """The slope of the state, at u [A, P]."""
        adjoint, _ = self.split(state)
        slope = field.jacobian_transposed(u, adjoint)
        if self.sensitivity.idle:
            return slope
        return torch.cat([slope, self.sensitivity.integrand(field, u, adjoint)], dim=1)

    def over_tolerance(self, field: GradientFlow, error: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """See `InitialValueProblem.over_tolerance`."""
        (error, errors), (adjoint, _), (end, _) = self.split(error), self.split(before), self.split(after)
        sizes = torch.maximum(self._norms(adjoint), self._norms(end))
        whole = sizes.norm(dim=1, keepdim=True)
        unit = torch.maximum(sizes, self.rtol * whole)
        rounding = ROUNDING * torch.finfo(error.dtype).eps
        ratio = over(self._norms(error), torch.maximum(SHARE * self.rtol * unit, rounding * whole)).amax(dim=1).double()
        if self.sensitivity.idle:
            return ratio
        gone = self._mine(field, self._gone) + self._lengths(after - before)
        allowed = max(SHARE * self.rtol, rounding) * gone
        tolerance = torch.where(gone > 0, allowed, float("inf"))  # integrals don't influence the size of the first step
        return torch.maximum(ratio, over(self._lengths(errors), tolerance).amax(dim=1).double())

    def accept(self, field: GradientFlow, before: Tensor, after: Tensor, slope: Tensor, accepted: Tensor) -> None:
        """Records a step of the tasks of `field` between these states, where it was `accepted` [A]."""
        rows = slice(None) if field.rows is None else field.rows
        if not self.sensitivity.idle:
            self._gone[rows] += self._lengths(after - before) * accepted[:, None]
        size = field.symmetric_norm(self.split(before)[0])
        quotient = field.symmetric_norm(self.split(slope)[0]) / torch.where(accepted & (size > 0), size, float("inf"))
        self.lambda_max[rows] = torch.fmax(self.lambda_max[rows], quotient)

    def _lengths(self, state_or_integrals: Tensor) -> Tensor:
        """The norms of the integrals [A, number of them] in a state, whose λ is ignored, or in the integrals alone."""
        widths = list(self.sensitivity.parts.values())
        integrals = state_or_integrals[:, -sum(widths) :]
        return torch.stack([part.norm(dim=1) for part in integrals.split(widths, dim=1)], dim=1)

    def _mine(self, field: GradientFlow, values: Tensor) -> Tensor:
        return values if field.rows is None else values[field.rows]
