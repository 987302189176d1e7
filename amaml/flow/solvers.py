"""The solvers a user can name. A fixed-step solver defines a discrete map, whose derivative is the meta-gradient; an adaptive one
approximates the continuous flow to a tolerance.

The solvers of torchdiffeq are in `torchdiffeq_solver`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, Self, runtime_checkable

from amaml.flow import tableau
from amaml.flow.field import GradientFlow
from amaml.flow.snapshots import Snapshots, nothing_kept
from amaml.flow.solve import fixed_steps, solve_adaptively, solve_by_fixed_steps
from amaml.flow.tableau import Tableau
from amaml.flow.trajectory import Solution, Trajectory


@runtime_checkable
class Solver(Protocol):
    """Solves the forward problem."""

    adjoint: ClassVar[Literal["discrete", "interpolated", "graph"]]
    """The kind of adjoint that is used unless another is asked for."""

    @property
    def rtol(self) -> float:
        """The relative tolerance of u and of λ; of a fixed-step solver, that of λ only, where the adjoint ODE is solved."""

    @property
    def guard(self) -> bool | None:
        """Whether the stability guard is on; None: on where the adjoint needs it."""

    @property
    def fixed(self) -> bool:
        """Whether the steps are equal, so that they define a discrete map."""

    def guarded(self, guard: bool) -> Self:
        """The same solver with the guard on or off."""

    def steps(self, horizons: list[float]) -> list[int] | None:
        """The number of steps to each horizon from the one before; None where it isn't known before the solve."""

    def solve(
        self, field: GradientFlow, batch: int, horizons: list[float], snapshots: Snapshots | None = None
    ) -> Solution:
        """Solves from θ to every horizon (increasing) for `batch` tasks. Without `snapshots` no adjoint can follow. Raises
        SolveError where a task fails."""


def require_positive(name: str, value: float) -> None:
    """Raises ValueError for a value that isn't a positive finite number."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive finite number, got {value}")


@dataclass(frozen=True)
class FixedStep:
    """N = round(T/step) equal steps of h = T/N. Unless `guard` is False, a step outside the stability region fails the solve."""

    step: float = 0.01
    guard: bool | None = None
    tableau: ClassVar[Tableau]
    adjoint: ClassVar[Literal["discrete", "interpolated", "graph"]] = "discrete"
    fixed: ClassVar[bool] = True
    rtol: ClassVar[float] = 1e-6

    def __post_init__(self) -> None:
        require_positive("step", self.step)

    def guarded(self, guard: bool) -> Self:
        return replace(self, guard=guard)

    def steps(self, horizons: list[float]) -> list[int] | None:
        return [count for count, _ in fixed_steps(horizons, self.step)]

    def solve(
        self, field: GradientFlow, batch: int, horizons: list[float], snapshots: Snapshots | None = None
    ) -> Trajectory:
        trajectory = Trajectory.start(field, batch, horizons, self.tableau, snapshots or nothing_kept())
        solve_by_fixed_steps(field, trajectory, self.step, guard=self.guard is not False)
        return trajectory


class Euler(FixedStep):
    """Explicit Euler: N steps of gradient descent with learning rate `step`."""

    tableau = tableau.EULER


class Heun(FixedStep):
    """Heun's second-order method."""

    tableau = tableau.HEUN


class RK4(FixedStep):
    """The classical fourth-order Runge–Kutta method."""

    tableau = tableau.RK4


@dataclass(frozen=True)
class Adaptive:
    """Each task's own adaptive steps. The local error of every parameter stays within a tenth of rtol·|u| + atol·s, since the
    errors of all steps add up; s is the root mean square of the parameter's tensor in θ. `atol` is `rtol` unless given.

    With `guard`, h·λmax stays below the tableau's cap. The discrete adjoint needs that; without it, it can blow up unnoticed,
    since the error test sees only the state, whose stiff modes are nearly zero, while λ excites them. So `guard=None` means on
    for `Discrete`, and off for adjoints with error control on λ. `max_steps` bounds the number of attempted steps.
    """

    rtol: float = 1e-6
    atol: float = None  # type: ignore[assignment]  # __post_init__ fills it in
    guard: bool | None = None
    max_steps: int = 100_000
    tableau: ClassVar[Tableau]
    adjoint: ClassVar[Literal["discrete", "interpolated", "graph"]] = "interpolated"
    fixed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "atol", self.rtol if self.atol is None else self.atol)
        require_positive("rtol", self.rtol)
        require_positive("atol", self.atol)
        require_positive("max_steps", self.max_steps)

    def guarded(self, guard: bool) -> Self:
        return replace(self, guard=guard)

    def steps(self, horizons: list[float]) -> list[int] | None:
        return None

    def solve(
        self, field: GradientFlow, batch: int, horizons: list[float], snapshots: Snapshots | None = None
    ) -> Trajectory:
        trajectory = Trajectory.start(field, batch, horizons, self.tableau, snapshots or nothing_kept())
        solve_adaptively(field, trajectory, self.rtol, self.atol, guard=bool(self.guard), max_steps=self.max_steps)
        return trajectory


class Dopri5(Adaptive):
    """Dormand–Prince 5(4)."""

    tableau = tableau.DOPRI5


class Bosh3(Adaptive):
    """Bogacki–Shampine 3(2)."""

    tableau = tableau.BOSH3
