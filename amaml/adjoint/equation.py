"""The adjoint differential equation as the integrator sees it: its state, its error test, its quadratures."""

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
"""Of the tolerance, for one step. More than of the state's: an error of λ is an error of the gradient, which nothing enlarges."""
ROUNDING = 4.0
"""Units in the last place of the whole λ, below which no error can be told from rounding."""


@contextmanager
def told_in_forward_time(end: float) -> Iterator[None]:
    """Failures of a solve in s = end − t say where they happened in t."""
    try:
        yield
    except SolveError as error:
        raise SolveError([replace(failure, time=end - failure.time) for failure in error.failures]) from error


class AdjointEquation:
    """dλ/ds = (∂f/∂u)ᵀ λ in reversed time s, beside λ [A, P] the integrals of `sensitivity`: a state [A, P + Q].

    The error of λ is measured for each parameter tensor by itself, relative to that tensor's present norm, since a contracting
    flow shrinks λ by many orders of magnitude and one measured at the horizon would go unwatched; a tensor whose λ is nearly
    nothing needs no more than `rtol` of the whole λ's norm as its unit. The error of an integral is measured relative to the
    length of the way that it has gone.
    """

    def __init__(self, field: GradientFlow, sensitivity: Sensitivity, rtol: float, lambda_max: Tensor) -> None:
        self.sensitivity, self.rtol = sensitivity, rtol
        self.lambda_max = lambda_max
        """Of the whole batch [B]: raised to the largest ‖(∂f/∂u)ᵀλ‖/‖λ‖ of its steps, a lower bound of the flow's stiffness."""
        self._norms, self._parameters = field.norms, len(field.theta)
        self._gone = sensitivity.total.new_zeros(len(sensitivity.total), len(sensitivity.parts))

    def state(self, adjoint: Tensor) -> Tensor:
        """λ [B, P] with what has been gathered so far."""
        return torch.cat([adjoint, self.sensitivity.total], dim=1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """λ and the integrals."""
        return state[:, : self._parameters], state[:, self._parameters :]

    def slope(self, field: GradientFlow, u: Tensor, state: Tensor) -> Tensor:
        """Of the state, at u [A, P]."""
        adjoint, _ = self.split(state)
        slope = field.jacobian_transposed(u, adjoint)
        if self.sensitivity.idle:
            return slope
        return torch.cat([slope, self.sensitivity.integrand(field, u, adjoint)], dim=1)

    def over_tolerance(self, field: GradientFlow, error: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """As of `Problem.over_tolerance`."""
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
        tolerance = torch.where(gone > 0, allowed, float("inf"))  # the first step's size is chosen without them
        return torch.maximum(ratio, over(self._lengths(errors), tolerance).amax(dim=1).double())

    def accept(self, field: GradientFlow, before: Tensor, after: Tensor, slope: Tensor, accepted: Tensor) -> None:
        """Takes note of a step of the tasks of `field` between these states, where it was `accepted` [A]."""
        rows = slice(None) if field.rows is None else field.rows
        if not self.sensitivity.idle:
            self._gone[rows] += self._lengths(after - before) * accepted[:, None]
        size = field.symmetric_norm(self.split(before)[0])
        quotient = field.symmetric_norm(self.split(slope)[0]) / torch.where(accepted & (size > 0), size, float("inf"))
        self.lambda_max[rows] = torch.fmax(self.lambda_max[rows], quotient)

    def _lengths(self, state_or_integrals: Tensor) -> Tensor:
        """Norms of the integrals' parts [A, number of them]; a whole state's λ is passed over."""
        widths = list(self.sensitivity.parts.values())
        integrals = state_or_integrals[:, -sum(widths) :]
        return torch.stack([part.norm(dim=1) for part in integrals.split(widths, dim=1)], dim=1)

    def _mine(self, field: GradientFlow, values: Tensor) -> Tensor:
        return values if field.rows is None else values[field.rows]
