"""Butcher tableaux of the explicit Runge–Kutta methods that this package implements.

Coefficients: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, tables II.1.2, II.4 and II.5.2;
Bogacki & Shampine 1989 for `BOSH3`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tableau:
    """Stages U_i = u + h Σ_j a_ij k_j, k_i = f(U_i); u₊ = u + h Σ b_i k_i; local error h Σ error_i k_i."""

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    """The strictly lower triangle: row i has i entries."""
    b: tuple[float, ...]
    stability_limit: float
    """The largest h·λ on the real axis for which the method is stable."""
    error: tuple[float, ...] | None = None
    """Weights of the error estimate, one more than `b`: the last is the weight of f(u₊), which is the next step's first stage."""
    guard: float = 0.0
    """The guard's cap on h·λmax for adaptive steps; it is below the stability limit because λmax is only an estimate."""
    midpoint: tuple[float, ...] | None = None
    """Weights of a fourth-order value at the step's middle (Shampine 1986), for dense output."""

    @property
    def stages(self) -> int:
        return len(self.b)

    @property
    def c(self) -> tuple[float, ...]:
        """Stage times as fractions of h."""
        return tuple(sum(row) for row in self.a)


EULER = Tableau("euler", 1, ((),), (1.0,), stability_limit=2.0)
HEUN = Tableau("heun", 2, ((), (1.0,)), (0.5, 0.5), stability_limit=2.0)
RK4 = Tableau("rk4", 4, ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), stability_limit=2.785)

BOSH3 = Tableau(
    "bosh3",
    3,
    ((), (1 / 2,), (0.0, 3 / 4)),
    (2 / 9, 1 / 3, 4 / 9),
    stability_limit=2.51,
    error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    guard=1.5,
)

DOPRI5 = Tableau(
    "dopri5",
    5,
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    stability_limit=3.3,
    error=(
        35 / 384 - 5179 / 57600,
        0.0,
        500 / 1113 - 7571 / 16695,
        125 / 192 - 393 / 640,
        -2187 / 6784 + 92097 / 339200,
        11 / 84 - 187 / 2100,
        -1 / 40,
    ),
    guard=2.0,
    midpoint=(
        6025192743 / 30085553152 / 2,
        0.0,
        51252292925 / 65400821598 / 2,
        -2691868925 / 45128329728 / 2,
        187940372067 / 1594534317056 / 2,
        -1776094331 / 19743644256 / 2,
        11237099 / 235043384 / 2,
    ),
)
