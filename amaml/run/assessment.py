"""The assessments of a run: the scores of the present θ on the test tasks, and whether it is the best so far."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace

import torch
from torch import Tensor

from amaml.metrics import RANDOM, TUNED_BEST_EPOCH, VALIDATION, error_of, score
from amaml.run.baselines import baseline_scores
from amaml.run.checkpoint import RunProgress
from amaml.run.evaluation import (
    Evaluation,
    FineTuning,
    Flow,
    along_flow,
    block_size,
    evaluate,
    fine_tuning_curve,
    mean_and_error,
    scores_by_flow,
)
from amaml.run.initialization import theta_among
from amaml.run.learned_flow import LearnedFlow
from amaml.run.outcome import Diverged
from amaml.run.setup import Setup
from amaml.run.state import State, copied

Metrics = dict[str, float]


def is_due(setup: Setup, state: State) -> bool:
    """Whether an assessment is due: at the start, every `evaluation.every` meta-iterations and after the last, each once."""
    at, how = state.progress.iteration, setup.spec.evaluation
    return at > state.progress.evaluated and (at % how.every == 0 or at == setup.spec.meta.iterations)


def assess(setup: Setup, state: State) -> Generator[None, None, tuple[Metrics, Evaluation]]:
    """Evaluates the present θ on the test tasks and, where evaluation.select is validation, on the validation tasks. Yields
    between parts of the work, so that a caller can report progress. Raises Diverged where a score isn't finite."""
    how, family, metric = setup.spec.evaluation, setup.family, setup.family.objective.metric
    tasks, flow, theta = family.evaluation_batch("test", how.tasks), flow_of(setup, state), theta_among(state.current)
    micro_batch = state.progress.evaluation_micro_batch
    metrics = {}
    after = state.progress  # stored at the end only, so that an interrupted assessment is repeated
    if how.select == "validation":
        name = score(metric.name, VALIDATION)
        validation = family.evaluation_batch("validation", how.tasks)
        scored = yield from scores_by_flow(setup.net, theta, validation, flow, family.objective, micro_batch)
        metrics[name], _ = _mean(state, name, scored)
        after = _judged(setup, state.progress, metrics[name])
    rates = flow.rates if how.learned_rates else None
    tuning = FineTuning(how.epochs, how.lr, rates)
    found = yield from evaluate(setup.net, theta, tasks, flow, tuning, family.objective, micro_batch)
    if state.progress.random is None:
        curve = found.curve
        if rates is not None or not all(
            torch.equal(tensor, theta[name]) for name, tensor in setup.random_start.items()
        ):
            plain = FineTuning(how.epochs, how.lr)
            curve = yield from fine_tuning_curve(
                setup.net, setup.random_start, tasks, plain, family.objective, micro_batch
            )
        _mean(state, score(metric.name, RANDOM), curve.last)
        state.progress.random = curve.last.tolist()
    way = None
    if has_ended(setup, after):
        way = yield from along_flow(setup.net, theta, tasks, flow, family.objective, micro_batch)
    if not setup.baselines:
        found_once = yield from baseline_scores(family, how.tasks)
        setup.baselines.update(found_once)
    found = replace(
        found,
        along_flow=way,
        random=torch.tensor(state.progress.random, dtype=torch.float64),
        baselines=setup.baselines,
    )
    metrics[TUNED_BEST_EPOCH] = float(found.curve.best_epoch)
    for how_adapted, scores in found.scores.items():
        name = score(metric.name, how_adapted)
        metrics[name], error = _mean(state, name, scores)
        if not math.isnan(error):  # a single task has no standard error
            metrics[error_of(name)] = error
    if after.best != state.progress.best:
        state.best = copied(state.current)
    state.progress = replace(after, evaluated=after.iteration, random=state.progress.random)
    return metrics, found


def tasks_at_once(setup: Setup, state: State) -> int:
    """The most tasks that an assessment takes together."""
    own = block_size(theta_among(state.current), state.progress.evaluation_micro_batch)
    return min(own, setup.spec.evaluation.tasks)


def has_ended(setup: Setup, progress: RunProgress) -> bool:
    """Whether no further meta-iteration follows."""
    return progress.ended_by is not None or progress.iteration == setup.spec.meta.iterations


def flow_of(setup: Setup, state: State) -> Flow:
    """The flow for which the last meta-iteration trained, without the guard, which only an adjoint needs: an unseen task that is
    too stiff for a fixed step gets a bad score, as it would in use, and doesn't end the run."""
    learned, last = LearnedFlow.among(state.current), max(state.progress.iteration - 1, 0)
    return learned.flow(setup.spec, last, setup.phases[-1].solver.guarded(False))


def _judged(setup: Setup, progress: RunProgress, score: float) -> RunProgress:
    """The progress after this score on the validation tasks: it may be the best so far, and it ends the run where it reaches
    meta.target, or where there was no better score in meta.patience evaluations."""
    better, meta = setup.family.objective.metric.better, setup.spec.meta
    if progress.best is None or better(score, progress.best[1]):
        after = replace(progress, best=(progress.iteration, score), worse=0)
    else:
        after = replace(progress, worse=progress.worse + 1)
    if meta.target is not None and not better(meta.target, score):
        return replace(after, ended_by="target")
    is_over = meta.patience is not None and after.worse >= meta.patience
    return replace(after, ended_by="patience" if is_over else None)


def _mean(state: State, name: str, scores: Tensor) -> tuple[float, float]:
    """The mean over the tasks and its standard error."""
    if not bool(scores.isfinite().all()):
        raise Diverged(
            f"{name} of {int((~scores.isfinite()).sum())} of {len(scores)} tasks is not finite after meta-iteration "
            f"{state.progress.iteration}: lower evaluation.lr, trajectory.length or solver.step"
        )
    return mean_and_error(scores)
