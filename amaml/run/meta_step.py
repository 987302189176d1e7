"""One step of the meta-optimizer: the tasks' gradients are clipped, averaged and applied, and the moving average of θ is updated.

Gradients through long training have heavy tails over tasks: a few tasks contribute nearly all of the second moment, which Adam
divides by. Clipping each task's gradient at the median of the latest norms removes the tails.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

import torch
from torch import Tensor

from amaml.methods.estimate import GradientEstimate
from amaml.metrics import CLIPPED, GRADIENT_NORM, META_LOSS
from amaml.run.outcome import Diverged
from amaml.run.schedules import rate_factor
from amaml.run.setup import Setup
from amaml.run.state import State
from amaml.spec import ClipSpec


def meta_step(setup: Setup, state: State, estimate: GradientEstimate) -> dict[str, float]:
    """Does one optimizer step and returns its metrics. Raises Diverged where the loss or a gradient isn't finite."""
    at, phase = state.progress.iteration, setup.phase(state.progress.iteration)
    meta, iterations = phase.spec.meta, phase.iterations
    of_flow = state.learned.gradients(phase.spec, estimate)
    gradient = {**estimate.grad, **{name: tensor.mean(dim=0) for name, tensor in of_flow.items()}}
    loss, norm = estimate.loss.double().mean().item(), _norm(gradient[name] for name in state.theta)
    if not (math.isfinite(norm) and math.isfinite(loss) and math.isfinite(_norm(gradient.values()))):
        raise Diverged.in_training(
            at, meta.iterations, f"the meta-loss is {loss:g}, the norm of the meta-gradient {norm:g}"
        )
    metrics = {META_LOSS: loss, GRADIENT_NORM: norm}
    if meta.clip is not None:
        norms = _norms(list(estimate.per_task.values())) if meta.clip.per == "task" else [norm]
        factors = clip_factors(meta.clip, norms, state)
        gradient = {name: _weighted_mean(one, factors) for name, one in {**estimate.per_task, **of_flow}.items()}
        metrics[CLIPPED] = sum(factor < 1 for factor in factors) / len(factors)
    for name, tensor in state.trained.items():
        tensor.grad = gradient.get(name)
    for group in state.optimizer.param_groups:
        group["lr"] = group["base_lr"] * rate_factor(meta.optimizer, at - iterations.start, len(iterations))
    state.optimizer.step()
    if meta.average is not None:
        state.follow(
            min(meta.average, (2 + at) / (11 + at))
        )  # a smaller decay at first, so that the start is soon forgotten
    return metrics


def clip_factors(clip: ClipSpec, norms: list[float], state: State) -> list[float]:
    """The factor of each gradient, at most 1. Adds the `norms` to the latest norms in `state`."""
    state.norms = [*state.norms, *norms][-clip.window :]
    bound = clip.factor * (median(state.norms) if clip.at == "median" else clip.at)
    return [min(1.0, bound / norm) if norm > 0 else 1.0 for norm in norms]


def _weighted_mean(per_task: Tensor, factors: list[float]) -> Tensor:
    """The mean over tasks of `per_task` [B, …] times `factors`, of which there are B, or one for all tasks."""
    weights = per_task.new_tensor(factors).reshape(-1, *[1] * (per_task.ndim - 1))
    return (per_task * weights).mean(dim=0)


def _norms(per_task: list[Tensor]) -> list[float]:
    """The norm of each task's gradient, in float64."""
    squares = torch.stack([tensor.double().flatten(1).square().sum(dim=1) for tensor in per_task]).sum(dim=0)
    norms: list[float] = squares.sqrt().tolist()
    return norms


def _norm(gradient: Iterable[Tensor]) -> float:
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in gradient))
