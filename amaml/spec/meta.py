"""The meta-step: optimizer, clipping of gradients, phases, and where a run starts. Imports no torch."""

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
    """The learning rate over the meta-iterations: constant; divided by √(1 + i/1000); or half a cosine from lr to 0."""
    warmup: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """The number of meta-iterations over which the learning rate rises linearly to the schedule's."""
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] | None = None
    """The decay rates of adam's and adamw's moving averages of the gradient and its square (null: 0.9 and 0.999)."""
    momentum: Beta | None = None
    """The momentum of sgd (null: 0)."""
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Weight decay of θ alone: adam and sgd add it times θ to the gradient; adamw subtracts lr times it times θ from θ."""

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
    """Clips gradients whose norm is above a bound to that bound."""

    per: Literal["task", "batch"] = "task"
    """task: clips each task's gradient before the mean over tasks; batch: clips the mean."""
    at: Literal["median"] | Annotated[float, Field(gt=0, le=1e12)] = "median"
    """The bound on the norm of θ's gradient: a number, or the median of the last `window` norms, this meta-iteration's
    included."""
    factor: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """The bound is `at` times this factor."""
    window: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    """The number of norms of which the median is taken."""


class InitFrom(Part):
    job: UUID = Field(strict=False)
    """The job of this workspace from which this one starts."""
    step: Annotated[int, Field(ge=0)] | None = None
    """The step of one of that job's checkpoints; null: its finished initialization."""
    state: Literal["theta", "learned", "full"] = "theta"
    """theta: θ alone. learned: also the learned quantities of the flow. full: the whole state of a checkpoint, so that the run
    continues from that meta-iteration with its optimizer."""

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
    """A share of the run's meta-iterations with a method of its own. θ and the learned quantities of the flow are carried over
    to the next phase; the optimizer starts anew. Fields that are null are those of the run."""

    method: Annotated[AnyMethod, Field(discriminator="kind")]
    share: Annotated[float, Field(gt=0, le=1)]
    """The share of meta.iterations."""
    optimizer: OptimizerSpec | None = None
    """The phase's optimizer, whose schedule extends over the phase."""
    clip: ClipSpec | None = None
    trajectory: TrajectorySpec | None = None
    """The phase's trajectory. The last phase's is the run's, which evaluations use."""
    solver: SolverSpec | None = None


class MetaSpec(Part):
    iterations: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """The number of meta-iterations: meta-gradients that are computed and applied."""
    tasks_per_batch: Annotated[int, Field(ge=1, le=4_096)] = 16
    optimizer: OptimizerSpec = OptimizerSpec()
    clip: ClipSpec | None = None
    """Clips gradients: after long trajectories a few tasks may have gradients that are much larger than all others. null: no
    clipping."""
    learn_lr: Annotated[float, Field(gt=0, le=100)] | None = None
    """The learning rate for the quantities of `method.learn`; null: that of θ. The schedule applies to both."""
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The decay rate (such as 0.999) of a moving average of θ, which is evaluated and kept instead of the last θ; null: no
    average."""
    patience: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Ends the run after this number of evaluations in a row without a better validation score; null: never."""
    target: Annotated[float, Field(ge=-1e12, le=1e12)] | None = None
    """Ends the run when the validation score reaches this value; null: never."""
    init_from: InitFrom | None = None
    phases: Annotated[list[PhaseSpec], Field(min_length=1, max_length=64)] | None = None
    """The phases, one after another. Their shares add up to 1, and `method` is that of the last. null: a single phase, with
    `method`."""
