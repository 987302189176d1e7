"""The solvers a user can name. Fixed-step ones define the discrete map that they differentiate; adaptive ones aim at the flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from amaml.flow import tableau
from amaml.flow.tableau import Tableau


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive finite number, got {value}")


@dataclass(frozen=True)
class FixedStep:
    """N = round(T/step) equal steps of h = T/N. With `guard`, a step outside the stability region fails the solve."""

    step: float = 0.01
    guard: bool = True
    tableau: ClassVar[Tableau]

    def __post_init__(self) -> None:
        _positive("step", self.step)


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
    """Steps chosen for each task on its own: every parameter's local error within a tenth of atol + rtol·|u|, since the
    errors of steps add up.

    With `guard`, h·λmax stays under the tableau's cap, without which the adjoint can blow up unseen: the error test
    holds the state, whose stiff modes are nearly zero, while λ excites them. `max_steps` bounds the attempts. Without
    `atol` it is `rtol`.
    """

    rtol: float = 1e-6
    atol: float = None  # type: ignore[assignment]  # __post_init__ fills it in
    guard: bool = True
    max_steps: int = 100_000
    tableau: ClassVar[Tableau]

    def __post_init__(self) -> None:
        object.__setattr__(self, "atol", self.rtol if self.atol is None else self.atol)
        _positive("rtol", self.rtol)
        _positive("atol", self.atol)
        _positive("max_steps", self.max_steps)


class Dopri5(Adaptive):
    """Dormand–Prince 5(4)."""

    tableau = tableau.DOPRI5


class Bosh3(Adaptive):
    """Bogacki–Shampine 3(2)."""

    tableau = tableau.BOSH3


_TORCHDIFFEQ_FIXED = {
    "euler": 2.0, "midpoint": 2.0, "heun2": 2.0, "heun3": 2.51, "rk4": 2.785, "explicit_adams": 0.3, "implicit_adams": 1.28,
}  # fmt: skip
_TORCHDIFFEQ_ADAPTIVE = {"dopri8": 2.0, "dopri5": 2.0, "bosh3": 1.5, "adaptive_heun": 1.5, "fehlberg2": 1.5}


@dataclass(frozen=True)
class TorchDiffEq:
    """A solver of torchdiffeq under its own name: one step size for the whole batch, gradient by the solver's own graph.

    `step` for its fixed-step methods, `rtol` and `atol` for the adaptive ones.
    """

    method: str
    rtol: float = 1e-6
    atol: float = 1e-6
    step: float | None = None
    guard: bool = True

    def __post_init__(self) -> None:
        fixed, adaptive = _TORCHDIFFEQ_FIXED, _TORCHDIFFEQ_ADAPTIVE
        if self.method not in {**fixed, **adaptive}:
            raise ValueError(
                f"method {self.method!r} is unknown: choose one of {', '.join(sorted({**fixed, **adaptive}))}"
            )
        if (self.method in fixed) != (self.step is not None):
            remedy = "give it a step" if self.method in fixed else "give it rtol and atol, and no step"
            raise ValueError(f"torchdiffeq's {self.method} is {'a fixed-step' if self.method in fixed else 'an adaptive'} "
                             f"method: {remedy}")  # fmt: skip
        _positive("rtol", self.rtol)
        _positive("atol", self.atol)
        if self.step is not None:
            _positive("step", self.step)

    @property
    def stability(self) -> float:
        """Cap on h·λmax: for an adaptive method kept by its `max_step`, for a fixed-step one a limit that fails the solve."""
        return {**_TORCHDIFFEQ_FIXED, **_TORCHDIFFEQ_ADAPTIVE}[self.method]


Solver = FixedStep | Adaptive | TorchDiffEq
