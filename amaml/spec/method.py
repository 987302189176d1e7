"""The methods that a job names by one word: how θ's meta-gradient is estimated. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from amaml.spec.part import Part, RuleBroken


class DiscreteSpec(Part):
    """Exact reverse of the accepted forward steps."""

    controls_lambda: ClassVar[bool] = False
    kind: Literal["discrete"] = "discrete"
    checkpoints: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """States kept at any time (binomial schedule); null keeps about √N."""


class InterpolatedSpec(Part):
    """The paper's: the adjoint ODE by its own solver, with λ at tolerance, over the forward trajectory's dense output."""

    kind: Literal["interpolated"] = "interpolated"
    scheme: Literal["adaptive", "heun", "euler"] = "adaptive"
    checkpoints: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """As of discrete; beside them 16 steps' dense output is in memory."""

    @property
    def controls_lambda(self) -> bool:
        return self.scheme == "adaptive"


class BacksolveSpec(Part):
    """u re-integrated backwards beside λ; constant memory; detects its own failure and fails the job."""

    controls_lambda: ClassVar[bool] = True
    kind: Literal["backsolve"] = "backsolve"
    max_evaluations: Annotated[int, Field(ge=10, le=10_000_000)] = 20_000


AdjointSpec = Annotated[DiscreteSpec | InterpolatedSpec | BacksolveSpec, Field(discriminator="kind")]


class MethodSpec(Part):
    """What every method's spec has. Each says its `proximal`, the ρ of its inner flow in training and evaluation."""

    summary: ClassVar[str]
    exact: ClassVar[bool] = False
    """Whether it gives the training objective's own gradient, whose error a certificate can measure."""
    cost: ClassVar[float] = 1.0
    """Of a meta-iteration, in those of Reptile, roughly: by what a preset gives every method the same time."""
    kind: str


Learnable = Literal["length", "rates", "proximal"]


class AmamlSpec(MethodSpec):
    summary: ClassVar[str] = "Adjoint MAML: the gradient flow forward, its adjoint backward; any trajectory length."
    exact: ClassVar[bool] = True
    cost: ClassVar[float] = 1.5
    kind: Literal["amaml"] = "amaml"
    adjoint: AdjointSpec | None = None
    """null: by the solver, interpolated for bosh3 and dopri5, discrete for the others. What was taken is written back."""
    proximal: Annotated[float, Field(ge=0, le=1_000)] = 0.0
    """ρ: pulls the flow towards θ. 0 is the paper's stated method, 1 what its released code runs."""
    proximal_in_query: bool = False
    """Adds ½ρ‖u(T)−θ‖² to the query loss, as the released code does."""
    learn: Annotated[list[Learnable], Field(max_length=3)] = []  # noqa: RUF012 - pydantic copies it
    """What of the flow is trained beside θ, from the same backward solve: trajectory.length, a rate for each parameter
    (from 1), `proximal`."""

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


class ComlnSpec(MethodSpec):
    summary: ClassVar[str] = (
        "COMLN (Deleu et al. 2022), for all parameters: adjoint MAML that learns its length, from trajectory.length on."
    )
    exact: ClassVar[bool] = True
    cost: ClassVar[float] = 1.5
    proximal: ClassVar[float] = 0.0
    learn: ClassVar[list[Learnable]] = ["length"]
    kind: Literal["comln"] = "comln"
    adjoint: AdjointSpec | None = None
    """null: by the solver, interpolated for bosh3 and dopri5, discrete for the others. What was taken is written back."""


class MamlSpec(MethodSpec):
    summary: ClassVar[str] = (
        "MAML (Finn et al. 2017): N steps of gradient descent, differentiated exactly; solver.step is the inner rate."
    )
    exact: ClassVar[bool] = True
    cost: ClassVar[float] = 1.5
    proximal: ClassVar[float] = 0.0
    kind: Literal["maml"] = "maml"
    steps: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """N, in training; null takes the trajectory's, length/step. Evaluation flows to the trajectory's length either way."""


class Maml1Spec(MethodSpec):
    summary: ClassVar[str] = (
        "MAML with a single inner step of solver.step; evaluation flows to the trajectory's length."
    )
    exact: ClassVar[bool] = True
    proximal: ClassVar[float] = 0.0
    steps: ClassVar[int] = 1
    kind: Literal["maml1"] = "maml1"


class FomamlSpec(MethodSpec):
    summary: ClassVar[str] = "First-order MAML (Finn et al. 2017): the query gradient at the flow's end, taken for θ's."
    proximal: ClassVar[float] = 0.0
    kind: Literal["fomaml"] = "fomaml"


class ReptileSpec(MethodSpec):
    summary: ClassVar[str] = "Reptile (Nichol et al. 2018): θ moves towards where the tasks' flows end."
    proximal: ClassVar[float] = 0.0
    kind: Literal["reptile"] = "reptile"


class ImamlSpec(MethodSpec):
    summary: ClassVar[str] = (
        "Implicit MAML (Rajeswaran et al. 2019): the proximal flow's minimum, differentiated by conjugate gradients."
    )
    cost: ClassVar[float] = 1.5
    kind: Literal["imaml"] = "imaml"
    proximal: Annotated[float, Field(gt=0, le=1_000)] = 1.0
    """ρ (λ in the paper): pulls the flow towards θ, and sets how far the implicit gradient looks through it."""
    cg_steps: Annotated[int, Field(ge=1, le=1_000)] = 5
    """Conjugate-gradient steps, a Hessian-vector product each."""
    damping: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Added to the linear system's diagonal: keeps it positive definite where the support loss isn't convex."""


class RandomSpec(MethodSpec):
    summary: ClassVar[str] = "No training: what the random start scores, the floor for every other method."
    proximal: ClassVar[float] = 0.0
    kind: Literal["random"] = "random"


AnyMethod = AmamlSpec | ComlnSpec | MamlSpec | Maml1Spec | FomamlSpec | ReptileSpec | ImamlSpec | RandomSpec
METHODS: tuple[type[AnyMethod], ...] = (
    AmamlSpec, ComlnSpec, MamlSpec, Maml1Spec, FomamlSpec, ReptileSpec, ImamlSpec, RandomSpec,
)  # fmt: skip
