"""The solvers of the inner flow that a job names by `kind`. Imports no torch.

One class stands for them all, torchdiffeq's too, so it lies beside the job spec rather than beside one of the solvers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from amaml.spec.part import Part, RuleBroken

Tolerance = Annotated[float, Field(ge=1e-12, le=1e-1)]

FIXED_STEP = ("euler", "heun", "rk4")
ADAPTIVE = ("bosh3", "dopri5")
TORCHDIFFEQ_FIXED = ("midpoint", "heun2", "heun3", "explicit_adams", "implicit_adams")
TORCHDIFFEQ = ("dopri8", "adaptive_heun", "fehlberg2", *TORCHDIFFEQ_FIXED)


class SolverSpec(Part):
    kind: Literal[
        "euler", "heun", "rk4", "bosh3", "dopri5",
        "dopri8", "adaptive_heun", "fehlberg2", "midpoint", "heun2", "heun3", "explicit_adams", "implicit_adams",
    ] = "dopri5"  # fmt: skip
    """The solver. Those from dopri8 on are torchdiffeq's, by its names: one step size for the whole batch, and gradients by its
    graph."""
    rtol: Tolerance = 1e-6
    """Relative tolerance of the adaptive solvers."""
    atol: Tolerance = 1e-6
    """Absolute tolerance of the adaptive solvers, in units of the root mean square of each parameter tensor at the start."""
    step: Annotated[float, Field(ge=1e-6, le=10)] | None = None
    """Step size of the fixed-step solvers (null: 0.01); adaptive solvers choose their own and take none."""
    guard: bool | None = None
    """For adaptive solvers: caps h·λmax, which keeps a discrete adjoint stable. For fixed steps: fails when h·λmax leaves the
    stability region. null: off where the adjoint controls the error of λ itself, else on; the job shows which."""

    @model_validator(mode="before")
    @classmethod
    def _default_step(cls, data: Any) -> Any:
        if (
            isinstance(data, dict)
            and data.get("step") is None
            and data.get("kind") in (*FIXED_STEP, *TORCHDIFFEQ_FIXED)
        ):
            return {**data, "step": 0.01}
        return data

    @model_validator(mode="after")
    def _step_where_it_means_something(self) -> Self:
        if self.step is not None and self.kind not in (*FIXED_STEP, *TORCHDIFFEQ_FIXED):
            raise RuleBroken(
                f"step is for fixed-step solvers; {self.kind} chooses its own from rtol and atol: set step to null",
                "step",
            )
        return self


_SOLVER_SUMMARIES = {
    "euler": "Explicit Euler: gradient descent with learning rate `step`; its discrete adjoint is exact MAML.",
    "heun": "Heun's second-order method with fixed steps.",
    "rk4": "The classical fourth-order Runge–Kutta method with fixed steps.",
    "bosh3": "Bogacki–Shampine 3(2), adaptive per task.",
    "dopri5": "Dormand–Prince 5(4), adaptive per task; the default.",
    "dopri8": "torchdiffeq's Dormand–Prince 8(7), adaptive for the whole batch.",
    "adaptive_heun": "torchdiffeq's Heun 2(1), adaptive for the whole batch.",
    "fehlberg2": "torchdiffeq's Runge–Kutta–Fehlberg 2(1), adaptive for the whole batch.",
    "midpoint": "torchdiffeq's midpoint method with fixed steps.",
    "heun2": "torchdiffeq's second-order Heun method with fixed steps.",
    "heun3": "torchdiffeq's third-order Heun method with fixed steps.",
    "explicit_adams": "torchdiffeq's Adams–Bashforth with fixed steps.",
    "implicit_adams": "torchdiffeq's Adams–Bashforth–Moulton with fixed steps.",
}


def solvers() -> dict[str, str]:
    """Every solver by kind with the sentence that describes it."""
    return dict(_SOLVER_SUMMARIES)
