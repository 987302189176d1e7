"""The state of a run, which changes while it goes on: how it starts, and how it is restored from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amaml.run import checkpoint as checkpoints
from amaml.run import initialization as initializations
from amaml.run.checkpoint import Checkpoint, RunProgress
from amaml.run.initialization import InitializationError
from amaml.run.learned_flow import RATES, LearnedFlow
from amaml.run.setup import Phase, Setup
from amaml.spec import JobSpec


@dataclass
class State:
    theta: dict[str, Tensor]
    """The parameters by name; frozen ones have requires_grad=False."""
    learned: LearnedFlow
    """The quantities of the flow that are trained in addition to θ."""
    optimizer: torch.optim.Optimizer
    progress: RunProgress
    best: dict[str, Tensor] = field(default_factory=dict)
    """The best of `current` on validation tasks so far; empty if there is none."""
    average: dict[str, Tensor] = field(default_factory=dict)
    """The moving average of all that is trained; empty if none is taken."""
    norms: list[float] = field(default_factory=list)
    """The norms of the latest gradients, of which the clip takes the median."""

    @property
    def trained(self) -> dict[str, Tensor]:
        """θ and the logarithms of the flow's learned quantities, by their names in files."""
        return {**self.theta, **self.learned.logarithms}

    @property
    def current(self) -> dict[str, Tensor]:
        """What evaluations use: the moving average of all that is trained, if one is taken, otherwise the latest values."""
        if not self.average:
            return self.trained
        # The averages of frozen parameters are frozen too, so that neither flow nor fine-tuning changes them.
        return {
            name: self.average[name].detach().requires_grad_(tensor.requires_grad)
            for name, tensor in self.trained.items()
        }

    def follow(self, decay: float) -> None:
        """Updates the moving average, of which the fraction `decay` is kept."""
        for name, tensor in self.trained.items():
            if tensor.requires_grad or name not in self.theta:  # a frozen parameter keeps all of its bits
                self.average.setdefault(name, tensor.detach().clone()).mul_(decay).add_(
                    tensor.detach(), alpha=1 - decay
                )

    def enter(self, phase: Phase) -> None:
        """Begins the next phase: the quantities that it learns are added, and the optimizer and the clip's norms start anew."""
        self.learned = self.learned.joined(phase.spec, self.theta)
        self.optimizer = _optimizer(phase.spec, self.theta, self.learned)
        self.norms = []
        if self.average:
            for name, tensor in self.learned.logarithms.items():
                self.average.setdefault(name, tensor.clone())

    @property
    def chosen(self) -> dict[str, Tensor]:
        """A copy of what the run has learned so far: the best on validation tasks, if they select it, otherwise the latest."""
        return copied(self.best or self.current)

    @property
    def chosen_at(self) -> int:
        """The number of meta-iterations after which `chosen` was taken."""
        return self.progress.best[0] if self.best and self.progress.best else self.progress.iteration

    def checkpoint(self) -> Checkpoint:
        """The state as it is stored in a file."""
        own = self.optimizer.state_dict()["state"]
        tensors = {index: {key: value for key, value in one.items() if value is not None} for index, one in own.items()}
        return Checkpoint(
            self.theta, self.learned.logarithms, self.best, self.average, self.norms, tensors, self.progress
        )


def start(setup: Setup, initialization: Path | None) -> State:
    """The state at the start of a run: the random start, or what meta.init_from takes over from the file `initialization` (θ
    alone where meta.init_from is null).

    Raises ValueError where the spec starts from a job whose file isn't given, InitializationError or CheckpointError for a file
    that doesn't fit.
    """
    spec, source = setup.spec, setup.spec.meta.init_from
    if initialization is None and source is not None:
        raise ValueError(
            f"the spec starts from job {source.job}: give its file as initialization, or set meta.init_from to null"
        )
    if initialization is not None and source is not None and source.state == "full":
        return _forked(setup, initialization)
    first, theta, learned = setup.phases[0], _like(setup, setup.random_start), LearnedFlow({})
    if initialization is not None:
        tensors, _ = initializations.read(initialization)
        theta = _of_file(setup, tensors, initialization)
        if source is not None and source.state == "learned":
            learned = LearnedFlow.among(tensors)
            _require_usable_flow(setup, 0, learned, initialization)
            learned = _learned_like(setup, learned)
    learned = learned.joined(first.spec, theta)
    average = copied({**theta, **learned.logarithms}) if spec.meta.average is not None else {}
    progress = RunProgress(threads=setup.threads)
    if first.estimator is None:  # nothing is trained: all iterations count as done, and the start is evaluated
        progress.iteration = spec.meta.iterations
    return State(theta, learned, _optimizer(first.spec, theta, learned), progress, average=average)


def resume(setup: Setup, saved: Checkpoint) -> State:
    """The state of the run when the checkpoint was written."""
    theta, now = _like(setup, saved.theta), setup.phase(saved.progress.iteration)
    learned = LearnedFlow(_on(setup, saved.learned)).joined(now.spec, theta)
    optimizer = _optimizer(now.spec, theta, learned)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": saved.optimizer})
    order = {**theta, **learned.logarithms}  # the order of sums, on which bits depend; files have another
    best, average = (
        _on(setup, {name: one[name] for name in order if name in one}) for one in (saved.best, saved.average)
    )
    return State(theta, learned, optimizer, saved.progress, best, average, saved.norms)


def _forked(setup: Setup, path: Path) -> State:
    """The state of another run, read from its checkpoint, from which this run continues. Raises InitializationError where it
    can't."""
    saved, metadata = checkpoints.load(path)
    spec, at = JobSpec.model_validate_json(metadata["spec"]), saved.progress.iteration
    if at >= setup.spec.meta.iterations:
        raise InitializationError(
            f"{path}: it was written after {at} meta-iterations, and meta.iterations is {setup.spec.meta.iterations}, so that "
            "none is left: raise it, or set meta.init_from.state to learned"
        )
    theirs = next((own for iterations, own in spec.phases if at in iterations), spec.phases[-1][1])
    ours = setup.phase(at).spec
    for what, then, now in (
        ("runtime.dtype", spec.runtime.dtype, ours.runtime.dtype),
        ("meta.optimizer.kind", theirs.meta.optimizer.kind, ours.meta.optimizer.kind),
        ("method.learn", sorted(theirs.method.learned), sorted(ours.method.learned)),
    ):
        if then != now:
            raise InitializationError(
                f"{path}: the run that wrote it has {what} {then}, and this one {now}, so its optimizer can't be continued: make "
                "them equal, or set meta.init_from.state to learned"
            )
    _of_file(setup, saved.theta, path)
    _require_usable_flow(setup, at, LearnedFlow(saved.learned), path)
    progress = replace(
        saved.progress, threads=setup.threads, seconds=0.0, random=None, over_limit=0, undecided=None, ended_by=None,
        micro_batch=None, evaluation_micro_batch=None,
    )  # fmt: skip
    if not _has_comparable_scores(spec, setup.spec):
        progress, saved = replace(progress, evaluated=-1, best=None, worse=0), replace(saved, best={})
    average = saved.average or {**saved.theta, **saved.learned}
    norms = saved.norms if ours.meta.clip is not None else []
    return resume(setup, replace(saved, progress=progress, average=average if ours.meta.average else {}, norms=norms))


def _has_comparable_scores(one: JobSpec, other: JobSpec) -> bool:
    """Whether scores on validation tasks can be compared between runs of these specs: they have the same tasks and flow."""
    parts = ("family", "model", "trajectory", "solver", "evaluation")
    return one.runtime.seed == other.runtime.seed and all(getattr(one, part) == getattr(other, part) for part in parts)


def _of_file(setup: Setup, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """θ from the tensors of a file. Raises InitializationError where it doesn't fit the run's network."""
    theta = initializations.theta_among(tensors)
    initializations.require_like(setup.net, theta, path)
    return _like(setup, theta)


def _require_usable_flow(setup: Setup, at: int, learned: LearnedFlow, path: Path) -> None:
    """Raises InitializationError where a phase from this meta-iteration on can't use the learned flow."""
    for phase in setup.phases[setup.phases.index(setup.phase(at)) :]:
        method, trajectory = phase.spec.method, phase.spec.trajectory
        if learned.logarithms and not method.flow_can_be_learned:
            raise InitializationError(
                f"{path}: it holds learned quantities of the flow, which method {method.kind} doesn't use: use amaml or comln, "
                "or set meta.init_from.state to theta"
            )
        if learned.length is not None and (trajectory.schedule is not None or trajectory.horizons is not None):
            raise InitializationError(
                f"{path}: it holds a learned length, and trajectory has a schedule or horizons: set those to null, or "
                "meta.init_from.state to theta"
            )


def _learned_like(setup: Setup, learned: LearnedFlow) -> LearnedFlow:
    """The learned flow on the run's device, with rates in the dtype of θ."""
    like = setup.random_start
    return LearnedFlow(
        {
            name: tensor.to(
                setup.device, like[name.removeprefix(RATES)].dtype if name.startswith(RATES) else tensor.dtype
            )
            for name, tensor in learned.logarithms.items()
        }
    )


def _on(setup: Setup, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(setup.device) for name, tensor in tensors.items()}


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _like(setup: Setup, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of θ with the device and dtype of the run's network, and with the same parameters frozen."""
    return {
        name: theta[name].detach().to(own.device, own.dtype, copy=True).requires_grad_(own.requires_grad)
        for name, own in setup.random_start.items()
    }


def _optimizer(phase: JobSpec, theta: Mapping[str, Tensor], learned: LearnedFlow) -> torch.optim.Optimizer:
    """The meta-optimizer of θ and of the flow's learned quantities, which have their own learning rate and no weight decay. A
    group's `base_lr` is the learning rate before the schedule's factor."""
    meta = phase.meta
    spec, own = meta.optimizer, dict[str, Any]()
    kind: type[Any] = torch.optim.SGD
    if spec.kind == "sgd":
        own["momentum"] = spec.momentum
    else:
        kind = torch.optim.Adam if spec.kind == "adam" else torch.optim.AdamW
        own["betas"] = spec.betas
    groups = [
        {"params": [one for one in theta.values() if one.requires_grad], "weight_decay": spec.weight_decay, "base_lr": spec.lr},
        {"params": [*learned.trained_by(phase).values()], "weight_decay": 0.0, "base_lr": meta.learn_lr or spec.lr},
    ]  # fmt: skip
    optimizer: torch.optim.Optimizer = kind([group for group in groups if group["params"]], lr=spec.lr, **own)
    return optimizer
