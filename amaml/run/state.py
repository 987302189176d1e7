"""All of a run that changes while it goes on: where it starts, and how a checkpoint brings it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amaml.run import checkpoint as checkpoints
from amaml.run import initialization as initializations
from amaml.run.checkpoint import Checkpoint, Progress
from amaml.run.initialization import InitializationError
from amaml.run.learned_flow import RATES, LearnedFlow
from amaml.run.setup import Phase, Setup
from amaml.spec import JobSpec


@dataclass
class State:
    theta: dict[str, Tensor]
    """By parameter name; those that are frozen don't ask for a gradient."""
    learned: LearnedFlow
    """What is trained of the flow beside it."""
    optimizer: torch.optim.Optimizer
    progress: Progress
    best: dict[str, Tensor] = field(default_factory=dict)
    """The best θ on validation tasks so far, with what was trained beside it; empty where there is none."""
    average: dict[str, Tensor] = field(default_factory=dict)
    """The moving average of θ and what is trained beside it; empty where none is taken."""
    norms: list[float] = field(default_factory=list)
    """Of the gradients that were seen lately, for the clip's median."""

    @property
    def trained(self) -> dict[str, Tensor]:
        """θ and the logarithms of the flow's quantities, by the names that they have in files."""
        return {**self.theta, **self.learned.logarithms}

    @property
    def current(self) -> dict[str, Tensor]:
        """What evaluations judge: the moving average of all that is trained where one is taken, else what is trained."""
        if not self.average:
            return self.trained
        # As frozen as what they are averages of: those neither flow nor are they fine-tuned.
        return {
            name: self.average[name].detach().requires_grad_(tensor.requires_grad)
            for name, tensor in self.trained.items()
        }

    def follow(self, decay: float) -> None:
        """Moves the average on: so much stays as it was."""
        for name, tensor in self.trained.items():
            if tensor.requires_grad or name not in self.theta:  # what is frozen stays the same to the last bit
                self.average.setdefault(name, tensor.detach().clone()).mul_(decay).add_(
                    tensor.detach(), alpha=1 - decay
                )

    def enter(self, phase: Phase) -> None:
        """Goes on by the next phase: what it learns joins what was learned, the optimizer and the clip's norms begin anew."""
        self.learned = self.learned.joined(phase.spec, self.theta)
        self.optimizer = _optimizer(phase.spec, self.theta, self.learned)
        self.norms = []
        if self.average:
            for name, tensor in self.learned.logarithms.items():
                self.average.setdefault(name, tensor.clone())

    @property
    def chosen(self) -> dict[str, Tensor]:
        """What the run has learned so far, copied: the best of it on validation tasks where they choose, else the last of it."""
        return copied(self.best or self.current)

    @property
    def chosen_at(self) -> int:
        """The meta-iteration after which it was so."""
        return self.progress.best[0] if self.best and self.progress.best else self.progress.iteration

    def checkpoint(self) -> Checkpoint:
        """What of it a file holds."""
        own = self.optimizer.state_dict()["state"]
        tensors = {index: {key: value for key, value in one.items() if value is not None} for index, one in own.items()}
        return Checkpoint(
            self.theta, self.learned.logarithms, self.best, self.average, self.norms, tensors, self.progress
        )


def start(setup: Setup, initialization: Path | None) -> State:
    """A run's beginning: at the random start, or at what meta.init_from takes over from a file (θ alone where that is null).

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
            _require_that_it_flows(setup, 0, learned, initialization)
            learned = _learned_like(setup, learned)
    learned = learned.joined(first.spec, theta)
    average = copied({**theta, **learned.logarithms}) if spec.meta.average is not None else {}
    progress = Progress(threads=setup.threads)
    if first.estimator is None:  # nothing is trained: all iterations count as done, and the start is evaluated
        progress.iteration = spec.meta.iterations
    return State(theta, learned, _optimizer(first.spec, theta, learned), progress, average=average)


def resume(setup: Setup, saved: Checkpoint) -> State:
    """Where the run was when the checkpoint was written."""
    theta, now = _like(setup, saved.theta), setup.phase(saved.progress.iteration)
    learned = LearnedFlow(_on(setup, saved.learned)).joined(now.spec, theta)
    optimizer = _optimizer(now.spec, theta, learned)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": saved.optimizer})
    order = {**theta, **learned.logarithms}  # sums are taken in it, and files have another
    best, average = (
        _on(setup, {name: one[name] for name in order if name in one}) for one in (saved.best, saved.average)
    )
    return State(theta, learned, optimizer, saved.progress, best, average, saved.norms)


def _forked(setup: Setup, path: Path) -> State:
    """Another run's state, from which this one goes on. Raises InitializationError where it can't."""
    saved, metadata = checkpoints.load(path)
    spec, at = JobSpec.model_validate_json(metadata["spec"]), saved.progress.iteration
    if at >= setup.spec.meta.iterations:
        raise InitializationError(
            f"{path}: it was written after {at} meta-iterations, and meta.iterations is {setup.spec.meta.iterations}, of which "
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
                f"{path}: the run that wrote it has {what} {then}, and this one {now}, so that its optimizer can't go on: make "
                "them alike, or set meta.init_from.state to learned"
            )
    _of_file(setup, saved.theta, path)
    _require_that_it_flows(setup, at, LearnedFlow(saved.learned), path)
    progress = replace(
        saved.progress, threads=setup.threads, seconds=0.0, random=None, over_limit=0, undecided=None, ended_by=None,
        micro_batch=None, evaluation_micro_batch=None,
    )  # fmt: skip
    if not _is_judged_alike(spec, setup.spec):  # scores of other tasks or another flow don't compare
        progress, saved = replace(progress, evaluated=-1, best=None, worse=0), replace(saved, best={})
    average = saved.average or {**saved.theta, **saved.learned}
    norms = saved.norms if ours.meta.clip is not None else []
    return resume(setup, replace(saved, progress=progress, average=average if ours.meta.average else {}, norms=norms))


def _is_judged_alike(one: JobSpec, other: JobSpec) -> bool:
    """Whether scores on validation tasks compare between runs of these specs."""
    parts = ("family", "model", "trajectory", "solver", "evaluation")
    return one.runtime.seed == other.runtime.seed and all(getattr(one, part) == getattr(other, part) for part in parts)


def _of_file(setup: Setup, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """θ among a file's tensors."""
    theta = initializations.theta_among(tensors)
    initializations.require_like(setup.net, theta, path)
    return _like(setup, theta)


def _require_that_it_flows(setup: Setup, at: int, learned: LearnedFlow, path: Path) -> None:
    """Raises InitializationError where a phase from this meta-iteration on can't flow by what was learned."""
    for phase in setup.phases[setup.phases.index(setup.phase(at)) :]:
        method, trajectory = phase.spec.method, phase.spec.trajectory
        if learned.logarithms and not method.flow_can_be_learned:
            raise InitializationError(
                f"{path}: it holds what was learned of the flow, by which {method.kind} doesn't flow: use amaml or comln, or set "
                "meta.init_from.state to theta"
            )
        if learned.length is not None and (trajectory.schedule is not None or trajectory.horizons is not None):
            raise InitializationError(
                f"{path}: it holds a learned length, and trajectory has a schedule or horizons: set those to null, or "
                "meta.init_from.state to theta"
            )


def _learned_like(setup: Setup, learned: LearnedFlow) -> LearnedFlow:
    """What was learned of the flow, on the run's device, rates of the dtype of θ."""
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
    """A copy of θ as the run's network has it: on its device, of its dtype, with the same parameters frozen."""
    return {
        name: theta[name].detach().to(own.device, own.dtype, copy=True).requires_grad_(own.requires_grad)
        for name, own in setup.random_start.items()
    }


def _optimizer(phase: JobSpec, theta: Mapping[str, Tensor], learned: LearnedFlow) -> torch.optim.Optimizer:
    """Over θ, and beside it what is learned of the flow, at a rate of its own and without decay. A group's `base_lr` is the rate
    that the schedule starts from."""
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
