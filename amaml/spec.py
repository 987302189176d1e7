"""What a run is: the job spec, shared by HTTP, worker, trainer and library. Imports no torch.

Every bound stands in the JSON Schema; rules between fields are validators whose sentence names the remedy.
Operators add families and models as entry points (groups `amaml.families`, `amaml.models`), each naming a
subclass of `FamilySpec` or `ModelSpec`; its `implementation` is imported by the trainer alone.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "AdamSpec",
    "AdjointSpec",
    "AmamlSpec",
    "EvaluationSpec",
    "FamilySpec",
    "Horizon",
    "JobSpec",
    "MetaSpec",
    "ModelSpec",
    "RuleBroken",
    "RuntimeSpec",
    "SolverSpec",
    "TrajectorySpec",
    "families",
    "methods",
    "models",
    "solvers",
]

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Tolerance = Annotated[float, Field(ge=1e-12, le=1e-1)]
Length = Annotated[float, Field(gt=0, le=10_000)]
Shots = Annotated[int, Field(ge=1, le=10_000)]
TaskCount = Annotated[int, Field(ge=1, le=1_000_000)]
TestTasks = Annotated[int, Field(ge=1, le=10_000)]


class RuleBroken(ValueError):
    """A rule between fields is broken. `field` is the path, from the part that has the rule, to the field to change."""

    def __init__(self, sentence: str, *field: str) -> None:
        super().__init__(sentence)
        self.field = field


class Part(BaseModel):
    """A piece of a spec: unknown fields refused, strict types, no NaN, immutable."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )


# ---------------------------------------------------------------------------------------------- task families


class FamilySpec(Part):
    """Base of every task family's spec. Subclasses fix `kind` and name their implementation."""

    implementation: ClassVar[str]
    """`module:function`; called as function(spec, dtype=…, device=…, seed=…, datasets=…) in the trainer."""
    summary: ClassVar[str]
    kind: str


class SyntheticFamilySpec(FamilySpec):
    """Fields shared by families whose tasks are drawn from a formula."""

    shots: Shots = 100
    """Support points a task: what the inner flow trains on."""
    queries: Shots = 100
    """Query points a task: what judges the adapted network during meta-training."""
    test_tasks: TestTasks = 100
    """Unseen tasks set apart for evaluation."""


class CosMixtureSpec(SyntheticFamilySpec):
    implementation: ClassVar[str] = "amaml.families.cosmixture:build"
    summary: ClassVar[str] = (
        "y = −c Σ cos(ωπx_i + φ) − Σ x_i², c∈[.1,1], φ∈[.5,2], ω∈[3,6], x∈[−1,1]^d (the paper's first)."
    )
    kind: Literal["cosmixture"] = "cosmixture"
    dim: Annotated[int, Field(ge=1, le=10)] = 2
    train_tasks: TaskCount = 100


class AlpineSpec(SyntheticFamilySpec):
    implementation: ClassVar[str] = "amaml.families.alpine:build"
    summary: ClassVar[str] = (
        "y = Σ |x_i sin(x_i + π + k_iπ/12) + x_i/10|, k_i∈[−5,5], x∈[−10,10]^d (the paper's second)."
    )
    kind: Literal["alpine"] = "alpine"
    dim: Annotated[int, Field(ge=1, le=10)] = 2
    train_tasks: TaskCount = 100


class SinusoidSpec(SyntheticFamilySpec):
    implementation: ClassVar[str] = "amaml.families.sinusoid:build"
    summary: ClassVar[str] = (
        "y = a sin(x − φ), a∈[.1,5], φ∈[0,π], x∈[−5,5] (Finn et al. 2017, the field's hello-world)."
    )
    kind: Literal["sinusoid"] = "sinusoid"
    shots: Shots = 10
    queries: Shots = 10
    train_tasks: TaskCount | None = None
    """Null draws a fresh task every time, as Finn et al. do."""


class RatingsSpec(FamilySpec):
    implementation: ClassVar[str] = "amaml.families.ratings:build"
    summary: ClassVar[str] = (
        "Collaborative filtering: each user a task, items one-hot; MovieLens and Jester files as published."
    )
    kind: Literal["ratings"] = "ratings"
    dataset: UUID = Field(strict=False)
    """Id of an uploaded data set."""
    items: Annotated[int, Field(ge=2, le=2_000)] = 100
    """How many of the most-rated items are kept; each is one input feature."""
    shots: Shots = 10
    queries: Shots = 15
    train_tasks: TaskCount | None = None
    """Null takes every user with enough ratings that is neither a test nor a validation user."""
    test_tasks: TestTasks = 100


# ----------------------------------------------------------------------------------------------------- models


class ModelSpec(Part):
    """Base of every architecture's spec. Subclasses fix `kind` and name their implementation."""

    implementation: ClassVar[str]
    """`module:function`; called as function(spec, in_features=…, out_features=…) in the trainer, gives a Module."""
    summary: ClassVar[str]
    kind: str


class MLPSpec(ModelSpec):
    implementation: ClassVar[str] = "amaml.models.mlp:build"
    summary: ClassVar[str] = (
        "Fully connected network; gradients and Hessian-vector products by batched matrix products."
    )
    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=1, max_length=8)] = [32, 32]
    activation: Literal["tanh", "sigmoid", "softplus", "relu"] = "tanh"


# ---------------------------------------------------------------------------------------------------- methods


class DiscreteSpec(Part):
    """Exact reverse of the accepted forward steps."""

    kind: Literal["discrete"] = "discrete"
    checkpoints: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """States kept at any time (binomial schedule); null keeps about √N."""


class InterpolatedSpec(Part):
    """The paper's: the adjoint ODE by its own solver over the stored forward trajectory."""

    kind: Literal["interpolated"] = "interpolated"
    scheme: Literal["adaptive", "heun", "euler"] = "adaptive"


class BacksolveSpec(Part):
    """u re-integrated backwards beside λ; constant memory; detects its own failure and fails the job."""

    kind: Literal["backsolve"] = "backsolve"
    max_evaluations: Annotated[int, Field(ge=10, le=10_000_000)] = 20_000


AdjointSpec = Annotated[DiscreteSpec | InterpolatedSpec | BacksolveSpec, Field(discriminator="kind")]


class AmamlSpec(Part):
    summary: ClassVar[str] = "Adjoint MAML: the gradient flow forward, its adjoint backward; any trajectory length."
    kind: Literal["amaml"] = "amaml"
    adjoint: AdjointSpec = DiscreteSpec()
    proximal: Annotated[float, Field(ge=0, le=1_000)] = 0.0
    """ρ: pulls the flow towards θ. 0 is the paper's stated method, 1 what its released code runs."""
    proximal_in_query: bool = False
    """Adds ½ρ‖u(T)−θ‖² to the query loss, as the released code does."""


# ------------------------------------------------------------------------- trajectory, solver, meta-optimizer


class Horizon(Part):
    at: Length
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0


ScheduleEntry = Annotated[
    tuple[Annotated[int, Field(ge=0, strict=True)], Annotated[Length, Field(strict=True)]], Field(strict=False)
]


class TrajectorySpec(Part):
    length: Length = 2.0
    """T: how long the inner flow runs. With step h it is T/h steps of gradient descent at learning rate h."""
    schedule: Annotated[list[ScheduleEntry], Field(min_length=1, max_length=1_000)] | None = None
    """[[iteration, T], …]: from that iteration on the trajectory has that length; before the first, `length`."""
    horizons: Annotated[list[Horizon], Field(min_length=1, max_length=64)] | None = None
    """Several lengths judged at once in one solve, instead of `length`."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if self.schedule is not None and self.horizons is not None:
            raise RuleBroken(
                "schedule and horizons exclude each other: give one of them and leave the other null", "horizons"
            )
        if self.schedule is not None:
            starts = [start for start, _ in self.schedule]
            if starts != sorted(set(starts)):
                raise RuleBroken(
                    f"schedule's iterations must increase strictly, got {starts}: sort them and drop repeats",
                    "schedule",
                )
        if self.horizons is not None:
            times = [horizon.at for horizon in self.horizons]
            if times != sorted(set(times)):
                raise RuleBroken(
                    f"horizons must increase strictly in `at`, got {times}: sort them and drop repeats", "horizons"
                )
        return self


FIXED_STEP = ("euler", "heun", "rk4")
ADAPTIVE = ("bosh3", "dopri5")
TORCHDIFFEQ_FIXED = ("midpoint", "heun2", "heun3", "explicit_adams", "implicit_adams")
TORCHDIFFEQ = ("dopri8", "adaptive_heun", "fehlberg2", *TORCHDIFFEQ_FIXED)


class SolverSpec(Part):
    kind: Literal[
        "euler", "heun", "rk4", "bosh3", "dopri5",
        "dopri8", "adaptive_heun", "fehlberg2", "midpoint", "heun2", "heun3", "explicit_adams", "implicit_adams",
    ] = "dopri5"  # fmt: skip
    """Those from dopri8 on are torchdiffeq's, by its names: one step for the whole batch, gradient by its graph."""
    rtol: Tolerance = 1e-6
    """Relative tolerance of the adaptive solvers."""
    atol: Tolerance = 1e-6
    """Absolute tolerance of the adaptive solvers, in units of the parameters."""
    step: Annotated[float, Field(ge=1e-6, le=10)] | None = None
    """Step size of the fixed-step solvers (null: 0.01); adaptive solvers choose their own and take none."""
    guard: bool = True
    """Adaptive: cap h·λmax, so that the adjoint is stable. Fixed-step: fail when h·λmax leaves the stability region."""

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


class AdamSpec(Part):
    kind: Literal["adam", "sgd"] = "adam"
    lr: Annotated[float, Field(gt=0, le=100)] = 1e-3
    schedule: Literal["constant", "inverse_sqrt", "cosine"] = "constant"


class InitFrom(Part):
    job: UUID = Field(strict=False)
    """A job of this workspace whose θ this one starts from."""
    step: Annotated[int, Field(ge=0)] | None = None
    """A checkpoint of that job; null takes its finished initialization."""


class MetaSpec(Part):
    iterations: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """Meta-iterations: meta-gradients computed and applied."""
    tasks_per_batch: Annotated[int, Field(ge=1, le=4_096)] = 16
    optimizer: AdamSpec = AdamSpec()
    init_from: InitFrom | None = None


# ------------------------------------------------------------------------------------- evaluation and runtime


class EvaluationSpec(Part):
    every: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Meta-iterations between evaluations; the last iteration is always evaluated."""
    tasks: TestTasks = 100
    """Unseen tasks evaluated (at most the family's test_tasks)."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Full-batch Adam epochs of the fine-tuning curve."""
    lr: Annotated[float, Field(gt=0, le=100)] = 1e-3
    select: Literal["last", "validation"] = "last"
    """Which θ becomes the initialization: the last, or the best on validation tasks."""


class RuntimeSpec(Part):
    seed: Seed = 0
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    checkpoint_every: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    certify_every: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Meta-iterations between certificates, each of which measures the meta-gradient's error by a finer solve."""
    certify_limit: Annotated[float, Field(gt=0, le=1_000)] = 0.25
    """Largest relative error that a certificate may find in any task: three over it in a row fail the run."""
    max_seconds: Annotated[float, Field(gt=0, le=31_536_000)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5


# ------------------------------------------------------------------------------------------------ the registry


def _with_entry_points(group: str, base: type[Part], builtin: tuple[type[Any], ...]) -> tuple[type[Any], ...]:
    """Built-in spec classes and those that installed packages offer, by their `kind`; a doubled kind is an error."""
    classes = list(builtin)
    for point in entry_points(group=group):
        cls = point.load()
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise TypeError(
                f"entry point {point.name!r} of {group} names {cls!r}, which is no subclass of {base.__name__}"
            )
        classes.append(cls)
    kinds = [_kind(cls) for cls in classes]
    doubled = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if doubled:
        raise ValueError(f"{group}: kind {', '.join(doubled)} is offered twice; uninstall one of the packages")
    return tuple(classes)


def _kind(cls: type[Part]) -> str:
    return str(cls.model_fields["kind"].default)


_FAMILIES = _with_entry_points("amaml.families", FamilySpec, (CosMixtureSpec, AlpineSpec, SinusoidSpec, RatingsSpec))
_MODELS = _with_entry_points("amaml.models", ModelSpec, (MLPSpec,))
_METHODS: tuple[type[Any], ...] = (AmamlSpec,)

if TYPE_CHECKING:
    AnyFamily = FamilySpec
    AnyModel = ModelSpec
    AnyMethod = AmamlSpec
else:

    def _union(classes):
        return Annotated[Union[classes], Field(discriminator="kind")] if len(classes) > 1 else classes[0]  # noqa: UP007 - a tuple of classes

    AnyFamily, AnyModel, AnyMethod = _union(_FAMILIES), _union(_MODELS), _union(_METHODS)


class JobSpec(Part):
    """A meta-training run. Only `family` is required; the completed spec is written back in the job."""

    name: Annotated[str, Field(max_length=200)] = ""
    tags: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=256)]],
        Field(max_length=32),
    ] = {}
    family: AnyFamily
    model: AnyModel = MLPSpec()
    method: AnyMethod = AmamlSpec()
    trajectory: TrajectorySpec = TrajectorySpec()
    solver: SolverSpec = SolverSpec()
    meta: MetaSpec = MetaSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    runtime: RuntimeSpec = RuntimeSpec()

    @model_validator(mode="after")
    def _tolerance_that_the_dtype_can_hold(self) -> Self:
        if self.runtime.dtype == "float32" and self.solver.kind not in FIXED_STEP and self.solver.rtol < 1e-6:
            raise RuleBroken(
                f"solver.rtol {self.solver.rtol:g} is below what float32 can hold (1e-6): "
                "set runtime.dtype to float64 or solver.rtol to 1e-6 or more",
                "solver", "rtol",
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _adjoint_that_the_solver_can_serve(self) -> Self:
        if self.solver.kind in TORCHDIFFEQ:
            adjoint = self.method.adjoint
            if adjoint != DiscreteSpec():
                raise RuleBroken(
                    f"solver {self.solver.kind} is torchdiffeq's and keeps its own graph: use method.adjoint discrete "
                    "with checkpoints null, or choose euler, heun, rk4, bosh3 or dopri5",
                    "method", "adjoint",
                )  # fmt: skip
        return self

    def canonical(self) -> str:
        """The completed spec as JSON with sorted keys and no spaces: equal specs give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def sha256(self) -> str:
        """Hash of `canonical()` in hexadecimal."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


def families() -> dict[str, type[FamilySpec]]:
    """Every task family on this machine by kind, built-in ones first."""
    return {_kind(cls): cls for cls in _FAMILIES}


def models() -> dict[str, type[ModelSpec]]:
    """Every architecture on this machine by kind, built-in ones first."""
    return {_kind(cls): cls for cls in _MODELS}


def methods() -> dict[str, type[AmamlSpec]]:
    """Every meta-gradient estimator by kind."""
    return {_kind(cls): cls for cls in _METHODS}


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
