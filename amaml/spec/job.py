"""The job spec. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from amaml.spec.entry_points import kind_of
from amaml.spec.evaluation import EvaluationSpec
from amaml.spec.kinds import DEFAULT_MODEL, AnyFamily, AnyModel, families, methods
from amaml.spec.meta import MetaSpec, PhaseSpec
from amaml.spec.method import AdjointSpec, AmamlSpec, AnyMethod, DiscreteSpec, InterpolatedSpec
from amaml.spec.part import Part, RuleBroken
from amaml.spec.presets import Preset, filled_in
from amaml.spec.runtime import RuntimeSpec
from amaml.spec.solver import ADAPTIVE, FIXED_STEP, TORCHDIFFEQ, SolverSpec
from amaml.spec.trajectory import TrajectorySpec


def _completed(data: dict[str, Any]) -> dict[str, Any]:
    """A spec or a phase with the kinds that may be left out filled in."""
    method, solver = data.get("method"), data.get("solver")
    if isinstance(method, dict) and "kind" not in method:
        data = {**data, "method": {"kind": "amaml", **method}}
    kind = method.get("kind") if isinstance(method, dict) else getattr(method, "kind", None)
    descends = any(cls.descends for own, cls in methods().items() if own == kind)
    if descends and isinstance(solver, dict) and "kind" not in solver:
        data = {**data, "solver": {"kind": "euler", **solver}}
    return data


class JobSpec(Part):
    """A meta-training run. Only `family` is required; the completed spec is written back in the job."""

    name: Annotated[str, Field(max_length=200)] = ""
    tags: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=256)]],
        Field(max_length=32),
    ] = {}  # noqa: RUF012 - pydantic copies it
    preset: Preset | None = None
    """Fills in what the spec leaves out, and the job shows it. default: the recipe that trains best in a minute or two; paper:
    the paper's setting. A spec without `method` and `meta` gets default."""
    family: AnyFamily
    model: AnyModel = DEFAULT_MODEL(kind=kind_of(DEFAULT_MODEL))
    method: Annotated[AnyMethod, Field(discriminator="kind")] = AmamlSpec()
    trajectory: TrajectorySpec = TrajectorySpec()
    solver: SolverSpec = SolverSpec()
    """The solver of the inner flow. For maml and maml1, whose inner steps are gradient descent, it is euler unless named."""
    meta: MetaSpec = MetaSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    runtime: RuntimeSpec = RuntimeSpec()

    @model_validator(mode="before")
    @classmethod
    def _what_goes_without_saying(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = filled_in(data, families())
        model, meta = data.get("model"), data.get("meta")
        if isinstance(model, dict) and "kind" not in model:
            data = {**data, "model": {"kind": kind_of(DEFAULT_MODEL), **model}}
        if isinstance(meta, dict) and isinstance(meta.get("phases"), list):
            phases = [_completed(phase) if isinstance(phase, dict) else phase for phase in meta["phases"]]
            data = {**data, "meta": {**meta, "phases": phases}}
            last = phases[-1] if phases else None
            own = last.get("method") if isinstance(last, dict) else getattr(last, "method", None)
            if data.get("method") is None and own is not None:
                data = {**data, "method": own}
        return _completed({"solver": {}, **data})

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
    def _network_that_the_family_can_use(self) -> Self:
        if self.model.reads_pictures and not self.family.gives_pictures:
            able = " or ".join(kind for kind, cls in families().items() if cls.gives_pictures)
            raise RuleBroken(
                f"{self.model.kind} reads pictures, and family {self.family.kind} gives none: set model.kind to "
                f"{kind_of(DEFAULT_MODEL)}, or choose family {able}",
                "model", "kind",
            )  # fmt: skip
        kinks = self.model.not_smooth()
        if self.family.differentiates_inputs and kinks is not None:
            field, what = kinks
            raise RuleBroken(
                f"family {self.family.kind} needs the network's second derivatives in its inputs, and {what}",
                "model", field,
            )  # fmt: skip
        lacking = self.family.without_validation()
        if self.evaluation.select == "validation" and lacking is not None:
            field, what = lacking
            raise RuleBroken(
                f"evaluation.select is validation, which needs validation tasks, but {what}, or set evaluation.select to last",
                "family", field,
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _validation_tasks_that_end_the_run(self) -> Self:
        for name in ("patience", "target"):
            if getattr(self.meta, name) is not None and not self.method.trains:
                raise RuleBroken(
                    f"{self.method.kind} trains nothing that {name} could end: set meta.{name} to null", "meta", name
                )
            if getattr(self.meta, name) is not None and self.evaluation.select != "validation":
                raise RuleBroken(
                    f"{name} looks at the validation score, which select = last doesn't compute: set evaluation.select to "
                    f"validation, or meta.{name} to null",
                    "meta", name,
                )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _rate_for_something_learned(self) -> Self:
        if self.meta.learn_lr is not None and not any(method.learned for method in self._methods):
            raise RuleBroken(
                f"learn_lr is the rate of what the method learns beside θ, and {self.method.kind} learns nothing else here: set "
                "meta.learn_lr to null, or name length, rates or proximal in method.learn",
                "meta", "learn_lr",
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _what_the_solver_decides(self) -> Self:
        """Fills in the adjoint and the guard where the solver decides them."""
        by_solver = InterpolatedSpec() if self.solver.kind in ADAPTIVE else DiscreteSpec()
        method = self.method.with_adjoint(by_solver)
        if method is not self.method:
            object.__setattr__(self, "method", method)
        if self.solver.guard is None:
            guard = self._guard_by_adjoint(method.own_adjoint or by_solver)
            object.__setattr__(self, "solver", self.solver.model_copy(update={"guard": guard}))
        return self

    @property
    def _methods(self) -> list[AnyMethod]:
        return [self.method, *(phase.method for phase in self.meta.phases or [])]

    def _guard_by_adjoint(self, adjoint: AdjointSpec) -> bool:
        return self.solver.kind not in ADAPTIVE or not adjoint.controls_lambda

    @model_validator(mode="after")
    def _adjoint_that_the_solver_can_serve(self) -> Self:
        if self.solver.kind in TORCHDIFFEQ and self.method.own_adjoint not in (None, DiscreteSpec()):
            raise RuleBroken(
                f"solver {self.solver.kind} is torchdiffeq's and keeps its own graph: use method.adjoint discrete "
                "with checkpoints null, or choose euler, heun, rk4, bosh3 or dopri5",
                "method", "adjoint",
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _what_the_method_asks_of_solver_and_trajectory(self) -> Self:
        self.method.check(self.solver, self.trajectory)
        return self

    @model_validator(mode="after")
    def _what_the_method_can_use(self) -> Self:
        if self.runtime.certify_every is not None and not any(method.exact for method in self._methods):
            able = ", ".join(kind for kind, cls in methods().items() if cls.exact)
            raise RuleBroken(
                f"{self.method.kind} has no error that a certificate could measure, for it doesn't compute the objective's own "
                f"gradient: set runtime.certify_every to null, or choose one of {able}",
                "runtime", "certify_every",
            )  # fmt: skip
        if not self.method.trains and self.meta.init_from is not None:
            raise RuleBroken(
                f"{self.method.kind} evaluates the random start, so it starts from no other job: set meta.init_from to null, or "
                "choose another method",
                "meta", "init_from",
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _phases_that_can_run(self) -> Self:
        """Fills in what the solver decides in each phase."""
        if self.meta.phases is None:
            return self
        total = sum(phase.share for phase in self.meta.phases)
        if abs(total - 1) > 1e-6:
            raise RuleBroken(
                f"the shares of the phases add up to {total:.9g}, and must to 1: scale them", "meta", "phases"
            )
        completed, learned = [], set[str]()
        for number, (phase, iterations) in enumerate(zip(self.meta.phases, self._iterations_of_phases(), strict=True)):
            at = ("meta", "phases", str(number))
            if not phase.method.trains:
                sentence = f"{phase.method.kind} trains nothing, so it is no phase: leave it out"
                raise RuleBroken(sentence, *at, "method", "kind")
            if not iterations:
                raise RuleBroken(
                    f"share {phase.share:g} of {self.meta.iterations} meta-iterations is none: raise it, or meta.iterations",
                    *at,
                    "share",
                )
            if learned and not phase.method.flow_can_be_learned:
                raise RuleBroken(
                    f"a phase before has learned {', '.join(sorted(learned))} of the flow, by which {phase.method.kind} doesn't "
                    "flow: use amaml or comln from there on", *at, "method", "kind",
                )  # fmt: skip
            learned |= set(phase.method.learned)
            trajectory = phase.trajectory or self.trajectory
            if "length" in learned and (trajectory.schedule is not None or trajectory.horizons is not None):
                raise RuleBroken(
                    "a length that was learned, in this phase or before, excludes schedule and horizons: set them to "
                    "null", *at, "trajectory"
                )  # fmt: skip
            alone = self._during(phase, at)
            solver = None if phase.solver is None else alone.solver
            completed.append(phase.model_copy(update={"method": alone.method, "solver": solver}))
        last = self.meta.phases[-1]
        for name in ("trajectory", "solver"):
            if getattr(last, name) is not None:
                raise RuleBroken(
                    f"the last phase trains for the run's own {name}: say it at {name}, and leave it null here",
                    *at,
                    name,
                )
        if self.method != completed[-1].method:
            raise RuleBroken("method is that of the last phase: leave it out, or make them alike", "method", "kind")
        object.__setattr__(self, "meta", self.meta.model_copy(update={"phases": completed}))
        return self

    def _during(self, phase: PhaseSpec, at: tuple[str, ...]) -> JobSpec:
        """The spec of a run that consists of this phase alone. Raises RuleBroken, with `at` as the phase's path in the spec."""
        meta = self.meta.model_copy(
            update={
                "phases": None,
                "optimizer": phase.optimizer or self.meta.optimizer,
                "clip": phase.clip or self.meta.clip,
                "learn_lr": self.meta.learn_lr if phase.method.learned else None,
            }
        )
        runtime = self.runtime if phase.method.exact else self.runtime.model_copy(update={"certify_every": None})
        parts = {name: getattr(self, name) for name in type(self).model_fields}
        parts |= {"preset": None, "method": phase.method, "meta": meta, "runtime": runtime}
        parts |= {name: getattr(phase, name) or parts[name] for name in ("trajectory", "solver")}
        adjoint = self.method.own_adjoint or DiscreteSpec()
        if phase.solver is None and self.solver.guard == self._guard_by_adjoint(adjoint):
            # It was decided for the last phase's adjoint, and is for this one's anew.
            parts["solver"] = self.solver.model_copy(update={"guard": None})
        try:
            return type(self).model_validate(parts)
        except ValidationError as error:
            broken = error.errors()[0].get("ctx", {}).get("error")
            if not isinstance(broken, RuleBroken):
                raise
            is_of_phase = bool(broken.field) and broken.field[0] in PhaseSpec.model_fields
            place = (*at, *broken.field) if is_of_phase else broken.field
            raise RuleBroken(str(broken), *place) from error

    def _iterations_of_phases(self) -> list[range]:
        ends = accumulate(phase.share for phase in self.meta.phases or [])
        rounded = [0, *(round(self.meta.iterations * min(end, 1.0)) for end in ends)]
        rounded[-1] = self.meta.iterations
        return [range(begin, end) for begin, end in pairwise(rounded)]

    @property
    def phases(self) -> list[tuple[range, JobSpec]]:
        """The meta-iterations (from 0) of every phase, and the spec that holds for them; one phase where none are named."""
        if self.meta.phases is None:
            return [(range(self.meta.iterations), self)]
        specs = [self._during(phase, ()) for phase in self.meta.phases]
        return list(zip(self._iterations_of_phases(), specs, strict=True))

    def extended(self, iterations: int) -> Self:
        """The same spec with more meta-iterations in all, whose run begins as this one's. Raises RuleBroken where it wouldn't,
        since something depends on the number of meta-iterations."""
        at, now = ("meta", "iterations"), self.meta.iterations
        if iterations <= now:
            raise RuleBroken(f"the run has {now} meta-iterations: name more than that, in all, got {iterations}", *at)
        remedy = "submit a job that starts from this one by meta.init_from instead"
        if self.meta.phases is not None:
            raise RuleBroken(f"the phases of a run are shares of its {now} meta-iterations: {remedy}", *at)
        if self.meta.optimizer.schedule == "cosine":
            raise RuleBroken(f"a cosine schedule ends with the run's {now} meta-iterations: {remedy}", *at)
        longer = self.model_copy(update={"meta": self.meta.model_copy(update={"iterations": iterations})})
        return type(self).from_document(longer.model_dump(mode="json"))

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The spec that this or an earlier release, which had fewer fields, stored as this JSON object. Raises
        ValidationError."""
        return cls.model_validate_json(json.dumps(document))

    def canonical(self) -> str:
        """The completed spec as JSON with sorted keys and no spaces: equal specs give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def sha256(self) -> str:
        """The SHA-256 of `canonical()`, in hexadecimal."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()
