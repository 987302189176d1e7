"""Finding out whether a flow meets a kink of its support loss.

At a kink the gradient jumps, and with it the flow's slope f. λ would have to jump too: by n⟨λ, Δf⟩/⟨n, f⟩, where the flow crosses
the kink, whose normal is n; where both sides push towards it the flow stays in it, and what of λ lies across is lost. The adjoint
equation follows neither, so an adaptive solve that it is to follow fails instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amaml.flow.control import Attempt
from amaml.flow.field import GradientFlow
from amaml.flow.guard import start_vector
from amaml.flow.result import Result, raise_where

LIMIT = 10.0
"""In units of rtol: what λ may be off by, relatively, across one kink."""
SPIKE = 2.0
"""A step over which the slope changes by so many times as much, for its way, as over the one before is looked at; so is the
first."""
HALVINGS = 24
"""Of a step's way, in search of a jump: a smooth slope changes by 1e-7 of what it changed by over the whole."""
LEFT = 1e-2
"""Of a slope's change over the step, at least, that a jump keeps: a smooth one is below that after seven halvings."""
ULPS = 32
"""Of every parameter: over so small a way a slope changes by its rounding, and by little more unless it jumps."""
QUIET = 0.1
"""Of a jump, at most, that the slope changes by beside it."""


class Kinks:
    """Looks for jumps of the slope at θ, along the first step, and along those that were rejected before or show a spike of the
    slope's change."""

    def __init__(self, field: GradientFlow, u: Tensor, rtol: float) -> None:
        """`field` and u [B, P]: of the whole batch. Raises SolveError where the flow starts in a kink."""
        self._field, self._limit = field, LIMIT * rtol
        self._quotient = torch.zeros_like(u[:, 0])
        self._was_rejected = torch.zeros_like(self._quotient, dtype=torch.bool)
        along = ULPS * self._ulps(u) * start_vector(u[0]).mul_(len(u[0]) ** 0.5)
        before, after = u - along, u + along
        jump = self._jump(field, before, after, along, field.force(before), field.force(after))
        raise_where(jump > self._limit, Result.KINK, 0.0, value=jump)

    def see(self, field: GradientFlow, attempt: Attempt) -> None:
        """Looks at attempted steps of the tasks of `field`. Raises SolveError where one that was accepted has met a kink."""
        accepted = attempt.h > 0
        rows = torch.arange(len(accepted), device=accepted.device) if field.rows is None else field.rows
        changes = torch.stack([*attempt.slopes[1:], attempt.end_slope]).sub_(attempt.slopes[0]).norm(dim=2)
        change, stage = changes.max(dim=0)  # a step that slides may end on the side where it began
        way = attempt.column[:, 0] * attempt.slopes[0].norm(dim=1)
        quotient = (change / way).nan_to_num(0.0)  # where nothing moves, 0/0
        look = accepted & (self._was_rejected[rows] | (quotient > SPIKE * self._quotient[rows]))
        self._quotient[rows] = torch.where(accepted, quotient, self._quotient[rows])
        self._was_rejected[rows] = torch.where(attempt.tried, ~accepted, self._was_rejected[rows])
        if bool(look.any()):
            states = torch.stack([*attempt.states[1:], attempt.y_new])
            after = states[stage[look], torch.nonzero(look).flatten()]
            jump = self._search(self._field.take(rows[look]), attempt.states[0][look], after)
            raise_where(jump > self._limit, Result.KINK, attempt.t[rows[look]], value=jump, rows=rows[look])

    def _search(self, field: GradientFlow, before: Tensor, after: Tensor) -> Tensor:
        """The relative jump [A] between two states [A, P], 0 where there is none: by halving the way to where most of the
        slope's change is."""
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
        """How large the jump between two close states is [A], in units of the speed at which the flow crosses it: what λ is off
        by, relatively. 0 where the force changes as much `beside` them, and so by rounding."""
        across = last - first  # a loss's gradient jumps along the normal of its kink
        size = across.norm(dim=1)
        noise = torch.maximum(
            (field.force(before - beside) - first).norm(dim=1), (field.force(after + beside) - last).norm(dim=1)
        )
        slope = across if field.rates is None else across * field.rates
        speed = (slope * first).sum(dim=1).abs()
        return torch.where(noise < QUIET * size, size * slope.norm(dim=1) / speed, 0.0)

    def _ulps(self, u: Tensor) -> Tensor:
        """The spacing of the numbers near every entry of u, or near its tensor's size where it is small."""
        return torch.finfo(u.dtype).eps * torch.maximum(u.abs(), self._field.scales)
