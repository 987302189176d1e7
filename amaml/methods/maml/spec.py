"""MAML and MAML with a single step as a job names them. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from amaml.methods.spec import MethodSpec
from amaml.spec.part import RuleBroken

if TYPE_CHECKING:
    from amaml.spec import SolverSpec, TrajectorySpec


class DescentSpec(MethodSpec):
    """Base of MAML's two specs: gradient descent, differentiated exactly."""

    implementation: ClassVar[str | None] = "amaml.methods.maml.gradient:maml"
    exact: ClassVar[bool] = True
    descends: ClassVar[bool] = True
    proximal: ClassVar[float] = 0.0

    @property
    def own_steps(self) -> int | None:
        """The number of inner steps N that the method sets; None where the trajectory's length does."""
        return None

    @property
    def arguments(self) -> dict[str, Any]:
        return {"steps": self.own_steps}

    def evaluations(self, forward: float, gradients: float, hvps: float) -> tuple[float, float]:
        return (gradients, hvps) if self.own_steps is None else (self.own_steps, self.own_steps)

    def check(self, solver: SolverSpec, trajectory: TrajectorySpec) -> None:
        if solver.kind != "euler":
            raise RuleBroken(
                f"{self.kind} is gradient descent, and its solver euler, not {solver.kind}: set solver.kind to euler "
                "and solver.step to the inner learning rate, or choose method amaml",
                "solver", "kind",
            )  # fmt: skip
        for name in ("schedule", "horizons"):
            if self.own_steps is not None and getattr(trajectory, name) is not None:
                raise RuleBroken(
                    f"{name} has no meaning where the method sets the number of its steps: set trajectory.{name} to null, "
                    "or use method maml with steps null",
                    "trajectory", name,
                )  # fmt: skip


class MamlSpec(DescentSpec):
    summary: ClassVar[str] = (
        "MAML (Finn et al. 2017): N steps of gradient descent, differentiated exactly; solver.step is the inner rate."
    )
    cost: ClassVar[float] = 1.5
    kind: Literal["maml"] = "maml"
    steps: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """The number of inner steps N in training; null takes trajectory.length/solver.step. Evaluation flows to the trajectory's
    length either way."""

    @property
    def own_steps(self) -> int | None:
        return self.steps


class Maml1Spec(DescentSpec):
    summary: ClassVar[str] = (
        "MAML with a single inner step of solver.step; evaluation flows to the trajectory's length."
    )
    kind: Literal["maml1"] = "maml1"

    @property
    def own_steps(self) -> int:
        return 1
