"""Adjoint MAML as a job names it, and what COMLN's spec shares with it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from amaml.adjoint.spec import AdjointSpec
from amaml.methods.spec import Learnable, MethodSpec
from amaml.spec.part import RuleBroken

if TYPE_CHECKING:
    from amaml.spec import SolverSpec, TrajectorySpec


class AdjointMethodSpec(MethodSpec):
    """Base of the methods with an adjoint of the user's choice, which also gives derivatives by the flow's own parameters."""

    implementation: ClassVar[str | None] = "amaml.methods.amaml.gradient:meta_gradient"
    exact: ClassVar[bool] = True
    flow_can_be_learned: ClassVar[bool] = True
    cost: ClassVar[float] = 1.5
    adjoint: AdjointSpec | None = None
    """null chooses by the solver: interpolated for bosh3 and dopri5, discrete for the others. The choice is written back."""

    @property
    def own_adjoint(self) -> AdjointSpec | None:
        return self.adjoint

    def with_adjoint(self, adjoint: AdjointSpec) -> Self:
        return self if self.adjoint is not None else self.model_copy(update={"adjoint": adjoint})

    def check(self, solver: SolverSpec, trajectory: TrajectorySpec) -> None:
        for name in ("schedule", "horizons"):
            if "length" in self.learned and getattr(trajectory, name) is not None:
                raise RuleBroken(
                    f"{name} and a learned length exclude each other: set trajectory.{name} to null, so that learning "
                    "starts from trajectory.length, or use method amaml without length in its learn",
                    "trajectory", name,
                )  # fmt: skip


class AmamlSpec(AdjointMethodSpec):
    summary: ClassVar[str] = "Adjoint MAML: the gradient flow forward, its adjoint backward; any trajectory length."
    kind: Literal["amaml"] = "amaml"
    proximal: Annotated[float, Field(ge=0, le=1_000)] = 0.0
    """The proximal strength ρ, which pulls the flow towards θ. The paper states the method with 0; its released code uses 1."""
    proximal_in_query: bool = False
    """Adds ½ρ‖u(T)−θ‖² to the query loss, as the released code does."""
    learn: Annotated[list[Learnable], Field(max_length=3)] = []  # noqa: RUF012 - pydantic copies it
    """The quantities of the flow that are trained in addition to θ, from the same backward solve: trajectory.length, a rate for
    each parameter (from 1), `proximal`."""

    @model_validator(mode="after")
    def _what_can_be_learned(self) -> Self:
        if len(set(self.learn)) < len(self.learn):
            raise RuleBroken(f"learn names a thing twice, got {self.learn}: drop repeats", "learn")
        if "proximal" in self.learn and not self.proximal > 0:
            raise RuleBroken(
                "proximal is learned by its logarithm, so it must start above 0: set method.proximal to 0.01, say, or drop "
                "proximal from method.learn",
                "proximal",
            )
        return self

    @property
    def learned(self) -> Sequence[Learnable]:
        return self.learn

    @property
    def arguments(self) -> dict[str, Any]:
        return {"proximal": self.proximal, "proximal_in_query": self.proximal_in_query}
