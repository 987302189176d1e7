"""Finds out whether a flow meets a kink of its support loss: a surface on which the gradient jumps.

Where the flow crosses a kink with normal n, its slope f jumps by Δf, and λ has to jump by n⟨λ, Δf⟩/⟨n, f⟩. Where the flow is
driven towards the kink from both sides it slides along it, and the component of λ along n is lost. The adjoint equation describes
neither, so an adaptive solve that is to be followed by that equation fails instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amaml.flow.control import Attempt
from amaml.flow.field import GradientFlow
from amaml.flow.guard import start_vector
from amaml.flow.result import Result, raise_where

LIMIT = 10.0
"""The largest relative error of λ that one kink may cause, in units of rtol."""
SPIKE = 2.0
"""A step is searched for a jump if its slope changes, relative to the distance covered, more than this many times as fast as over
the step before. The first step is always searched."""
HALVINGS = 24
"""How often the step is halved in search of a jump. After that, a smooth slope changes by 1e-7 of its change over the step."""
LEFT = 1e-2
"""The least fraction of the slope's change over the step that must remain in the halved interval if it holds a jump. A smooth
slope falls below it after seven halvings."""
ULPS = 32
"""The distance to neighbouring points that a jump is compared with, in units in the last place of every parameter: so small that
a slope which doesn't jump changes by little more than rounding."""
QUIET = 0.1
"""The largest change of the slope beside a jump, as a fraction of the jump."""


class Kinks:
    """Searches for jumps of the slope: at θ, along the first step, along a step whose first attempt was rejected, and along a
    step whose slope changes much faster than over the one before."""

    def __init__(self, field: GradientFlow, u: Tensor, rtol: float) -> None:
        """`field` and u [B, P] are the whole batch's. Raises SolveError where the flow starts in a kink."""
        self._field, self._limit = field, LIMIT * rtol
        self._quotient = torch.zeros_like(u[:, 0])
        self._was_rejected = torch.zeros_like(self._quotient, dtype=torch.bool)
        along = ULPS * self._ulps(u) * start_vector(u[0]).mul_(len(u[0]) ** 0.5)
        before, after = u - along, u + along
        jump = self._jump(field, before, after, along, field.force(before), field.force(after))
        raise_where(jump > self._limit, Result.KINK, 0.0, value=jump)

    def observe(self, field: GradientFlow, attempt: Attempt) -> None:
        """Examines an attempted step of the tasks of `field`. Raises SolveError where the step was accepted and met a kink."""
        accepted = attempt.h > 0
        rows = torch.arange(len(accepted), device=accepted.device) if field.rows is None else field.rows
        changes = torch.stack([*attempt.slopes[1:], attempt.end_slope]).sub_(attempt.slopes[0]).norm(dim=2)
        change, stage = changes.max(dim=0)  # a step along a kink may end on the side where it began
        way = attempt.column[:, 0] * attempt.slopes[0].norm(dim=1)
        quotient = (change / way).nan_to_num(0.0)  # 0/0 where nothing moves
        suspect = accepted & (self._was_rejected[rows] | (quotient > SPIKE * self._quotient[rows]))
        self._quotient[rows] = torch.where(accepted, quotient, self._quotient[rows])
        self._was_rejected[rows] = torch.where(attempt.tried, ~accepted, self._was_rejected[rows])
        if bool(suspect.any()):
            states = torch.stack([*attempt.states[1:], attempt.y_new])
            after = states[stage[suspect], torch.nonzero(suspect).flatten()]
            jump = self._search(self._field.take(rows[suspect]), attempt.states[0][suspect], after)
            raise_where(jump > self._limit, Result.KINK, attempt.t[rows[suspect]], value=jump, rows=rows[suspect])

    def _search(self, field: GradientFlow, before: Tensor, after: Tensor) -> Tensor:
        """The relative jump [A] between two states [A, P], 0 where there is none. Bisection keeps the half of the segment over
        which the slope changes more."""
        way = after - before
        beside = way * 2.0 ** (10 - HALVINGS) + ULPS * self._ulps(before) * torch.where(way < 0, -1.0, 1.0)
        first, last = field.force(before), field.force(after)
        change = (last - first).norm(dim=1)
        for _ in range(HALVINGS):
            middle = (before + after) / 2
            force = field.force(middle)
            left = ((force - first).norm(dim=1) >= (last - force).norm(dim=1))[:, None]
            after, last = torch.where(left, middle, after), torch.where(left, force, last)
            before, first = torch.where(left, before, middle), torch.where(left, first, force)
            is_left = (last - first).norm(dim=1) > LEFT * change
            if not bool(is_left.any()):
                return torch.zeros_like(change)
        return torch.where(is_left, self._jump(field, before, after, beside, first, last), 0.0)

    def _jump(
        self, field: GradientFlow, before: Tensor, after: Tensor, beside: Tensor, first: Tensor, last: Tensor
    ) -> Tensor:
        """The size [A] of the jump of the slope between two close states, divided by the speed at which the flow crosses it: the
        relative error of λ. 0 where the force changes about as much over the distance `beside` next to them, by rounding."""
        across = last - first  # a loss's gradient jumps along the normal of its kink
        size = across.norm(dim=1)
        noise = torch.maximum(
            (field.force(before - beside) - first).norm(dim=1), (field.force(after + beside) - last).norm(dim=1)
        )
        slope = across if field.rates is None else across * field.rates
        speed = (slope * first).sum(dim=1).abs()
        return torch.where(noise < QUIET * size, size * slope.norm(dim=1) / speed, 0.0)

    def _ulps(self, u: Tensor) -> Tensor:
        """The spacing of floating-point numbers near every entry of u, or near its tensor's size where the entry is smaller."""
        return torch.finfo(u.dtype).eps * torch.maximum(u.abs(), self._field.scales)
