"""The meta-training loop: draw tasks, estimate the meta-gradient, update θ, evaluate at intervals. It can be interrupted and
resumed to the same bits."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from amaml import memory
from amaml.flow.result import Result, SolveError
from amaml.methods.amaml.gradient import MetaGradient
from amaml.methods.certificate import Certificate
from amaml.methods.estimate import GradientEstimate
from amaml.metrics import (
    CERTIFICATE_ERROR,
    CERTIFICATE_OVER_LIMIT,
    EVALUATION_MICRO_BATCH,
    GRADIENTS,
    HVPS,
    LAMBDA_MAX,
    LEFT_OUT,
    MICRO_BATCH,
    SECONDS,
)
from amaml.run import checkpoint as checkpoints
from amaml.run import initialization as initializations
from amaml.run import setup as setups
from amaml.run import state as states
from amaml.run.assessment import assess, has_ended, is_due, tasks_at_once
from amaml.run.evaluation import Evaluation
from amaml.run.learned_flow import PREFIX, LearnedFlow
from amaml.run.meta_step import meta_step
from amaml.run.micro_batches import halved, in_micro_batches
from amaml.run.outcome import CertificateFailed, Diverged, OutOfMemory, TimedOut
from amaml.run.schedules import length_at
from amaml.run.setup import Phase, Setup
from amaml.run.state import State
from amaml.spec import JobSpec

__all__ = ["CertificateFailed", "Diverged", "OutOfMemory", "Report", "TimedOut", "Training", "TrainingRun", "train"]

_log = logging.getLogger(__name__)
T = TypeVar("T")
CERTIFICATES_IN_A_ROW = 3
"""The number of certificates in a row above their limit that fails a run: a single one may come from an unusual task."""
MAY_BE_LEFT_OUT = 0.01
"""The fraction of a run's tasks that may be left out because their solves became infinite or NaN; a single one is always
allowed."""
_NO_DATA: Mapping[str, Path] = MappingProxyType({})


@dataclass(frozen=True)
class Report:
    """A report of progress."""

    phase: str
    """`training` or `evaluating`."""
    iteration: int
    """Meta-iterations done."""
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    """The scores whose means are the metrics, after an evaluation."""


@dataclass(frozen=True)
class TrainingRun:
    """A finished run."""

    spec: JobSpec
    initialization: dict[str, Tensor]
    """θ by parameter name."""
    learned: LearnedFlow
    """The quantities of the flow that were trained in addition to θ."""
    metrics: dict[str, list[tuple[int, float]]]
    """name → [(meta-iteration, value), …]."""
    evaluations: dict[int, Evaluation]
    """Meta-iteration → scores of all test tasks, with their fine-tuning curves."""
    training: Training

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file that `amaml.load` reads."""
        self.training.save_initialization(Path(path))


def train(
    spec: JobSpec | Mapping[str, Any],
    datasets: Mapping[str, Path] = _NO_DATA,
    *,
    initialization: str | os.PathLike[str] | None = None,
) -> TrainingRun:
    """Runs the spec (a JobSpec, or a mapping that is valid as one) in this process. `datasets`: data set id → path;
    `initialization`: the file from which θ starts.

    Raises DataError, SolveError, Diverged, CertificateFailed, OutOfMemory, TimedOut, InitializationError.
    """
    if not isinstance(spec, JobSpec):
        spec = JobSpec.model_validate(spec)
    start_from = None if initialization is None else Path(initialization)
    training = Training.start(spec, datasets, initialization=start_from)
    metrics: dict[str, list[tuple[int, float]]] = {}
    evaluations: dict[int, Evaluation] = {}
    for report in training:
        if report.evaluation is not None:
            evaluations[report.iteration] = report.evaluation
        for name, value in report.metrics.items():
            metrics.setdefault(name, []).append((report.iteration, value))
    return TrainingRun(spec, training.initialization, training.learned, metrics, evaluations, training)


class Training:
    """A run, which iteration over this object executes. It can be stopped after every report and resumed elsewhere from its
    checkpoint, and ends in the same bits on the same kind of CPU."""

    def __init__(self, setup: Setup, state: State) -> None:
        """See `start` and `resume`."""
        self.spec, self.iterations = setup.spec, setup.spec.meta.iterations
        self.setup, self.state = setup, state
        self._began = time.monotonic() - state.progress.seconds

    @classmethod
    def start(
        cls, spec: JobSpec, datasets: Mapping[str, Path] = _NO_DATA, *, initialization: Path | None = None
    ) -> Training:
        """A new run, from the random start or the θ of a file; `datasets`: data set id → path. Sets torch's number of threads and
        deterministic algorithms for the whole process.

        Raises DataError if the data can't serve the spec, ValueError for a device or file that doesn't exist,
        InitializationError for a file that doesn't fit.
        """
        setup = setups.build(spec, datasets, spec.runtime.threads or torch.get_num_threads())
        return cls(setup, states.start(setup, initialization))

    @classmethod
    def resume(cls, spec: JobSpec, checkpoint: Path, datasets: Mapping[str, Path] = _NO_DATA) -> Training:
        """The run that wrote the checkpoint, in the state it had then and with the same number of threads. Raises as `start`, and
        CheckpointError."""
        saved = checkpoints.restore(checkpoint, spec, setups.device_of(spec))
        setup = setups.build(spec, datasets, saved.progress.threads)
        return cls(setup, states.resume(setup, saved))

    @property
    def iteration(self) -> int:
        """Meta-iterations done."""
        return self.state.progress.iteration

    @property
    def parameters(self) -> int:
        """The number of parameters: the size of θ."""
        return sum(tensor.numel() for tensor in self.state.theta.values())

    @property
    def initialization(self) -> dict[str, Tensor]:
        """The θ that the run has learned so far: the latest, or with evaluation.select = validation the best one evaluated."""
        return {name: tensor for name, tensor in self.state.chosen.items() if not name.startswith(PREFIX)}

    @property
    def learned(self) -> LearnedFlow:
        """The quantities of the flow that were trained together with that θ."""
        return LearnedFlow.among(self.state.chosen)

    @property
    def early_end(self) -> tuple[str, str] | None:
        """If the run has ended before its last meta-iteration, the reason: a code and a sentence."""
        meta, progress = self.spec.meta, self.state.progress
        if progress.ended_by is None or progress.best is None or self.iteration == self.iterations:
            return None
        after = f"so the run ended after {self.iteration} of {self.iterations} meta-iterations"
        step, score = progress.best
        if progress.ended_by == "target":
            return (
                "target_reached",
                f"The validation score came to {score:.4g} (meta.target is {meta.target:g}), {after}.",
            )
        return "patience_spent", (
            f"The validation score was no better in {progress.worse} evaluations in a row (meta.patience) than the {score:.4g} "
            f"after meta-iteration {step}, {after}."
        )

    def __iter__(self) -> Iterator[Report]:
        """Runs to the end, with a report after every meta-iteration. There are also reports during an evaluation, of which the
        last has its metrics, and during a certificate, before its meta-iteration is done. Raises SolveError, Diverged,
        CertificateFailed, OutOfMemory, TimedOut."""
        try:
            yield from self._run()
        except SolveError as error:
            if error.code is Result.NON_FINITE:
                raise Diverged.in_training(self.iteration, self.iterations, str(error)) from error
            raise

    def _run(self) -> Iterator[Report]:
        counts = self.setup.family.counts
        if self.iteration == 0 and counts:
            yield Report("training", 0, {name: float(count) for name, count in counts.items()})
        while True:
            self._check_certificates()
            if is_due(self.setup, self.state):
                yield from self._evaluate()
            if has_ended(self.setup, self.state.progress):
                return
            yield from self._step(self.setup.phase(self.iteration))

    def _step(self, phase: Phase) -> Iterator[Report]:
        """One meta-iteration."""
        started = time.perf_counter()
        self._check_time()
        tasks = self.setup.family.training_batch(self.iteration, self.spec.meta.tasks_per_batch)
        micro_batch = self.state.progress.micro_batch
        estimate, left_out = yield from self._estimate_of_finite(phase, tasks)
        yield from self._certify(estimate)
        metrics = meta_step(self.setup, self.state, estimate)
        self.state.progress.iteration += 1
        self.state.progress.left_out += left_out
        if self.iteration == phase.iterations.stop != self.iterations:
            self.state.enter(self.setup.phase(self.iteration))
        if left_out:
            metrics[LEFT_OUT] = float(left_out)
        if self.state.progress.micro_batch != micro_batch:
            metrics[MICRO_BATCH] = float(self.state.progress.micro_batch or 0)
        if trouble := self.state.learned.trouble():
            raise Diverged.in_training(self.iteration, self.iterations, trouble)
        metrics |= {**_of_solve(estimate), **self.state.learned.metrics}
        if isinstance(estimate, MetaGradient) and estimate.certificate is not None:
            metrics |= self._certified(estimate.certificate)
        yield Report("training", self.iteration, {**metrics, SECONDS: time.perf_counter() - started})

    def _estimate_of_finite(
        self, phase: Phase, tasks: dict[str, Tensor]
    ) -> Generator[Report, None, tuple[GradientEstimate, int]]:
        """The meta-gradient of the batch without the tasks whose solves became infinite or NaN, and the number of those. Raises
        SolveError where none is left, or where the run has left out too many tasks in all."""
        size, solvable = len(tasks["support_x"]), tasks
        rows = list(range(size))
        allowed = max(1.0, MAY_BE_LEFT_OUT * size * (self.iteration + 1))
        while True:
            try:
                estimate = yield from self._estimate_that_fits(phase, solvable)
                return estimate, size - len(rows)
            except SolveError as error:
                failures = [replace(failure, task=rows[failure.task]) for failure in error.failures]
                failed = {failure.task for failure in failures if failure.code is Result.NON_FINITE}
                rows = [row for row in rows if row not in failed]
                left_out = self.state.progress.left_out + size - len(rows)
                if not (failed and rows) or left_out > allowed:
                    raise SolveError(failures) from error
                _log.warning("meta-iteration %d leaves out %d tasks: %s", self.iteration, len(failed), error)
                solvable = {name: tensor[rows] for name, tensor in tasks.items()}

    def _estimate_that_fits(self, phase: Phase, tasks: dict[str, Tensor]) -> Generator[Report, None, GradientEstimate]:
        """The meta-gradient, in micro-batches where the whole batch doesn't fit into memory, with a report after each. Raises
        OutOfMemory where a single task doesn't fit."""
        progress, batch = self.state.progress, len(tasks["support_x"])
        while True:
            size = min(progress.micro_batch or batch, batch)
            work = in_micro_batches(partial(self._estimate, phase), tasks, size)
            try:
                return (yield from self._watched(work, "training"))
            except Exception as error:  # noqa: BLE001 - `halved` raises it again if it isn't about memory
                progress.micro_batch = halved(error, size, "a meta-gradient", self.spec, self.setup.device)
            memory.release(self.setup.device)

    def _watched(self, work: Generator[None, None, T], phase: str) -> Generator[Report, None, T]:
        """Executes the work with a report whenever it yields; returns the work's value."""
        while True:
            try:
                next(work)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            self._check_time()
            yield Report(phase, self.iteration)

    def _estimate(self, phase: Phase, tasks: dict[str, Tensor]) -> GradientEstimate:
        """The method's meta-gradient."""
        assert phase.estimator is not None, "a method that trains nothing has no meta-iteration to do"
        trajectory, learned = phase.spec.trajectory, self.state.learned
        horizons = None if trajectory.horizons is None else [(one.at, one.weight) for one in trajectory.horizons]
        return phase.estimator(
            self.state.theta,
            *self.setup.losses,
            tasks,
            length=None if horizons else learned.length or length_at(trajectory, self.iteration),
            horizons=horizons,
            solver=phase.solver,
            **learned.arguments(phase.spec),
        )

    def _evaluate(self) -> Iterator[Report]:
        """An assessment; where it doesn't fit into memory, it is started again with half as many tasks at once. Raises
        OutOfMemory where a single task doesn't fit."""
        micro_batch = self.state.progress.evaluation_micro_batch
        while True:
            size = tasks_at_once(self.setup, self.state)
            try:
                metrics, found = yield from self._watched(assess(self.setup, self.state), "evaluating")
                break
            except Exception as error:  # noqa: BLE001 - `halved` raises it again if it isn't about memory
                smaller = halved(error, size, "an evaluation", self.spec, self.setup.device)
                self.state.progress.evaluation_micro_batch = smaller
            memory.release(self.setup.device)
        if self.state.progress.evaluation_micro_batch != micro_batch:
            metrics[EVALUATION_MICRO_BATCH] = float(self.state.progress.evaluation_micro_batch or 0)
        yield Report("evaluating", self.iteration, metrics, found)

    def _certify(self, estimate: GradientEstimate) -> Generator[Report, None, None]:
        """Certifies the meta-gradient every runtime.certify_every meta-iterations, with a report after each task."""
        every = self.spec.runtime.certify_every
        if every is not None and (self.iteration + 1) % every == 0 and isinstance(estimate, MetaGradient):
            for _ in estimate.certify():
                yield Report("training", self.iteration)
                self._check_time()

    def _certified(self, certificate: Certificate) -> dict[str, float]:
        """The certificate's metrics, those of the worst task; counts the certificates in a row above the limit."""
        error, progress = certificate.error.max().item(), self.state.progress
        over = error > self.spec.runtime.certify_limit
        progress.over_limit = progress.over_limit + 1 if over else 0
        progress.undecided = next((reason for reason in certificate.reasons if reason is not None), None)
        if progress.undecided is not None:
            _log.warning("certificate after meta-iteration %d: %s", self.iteration, progress.undecided)
        return {CERTIFICATE_ERROR: error, CERTIFICATE_OVER_LIMIT: float(over)}

    def _check_certificates(self) -> None:
        """Raises CertificateFailed after too many certificates in a row above the limit. It is called after the report of the
        last one, and again in a run that is resumed from there."""
        progress = self.state.progress
        if progress.over_limit >= CERTIFICATES_IN_A_ROW:
            why = "" if progress.undecided is None else f" (it is infinite: {progress.undecided})"
            raise CertificateFailed(
                f"the meta-gradient's relative error was above runtime.certify_limit ({self.spec.runtime.certify_limit:g}) in "
                f"{progress.over_limit} certificates in a row, the last after meta-iteration {self.iteration} of "
                f"{self.iterations}{why}: lower solver.rtol and solver.atol or solver.step, set runtime.dtype to float64, "
                "leave solver.guard and method.adjoint to the solver (null), or raise the limit"
            )

    def _check_time(self) -> None:
        limit = self.spec.runtime.max_seconds
        if limit is not None and self._seconds() > limit:
            raise TimedOut(
                f"runtime.max_seconds of {limit:g} was used up after {self.iteration} of {self.iterations} meta-iterations: "
                "raise it, or ask for fewer iterations or cheaper evaluations"
            )

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def save_checkpoint(self, path: Path) -> None:
        """Writes a checkpoint, from which `resume` continues."""
        self.state.progress.seconds = self._seconds()
        metadata = initializations.metadata_of(self.spec, self.setup.family, self.iteration)
        checkpoints.save(path, self.state.checkpoint(), metadata, self.setup.device)

    def save_initialization(self, path: Path, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        """Writes the file that `amaml.load` reads, with additional `metadata` (a job's id, say)."""
        own = initializations.metadata_of(self.spec, self.setup.family, self.state.chosen_at)
        initializations.write(path, self.state.chosen, {**own, **metadata})


def _of_solve(estimate: GradientEstimate) -> dict[str, float]:
    """The mean numbers of evaluations for a task, and the largest λmax of the tasks."""
    stats = estimate.stats
    metrics = {GRADIENTS: stats.gradients.double().mean().item(), HVPS: stats.hvps.double().mean().item()}
    lambda_max = stats.lambda_max.max().item()
    return metrics if math.isnan(lambda_max) else {**metrics, LAMBDA_MAX: lambda_max}  # NaN: there was no estimate
