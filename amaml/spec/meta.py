"""How θ is stepped: the meta-optimizer, the clip of its gradients, and where a run starts. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import Field, model_validator

from amaml.spec.method import AnyMethod
from amaml.spec.part import Part, RuleBroken
from amaml.spec.solver import SolverSpec
from amaml.spec.trajectory import TrajectorySpec

Beta = Annotated[float, Field(ge=0, lt=1)]
ADAMS = ("adam", "adamw")


class OptimizerSpec(Part):
    kind: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Annotated[float, Field(gt=0, le=100)] = 1e-3
    schedule: Literal["constant", "inverse_sqrt", "cosine"] = "constant"
    """Of the rate: constant; divided by √(1 + i/1000); half a cosine from lr to 0."""
    warmup: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Meta-iterations over which the rate rises linearly to what the schedule says."""
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] | None = None
    """How slowly adam and adamw forget the gradient and its square (null: 0.9 and 0.999)."""
    momentum: Beta | None = None
    """How slowly sgd forgets the gradient (null: 0)."""
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Of θ alone: adam and sgd add it times θ to the gradient, adamw takes lr times it from θ."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if data.get("kind", "adam") in ADAMS:
            return data if data.get("betas") is not None else {**data, "betas": (0.9, 0.999)}
        return data if data.get("momentum") is not None else {**data, "momentum": 0.0}

    @model_validator(mode="after")
    def _fields_of_the_kind(self) -> Self:
        other = "momentum" if self.kind in ADAMS else "betas"
        if getattr(self, other) is not None:
            owner = "sgd" if other == "momentum" else "adam and adamw"
            raise RuleBroken(f"{other} is for {owner}, not {self.kind}: set it to null, or choose another kind", other)
        return self


class ClipSpec(Part):
    """Shortens gradients that are longer than a bound to the bound."""

    per: Literal["task", "batch"] = "task"
    """task: each task's gradient before the mean over tasks; batch: the mean."""
    at: Literal["median"] | Annotated[float, Field(gt=0, le=1e12)] = "median"
    """The bound on the norm of θ's gradient; median: that of the last `window` norms, those of this meta-iteration among them."""
    factor: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """The bound is so many times `at`."""
    window: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    """How many norms the median is of."""


class InitFrom(Part):
    job: UUID = Field(strict=False)
    """A job of this workspace that this one starts from."""
    step: Annotated[int, Field(ge=0)] | None = None
    """A checkpoint of that job; null takes its finished initialization."""
    state: Literal["theta", "learned", "full"] = "theta"
    """What is taken over: θ; with it what was learned of the flow; or, from a checkpoint, all of the run, which goes on from that
    meta-iteration with its optimizer."""

    @model_validator(mode="after")
    def _checkpoint_that_has_it_all(self) -> Self:
        if self.state == "full" and self.step is None:
            raise RuleBroken(
                "full goes on from a checkpoint, since a finished initialization has no optimizer: name the checkpoint's step, "
                "or set state to learned",
                "step",
            )
        return self


class PhaseSpec(Part):
    """A share of the run's meta-iterations with a method of its own. θ and what was learned beside it go on into the next phase,
    the optimizer begins anew. What is null here is the run's."""

    method: Annotated[AnyMethod, Field(discriminator="kind")]
    share: Annotated[float, Field(gt=0, le=1)]
    """Of meta.iterations."""
    optimizer: OptimizerSpec | None = None
    """Its schedule runs over the phase."""
    clip: ClipSpec | None = None
    trajectory: TrajectorySpec | None = None
    """The last phase's is the run's, for which evaluations flow."""
    solver: SolverSpec | None = None


class MetaSpec(Part):
    iterations: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """Meta-iterations: meta-gradients computed and applied."""
    tasks_per_batch: Annotated[int, Field(ge=1, le=4_096)] = 16
    optimizer: OptimizerSpec = OptimizerSpec()
    clip: ClipSpec | None = None
    """Few tasks of a long trajectory may have gradients that are much longer than all others'. null: as they are."""
    learn_lr: Annotated[float, Field(gt=0, le=100)] | None = None
    """The optimizer's rate for what `method.learn` trains beside θ; null: the same as θ's. The schedule holds for both."""
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Evaluates and keeps a moving average of θ instead of the last θ, which forgets so slowly (0.999, say); null: none."""
    patience: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Ends the run after so many evaluations in a row without a better validation score; null: never."""
    target: Annotated[float, Field(ge=-1e12, le=1e12)] | None = None
    """Ends the run when the validation score has come so far; null: never."""
    init_from: InitFrom | None = None
    phases: Annotated[list[PhaseSpec], Field(min_length=1, max_length=64)] | None = None
    """One after another; their shares add up to 1, and `method` is the last one's. null: one phase, of `method`."""
