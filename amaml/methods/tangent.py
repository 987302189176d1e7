"""The tangents of one task's inner flow: the derivatives of its states when θ moves along given directions v.

The tangent δ of the flow solves δ(0) = v, dδ/dt = −α∘(∇²L_sup(u) δ + ρ(δ − v)). The certificate judges a meta-gradient by it, so
this module shares no code with what computes meta-gradients. It uses only gradients of the user's losses by plain autograd, their
finite differences for Hessian-vector products, and SciPy's solvers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torchdiffeq
from numpy.typing import NDArray
from scipy.integrate import DOP853
from torch import Tensor

from amaml.flow.derivatives import Loss
from amaml.flow.solvers import FixedStep
from amaml.flow.tableau import Tableau
from amaml.flow.torchdiffeq_solver import TorchDiffEq
from amaml.methods.parameters import Layout

Array = NDArray[np.float64]
Gradient = Callable[[Array], Array]
"""A function from points [N, P] to the gradients of a loss at them [N, P]."""

FLOW_STEP, LEAST_FLOW_STEP = 0.3, 5e-6
"""The relative finite-difference step for a flow, in units of √tolerance, and the smallest one. The truncation error is about a
sixth of the step's square, the rounding error 1e-16 over it. The step is much wider than the error of u that the tolerance
allows, so that the solver detects every kink that the flow crosses, and the tangent changes there as it should."""
MAP_STEP, MAP_REFINEMENTS = 1e-6, 3
"""The relative finite-difference step for a discrete map, and how often it may be divided by ten where the forward and the
backward difference disagree: the map's derivative is that on one side of a kink, so no difference may reach across one."""
DISAGREEMENT, ROUNDING = 1e-3, 1e-13
"""The relative distance above which a forward and a backward difference disagree, and the relative rounding error of the
gradient, whose effect is allowed for in addition."""
LEAST_STEPS = 16
"""The least number of steps to the last horizon, so that no step misses a change of the curvature."""
FLOOR = 1e-3
"""The size, relative to a vector's root mean square, below which its elements all have the same absolute tolerance."""
TINY = float(np.finfo(np.float64).tiny)


class Undecided(Exception):
    """The error of the gradient can't be estimated; the message says why."""


def gradient_of(loss: Loss, task: Any, layout: Layout) -> Gradient:
    """The gradient of the user's loss on one task, by plain reverse-mode autograd."""

    def gradient(points: Array) -> Array:
        with torch.enable_grad(), torch.autocast(layout.device.type, enabled=False):
            leaf = torch.from_numpy(points).to(layout.device).requires_grad_()
            total = torch.stack([loss(layout.unflatten(point), task) for point in leaf.unbind()]).sum()
        if not total.requires_grad:  # a loss that doesn't depend on its parameters
            return np.zeros_like(points)
        slopes: Array = torch.autograd.grad(total, leaf)[0].cpu().numpy()
        return slopes

    return gradient


@dataclass(frozen=True)
class Tangents:
    """The flow of one task and its tangents along `directions` [M, P] as one differential equation. Its state [1 + M, P] is u,
    followed by each δ."""

    support: Gradient
    theta: Array
    rates: Array
    """α [P]."""
    proximal: float
    directions: Array
    spans: Array
    """The finite-difference step of each direction [M], in units of the step that is common to all."""

    @property
    def start(self) -> Array:
        """The initial state: θ and the directions themselves."""
        return np.vstack([self.theta, self.directions])

    def absolute_tolerances(self, state: Array, tolerance: float) -> Array:
        """The absolute tolerance of each element [1 + M, P], which adds to `tolerance` times its own size. It is relative to the
        present size of the element's row, since a contracting flow shrinks δ by orders of magnitude."""
        sizes = np.linalg.norm(state, axis=1, keepdims=True)
        sizes[0] = self._size(state[0])
        return np.broadcast_to(np.maximum(FLOOR * tolerance * sizes / state.shape[1] ** 0.5, TINY), state.shape)

    def flow_slopes(self, state: Array, step: float) -> Array:
        """The time derivatives of u and each δ for the flow, by central differences with the relative step `step`."""
        own, ahead, behind = self._differences(state, step * self.spans)
        return self._slopes(state, own, (ahead + behind) / 2)

    def map_slopes(self, state: Array) -> Array:
        """The time derivatives of u and each δ for a discrete map, which needs the derivative at the very point rather than an
        average around it. Raises Undecided at a kink."""
        own, ahead, behind = self._differences(state, MAP_STEP * self.spans)
        unsure = self._disagree(state, own, ahead, behind)
        for refinement in range(1, MAP_REFINEMENTS + 1):
            if not unsure.size:
                break
            rows = np.vstack([state[:1], state[1 + unsure]])
            _, ahead[unsure], behind[unsure] = self._differences(rows, MAP_STEP / 10**refinement * self.spans[unsure])
            unsure = self._disagree(state, own, ahead, behind)
        if unsure.size:
            raise Undecided(
                "the support loss has a kink, or noise, where the solver evaluates it: its gradient jumps within a "
                f"{10**MAP_REFINEMENTS / MAP_STEP:.0e}th of the parameters' size"
            )
        return self._slopes(state, own, (ahead + behind) / 2)

    def _differences(self, state: Array, steps: Array) -> tuple[Array, Array, Array]:
        """∇L_sup(u) [P], and ∇²L_sup(u) δ [M, P] by forward and by backward differences with the relative steps `steps` [M].
        Raises Undecided where a gradient isn't finite."""
        u, tangents = state[0], state[1:]
        sizes = np.linalg.norm(tangents, axis=1, keepdims=True)
        lengths = steps[:, None] * self._size(u)
        offsets = lengths * tangents / np.maximum(sizes, TINY)
        gradients = self.support(np.vstack([u[None], u + offsets, u - offsets]))
        if not np.isfinite(gradients).all():
            raise Undecided("the state or the support loss's gradient became infinite or NaN in float64")
        own, ahead, behind = np.split(gradients, [1, 1 + len(tangents)])
        return own[0], (ahead - own) * (sizes / lengths), (own - behind) * (sizes / lengths)

    def _disagree(self, state: Array, own: Array, ahead: Array, behind: Array) -> NDArray[np.intp]:
        """The directions whose forward and backward differences differ by more than those of a smooth loss would."""
        sizes = np.linalg.norm(ahead, axis=1) + np.linalg.norm(behind, axis=1)
        rounding = ROUNDING / MAP_STEP * np.linalg.norm(own) * np.linalg.norm(state[1:], axis=1) / self._size(state[0])
        return np.flatnonzero(np.linalg.norm(ahead - behind, axis=1) > DISAGREEMENT * sizes + rounding)

    def _size(self, u: Array) -> float:
        """The scale of u for relative steps: the larger of the norms of u and θ, since u may pass through 0."""
        return max(float(np.linalg.norm(u)), float(np.linalg.norm(self.theta)) or 1.0)

    def _slopes(self, state: Array, own: Array, products: Array) -> Array:
        forces = np.vstack([own, products])
        if self.proximal:
            forces += self.proximal * (state - self.start)
        return -self.rates * forces


def along_flow(tangents: Tangents, horizons: Sequence[float], tolerance: float, budget: int) -> list[Array]:
    """The states at the horizons, by SciPy's Dormand–Prince method of order 8 with the relative tolerance `tolerance`.

    Raises Undecided where it needs more than `budget` evaluations of the field or its steps become too small.
    """
    left = budget
    difference = max(LEAST_FLOW_STEP, FLOW_STEP * tolerance**0.5)
    shape = tangents.start.shape

    def slopes(t: float, flat: Array) -> Array:
        nonlocal left
        left -= 1
        if left < 0:
            raise Undecided(
                f"its tangent exceeded the budget of {budget} evaluations of the flow at t={t:.4g}: the losses may have kinks "
                "or noise"
            )
        return tangents.flow_slopes(flat.reshape(shape), difference).ravel()

    ends, state, first = [], tangents.start, None
    for start, end in pairwise([0.0, *horizons]):
        longest = min(horizons[-1] / LEAST_STEPS, end - start)
        solver = DOP853(
            slopes, start, state.ravel(), end, max_step=longest, rtol=tolerance,
            atol=tangents.absolute_tolerances(state, tolerance).ravel(), first_step=first and min(first, longest),
        )  # fmt: skip
        while solver.status == "running":
            solver.atol = tangents.absolute_tolerances(solver.y.reshape(shape), tolerance).ravel()
            solver.step()
        if solver.status == "failed":
            raise Undecided(
                f"its tangent's steps shrank to nothing at t={solver.t:.4g}: the losses have kinks or noise there"
            )
        state, first = solver.y.reshape(shape), solver.h_abs
        ends.append(state)
    return ends


def along_map(tangents: Tangents, horizons: Sequence[float], solver: FixedStep | TorchDiffEq) -> list[Array]:
    """The states at the horizons, by the judged solver's own N = round(T/step) equal steps in each interval between horizons.

    A Runge–Kutta or Adams method applied to u and δ together gives the exact tangent of that method applied to u.
    """
    assert solver.step is not None
    ends, state = [], tangents.start
    for start, end in pairwise([0.0, *horizons]):
        count = max(1, round((end - start) / solver.step))
        if isinstance(solver, TorchDiffEq):
            state = _by_torchdiffeq(
                tangents, state, solver, torch.linspace(start, end, count + 1, dtype=torch.float64, device="cpu")
            )
        else:
            state = _by_runge_kutta(tangents, state, solver.tableau, (end - start) / count, count)
        ends.append(state)
    return ends


def _by_runge_kutta(tangents: Tangents, state: Array, tableau: Tableau, h: float, count: int) -> Array:
    for _ in range(count):
        slopes: list[Array] = []
        for row in tableau.a:
            slopes.append(tangents.map_slopes(state + h * _combined(row, slopes)))
        state = state + h * _combined(tableau.b, slopes)
    return state


def _combined(weights: Sequence[float], slopes: Sequence[Array]) -> Array | float:
    return sum(weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight)


def _by_torchdiffeq(tangents: Tangents, state: Array, solver: TorchDiffEq, times: Tensor) -> Array:
    def field(_: Tensor, y: Tensor) -> Tensor:
        return torch.from_numpy(tangents.map_slopes(y.numpy()))

    states = torchdiffeq.odeint(
        field, torch.from_numpy(state), times, rtol=solver.rtol, atol=solver.atol, method=solver.method
    )
    end: Array = states[-1].numpy()
    return end
