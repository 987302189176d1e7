"""The meta-training loop: draw tasks, get the meta-gradient, step θ; evaluate now and then; resumable to the bit."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from amaml import checkpoint as checkpoints
from amaml import initialization as initializations
from amaml.checkpoint import Checkpoint, Progress
from amaml.evaluation import Evaluation, Flow, along_flow, evaluate, fine_tuning_curve, mean_and_error, score_by_flow
from amaml.flow.result import Result, SolveError
from amaml.learned import PREFIX, LearnedFlow
from amaml.methods.amaml import MetaGradient
from amaml.methods.certificate import Certificate
from amaml.methods.estimate import Estimate
from amaml.registry import Estimator, build_estimator, build_family, build_model, build_solver
from amaml.schedules import learning_rate, length_at
from amaml.spec import AdamSpec, JobSpec

__all__ = ["CertificateFailed", "Diverged", "Report", "TimedOut", "Training", "TrainingRun", "train"]

_log = logging.getLogger(__name__)
Value = TypeVar("Value")
Metrics = dict[str, list[tuple[int, float]]]
CERTIFICATES_IN_A_ROW = 3
"""Certificates over their limit that fail a run: one may be of a batch with an odd task."""
_NO_DATA: Mapping[str, Path] = MappingProxyType({})


class Diverged(Exception):
    """A loss, a gradient or θ became infinite or NaN."""


class CertificateFailed(Exception):
    """The meta-gradients' certificates were over runtime.certify_limit too often in a row."""


class TimedOut(Exception):
    """The run has used up runtime.max_seconds."""


@dataclass(frozen=True)
class Report:
    """The run got further."""

    phase: str
    """`training` or `evaluating`."""
    iteration: int
    """Meta-iterations done."""
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    """What the metrics of an evaluation are means of."""


@dataclass(frozen=True)
class TrainingRun:
    """A finished run."""

    spec: JobSpec
    initialization: dict[str, Tensor]
    """θ by parameter name."""
    learned: LearnedFlow
    """What was trained of the flow beside it."""
    metrics: Metrics
    """name → [(meta-iteration, value), …]."""
    evaluations: dict[int, Evaluation]
    """Meta-iteration → what every test task scored, with its fine-tuning curve."""
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
    """Runs the spec (or what validates as one) in this process. `datasets`: data set id → path; `initialization`: the file
    that θ starts from.

    Raises DataError, SolveError, Diverged, CertificateFailed, TimedOut, InitializationError.
    """
    if not isinstance(spec, JobSpec):
        spec = JobSpec.model_validate(spec)
    training = Training(spec, datasets, initialization=None if initialization is None else Path(initialization))
    metrics: Metrics = {}
    evaluations: dict[int, Evaluation] = {}
    for report in training:
        if report.evaluation is not None:
            evaluations[report.iteration] = report.evaluation
        for name, value in report.metrics.items():
            metrics.setdefault(name, []).append((report.iteration, value))
    return TrainingRun(spec, training.initialization, training.learned, metrics, evaluations, training)


class Training:
    """A run that can be stopped at every report and resumed elsewhere from its checkpoint, ending in the same bits
    on the same kind of CPU.

    Iterating over it runs it. Process-wide it sets torch's number of threads and its deterministic algorithms.
    Raises DataError if the data can't serve the spec, ValueError for a device or file that isn't there.
    """

    def __init__(
        self,
        spec: JobSpec,
        datasets: Mapping[str, Path] = _NO_DATA,
        *,
        initialization: Path | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        self.spec = spec
        self.iterations = spec.meta.iterations
        self._device = _device(spec.runtime.device)
        dtype: torch.dtype = getattr(torch, spec.runtime.dtype)
        saved = None if checkpoint is None else checkpoints.restore(checkpoint, spec, self._device)
        threads = spec.runtime.threads or torch.get_num_threads()
        self._progress = Progress(threads=threads) if saved is None else saved.progress
        _be_deterministic(self._progress.threads)

        seed = spec.runtime.seed
        paths = {str(name): Path(path) for name, path in datasets.items()}
        self._family = build_family(spec.family, seed=seed, dtype=dtype, device=self._device, datasets=paths)
        sizes = {"in_features": self._family.in_features, "out_features": self._family.out_features}
        if spec.evaluation.select == "validation":
            self._family.evaluation_batch("validation", 1)  # a split without tasks is told now, not amid the run
        self._net = build_model(spec.model, seed=seed, picture=self._family.picture, **sizes).to(dtype)
        self._random_start = _copy(self._theta)
        if saved is not None:
            initializations.put(self._net, saved.theta, checkpoint)
        elif initialization is not None:
            initializations.put(self._net, initializations.read_theta(initialization)[0], initialization)
        elif spec.meta.init_from is not None:
            raise ValueError(
                f"the spec starts from job {spec.meta.init_from.job}: give its file as initialization, "
                "or set meta.init_from to null"
            )
        self._net.to(self._device, dtype)
        self._random_start = {name: tensor.to(self._device) for name, tensor in self._random_start.items()}
        self._best = {} if saved is None else {name: tensor.to(self._device) for name, tensor in saved.best.items()}
        self._learned = LearnedFlow.start(spec, self._theta)
        if saved is not None:
            for name, logarithm in self._learned.logarithms.items():
                logarithm.copy_(saved.learned[name])
        self._optimizer = _optimizer(spec.meta.optimizer, [*self._net.parameters(), *self._learned.logarithms.values()])
        if saved is not None:
            self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": saved.optimizer})

        self._losses = self._family.objective.losses(self._net)
        self._solver = build_solver(spec.solver)
        self._estimator = build_estimator(spec.method)
        if self._estimator is None:  # nothing is trained: all iterations count as done, and the start is evaluated
            self._progress.iteration = self.iterations
        self._began = time.monotonic() - self._progress.seconds

    @property
    def iteration(self) -> int:
        """Meta-iterations done."""
        return self._progress.iteration

    @property
    def parameters(self) -> int:
        """How many numbers θ has."""
        return sum(tensor.numel() for tensor in self._theta.values())

    @property
    def initialization(self) -> dict[str, Tensor]:
        """What the run has learned so far: the last θ, or with evaluation.select = validation the best evaluated one."""
        return {name: tensor for name, tensor in self._chosen.items() if not name.startswith(PREFIX)}

    @property
    def learned(self) -> LearnedFlow:
        """What of the flow was trained beside that θ."""
        return LearnedFlow.among(self._chosen)

    def __iter__(self) -> Iterator[Report]:
        """Runs on to the end: a report after every meta-iteration, and now and then within an evaluation, whose metrics come
        with its last report, and within a certificate, before its meta-iteration counts as done. Raises SolveError, Diverged,
        CertificateFailed, TimedOut."""
        try:
            yield from self._run()
        except SolveError as error:
            if error.code is Result.NON_FINITE:
                raise self._diverged(str(error)) from error
            raise

    def _run(self) -> Iterator[Report]:
        if self.iteration == 0 and self._family.counts:
            yield Report("training", 0, {name: float(count) for name, count in self._family.counts.items()})
        while True:
            self._check_certificates()
            if self._evaluation_is_due():
                yield from self._evaluate()
            if self.iteration == self.iterations or self._estimator is None:
                return
            yield from self._step(self._estimator)

    def save_checkpoint(self, path: Path) -> None:
        """Writes all that a resume needs."""
        self._progress.seconds = self._seconds()
        state = self._optimizer.state_dict()["state"]
        tensors = {
            index: {key: value for key, value in own.items() if value is not None} for index, own in state.items()
        }
        checkpoint = Checkpoint(self._theta, self._learned.logarithms, self._best, tensors, self._progress)
        checkpoints.save(path, checkpoint, self._metadata(self.iteration), self._device)

    def save_initialization(self, path: Path, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        """Writes the file that `amaml.load` reads; `metadata` is added to its own (a job's id, say)."""
        chosen = self._progress.best[0] if self._best and self._progress.best else self.iteration
        initializations.write(path, self._chosen, {**self._metadata(chosen), **metadata})

    # One meta-iteration

    def _step(self, estimator: Estimator) -> Iterator[Report]:
        started = time.perf_counter()
        self._check_time()
        iteration = self.iteration
        tasks = self._family.training_batch(iteration, self.spec.meta.tasks_per_batch)
        result = self._estimate(estimator, tasks, iteration)
        every = self.spec.runtime.certify_every
        if every is not None and (iteration + 1) % every == 0 and isinstance(result, MetaGradient):
            for _ in result.certify():
                yield Report("training", iteration)
                self._check_time()
        norm = _norm(result.grad)
        loss = result.loss.double().mean().item()
        beside = self._learned.gradients(result)
        if not (math.isfinite(norm) and math.isfinite(loss) and math.isfinite(_norm(beside))):
            raise self._diverged(f"its meta-loss is {loss:g}, its meta-gradient's norm {norm:g}")
        for name, parameter in self._net.named_parameters():
            parameter.grad = result.grad[name]
        for name, gradient in beside.items():
            self._learned.logarithms[name].grad = gradient
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.spec.meta.optimizer, iteration, self.iterations)
        self._optimizer.step()
        self._progress.iteration += 1
        if trouble := self._learned.trouble():
            raise self._diverged(trouble)
        metrics = {
            "meta_loss": loss,
            "gradient_norm": norm,
            "gradients": result.stats.gradients.double().mean().item(),
            "hvps": result.stats.hvps.double().mean().item(),
            **self._learned.metrics,
        }
        lambda_max = result.stats.lambda_max.max().item()
        if not math.isnan(lambda_max):  # NaN: solved without the guard, so nobody looked
            metrics["lambda_max"] = lambda_max
        if isinstance(result, MetaGradient) and result.certificate is not None:
            metrics |= self._certified(result.certificate)
        yield Report("training", self.iteration, {**metrics, "seconds": time.perf_counter() - started})

    def _estimate(self, estimator: Estimator, tasks: dict[str, Tensor], iteration: int) -> Estimate:
        """The method's meta-gradient."""
        trajectory = self.spec.trajectory
        horizons = None if trajectory.horizons is None else [(one.at, one.weight) for one in trajectory.horizons]
        return estimator(
            self._theta,
            *self._losses,
            tasks,
            length=None if horizons else self._learned.length or length_at(trajectory, iteration),
            horizons=horizons,
            solver=self._solver,
            **self._learned.arguments(),
        )

    def _certified(self, certificate: Certificate) -> dict[str, float]:
        """The certificate's metrics, of the worst task; counts those in a row that are over the limit."""
        error = certificate.error.max().item()
        over = error > self.spec.runtime.certify_limit
        self._progress.over_limit = self._progress.over_limit + 1 if over else 0
        self._progress.undecided = next((reason for reason in certificate.reasons if reason is not None), None)
        if self._progress.undecided is not None:
            _log.warning("certificate after meta-iteration %d: %s", self.iteration, self._progress.undecided)
        return {"certificate_error": error, "certificate_over_limit": float(over)}

    def _check_certificates(self) -> None:
        """Raises CertificateFailed, once the report that shows the last of them is out; a run resumed from there, too."""
        if self._progress.over_limit >= CERTIFICATES_IN_A_ROW:
            undecided = self._progress.undecided
            why = "" if undecided is None else f" (it is infinite: {undecided})"
            raise CertificateFailed(
                f"the meta-gradient's relative error was over runtime.certify_limit ({self.spec.runtime.certify_limit:g}) in "
                f"{self._progress.over_limit} certificates in a row, the last after meta-iteration {self.iteration} of "
                f"{self.iterations}{why}: lower solver.rtol and solver.atol or solver.step, set runtime.dtype to float64, "
                "leave solver.guard and method.adjoint to the solver (null), or raise the limit"
            )

    def _diverged(self, what: str) -> Diverged:
        return Diverged(
            f"meta-training diverged after {self.iteration} of {self.iterations} meta-iterations ({what}): lower "
            "meta.optimizer.lr, trajectory.length or solver.step, or leave solver.guard and method.adjoint to the solver (null)"
        )

    # Evaluation

    def _evaluation_is_due(self) -> bool:
        at = self.iteration
        return at > self._progress.evaluated and (at % self.spec.evaluation.every == 0 or at == self.iterations)

    def _evaluate(self) -> Generator[Report, None, None]:
        """Evaluates θ as it is on the test tasks, and if they choose, on the validation tasks."""
        how, family, objective = self.spec.evaluation, self._family, self._family.objective
        tasks = family.evaluation_batch("test", how.tasks)
        tuning: dict[str, Any] = {"epochs": how.epochs, "lr": how.lr, "objective": objective}
        if self._progress.random is None:
            random = yield from self._alive(fine_tuning_curve(self._net, self._random_start, tasks, **tuning))
            self._score(f"{objective.metric.name}_random", random.last)
            self._progress.random = random.last.tolist()
        found = yield from self._alive(evaluate(self._net, self._theta, tasks, flow=self._flow(), **tuning))
        way = None
        if self.iteration == self.iterations:
            way = yield from self._alive(along_flow(self._net, self._theta, tasks, self._flow(), objective))
        predicted = family.baselines("test", how.tasks)
        found = replace(
            found,
            along_flow=way,
            random=torch.tensor(self._progress.random, dtype=torch.float64),
            baselines={name: objective.metric.score(one, tasks["query_y"]) for name, one in predicted.items()},
        )
        metrics = {"tuned_best_epoch": float(found.curve.best_epoch)}
        for kind, scores in found.scores.items():
            name = f"{objective.metric.name}_{kind}"
            metrics[name], error = self._score(name, scores)
            if not math.isnan(error):  # one task alone has no standard error
                metrics[f"{name}_error"] = error
        if how.select == "validation":
            metrics[f"{objective.metric.name}_validation"] = self._select()
        self._progress.evaluated = self.iteration
        yield Report("evaluating", self.iteration, metrics, found)

    def _select(self) -> float:
        """Keeps θ if no evaluated one did better on the validation tasks after the flow; its score there."""
        metric = self._family.objective.metric
        tasks = self._family.evaluation_batch("validation", self.spec.evaluation.tasks)
        scores = score_by_flow(self._net, self._theta, tasks, self._flow(), self._family.objective)
        score, _ = self._score(f"{metric.name}_validation", scores)
        if self._progress.best is None or metric.better(score, self._progress.best[1]):
            self._progress.best = (self.iteration, score)
            self._best = _copy({**self._theta, **self._learned.logarithms})
        return score

    def _flow(self) -> Flow:
        """The flow that the last meta-iteration trained for. The guard is for the adjoint, and none follows here: an unseen
        task that is too stiff for a fixed step scores badly, as it would in use, and doesn't end the run."""
        return self._learned.flow(self.spec, self.iteration - 1, self._solver.guarded(False))

    def _alive(self, work: Generator[None, None, Value]) -> Generator[Report, None, Value]:
        """The work, with a report wherever it yields."""
        while True:
            try:
                next(work)
            except StopIteration as end:
                value: Value = end.value
                return value
            self._check_time()
            yield Report("evaluating", self.iteration)

    def _score(self, name: str, values: Tensor) -> tuple[float, float]:
        if not bool(values.isfinite().all()):
            raise Diverged(
                f"{name} of {int((~values.isfinite()).sum())} of {len(values)} tasks is not finite after meta-iteration "
                f"{self.iteration}: lower evaluation.lr, trajectory.length or solver.step"
            )
        return mean_and_error(values)

    # What a run is made of

    @property
    def _theta(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._net.named_parameters()}

    @property
    def _chosen(self) -> dict[str, Tensor]:
        """What the initialization holds: the last θ, or the best on validation tasks, with what was trained beside it."""
        return _copy(self._best or {**self._theta, **self._learned.logarithms})

    def _metadata(self, iteration: int) -> dict[str, str]:
        return initializations.metadata_of(self.spec, self._family, iteration)

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _check_time(self) -> None:
        limit = self.spec.runtime.max_seconds
        if limit is not None and self._seconds() > limit:
            raise TimedOut(
                f"runtime.max_seconds of {limit:g} was used up after {self.iteration} of {self.iterations} meta-iterations: "
                "raise it, or ask for fewer iterations or cheaper evaluations"
            )


def _optimizer(spec: AdamSpec, parameters: list[Any]) -> torch.optim.Optimizer:
    kinds: dict[str, type[Any]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    optimizer: torch.optim.Optimizer = kinds[spec.kind](parameters, lr=spec.lr)
    return optimizer


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("runtime.device is cuda, but this machine has no CUDA device: set it to auto or cpu")
    return torch.device(name)


def _be_deterministic(threads: int) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    torch.use_deterministic_algorithms(True)
    # Every tensor is written before it is read, so torch needn't fill new ones.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(threads)


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _norm(gradient: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in gradient.values()))
