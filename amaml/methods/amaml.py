"""Adjoint MAML (Li, Wang, Narayan, Kirby, Zhe, arXiv 2110.08432): the meta-gradient by a solve forward and one backward."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, get_args

import torch
from torch import Tensor

from amaml.adjoint.sensitivity import Sensitivity, Wanted
from amaml.flow.derivatives import Loss
from amaml.flow.field import GradientFlow
from amaml.flow.result import Result, raise_where
from amaml.flow.solvers import Solver
from amaml.kernel import solve as kernel
from amaml.methods.certificate import Certificate
from amaml.methods.certificate import certify as certify_answer
from amaml.methods.estimate import Estimate, Stats
from amaml.methods.forward import solve_forward
from amaml.methods.parameters import Layout, Params
from amaml.methods.problem import Adjoint, Problem, pose


@dataclass(frozen=True)
class Answer:
    """Its answer: a row a task."""

    gradients: Tensor
    losses: Tensor
    """[B, K], a horizon a column."""
    adapted: Tensor
    stats: Stats
    length: Tensor | None
    """dJ/dT_k [B, K], where it was asked for or costs nothing."""
    sensitivity: Sensitivity


@dataclass
class MetaGradient(Estimate):
    """A batch's meta-gradient, detached. Derivatives with respect to the flow itself are computed when they are asked
    for, by solving again if `wrt` didn't name them."""

    certificate: Certificate | None
    """The gradient's own measure of its error, where it was asked for."""
    _layout: Layout = field(repr=False)
    _answer: Answer = field(repr=False)
    _again: Callable[[AbstractSet[Wanted]], Answer] = field(repr=False)

    @property
    def length(self) -> Tensor:
        """dJ/dT for each task [B]; with `horizons` dJ/dT_k [B, K]. For a fixed-step solver N stays and h = T/N changes."""
        if self._answer.length is None:
            self._answer = self._again({"length"})
        length = self._answer.length
        assert length is not None
        return length[:, 0] if length.shape[1] == 1 else length

    @property
    def rates(self) -> Any:
        """dJ/dα, like `params`: the mean over tasks."""
        if self._answer.sensitivity.rates is None:
            self._answer = self._again({"rates"})
        assert self._answer.sensitivity.rates is not None
        return self._layout.unflatten(self._answer.sensitivity.rates.mean(dim=0))

    @property
    def proximal(self) -> Tensor:
        """dJ/dρ, a scalar: the mean over tasks."""
        if self._answer.sensitivity.proximal is None:
            self._answer = self._again({"proximal"})
        assert self._answer.sensitivity.proximal is not None
        return self._answer.sensitivity.proximal.mean()


@torch.no_grad()
def meta_gradient(
    params: Params,
    support_loss: Loss,
    query_loss: Loss,
    tasks: Any,
    *,
    length: float | None = None,
    solver: Solver | None = None,
    adjoint: Adjoint | None = None,
    proximal: float = 0.0,
    proximal_in_query: bool = False,
    rates: Params | None = None,
    horizons: Sequence[tuple[float, float]] | None = None,
    wrt: Collection[Wanted] = (),
    certify: bool = False,
) -> MetaGradient:
    """The gradient of J(θ) = mean over tasks of L_qry(u(T)) with du/dt = −α∘(∇L_sup(u) + ρ(u−θ)), u(0) = θ.

    `params`: θ, a dict of named tensors or one flat tensor [P], float32 or float64; it decides dtype and device.
    `support_loss`, `query_loss`: (params, task) → scalar, any differentiable functions that torch.func can vmap.
    `tasks`: pytree of tensors whose first axis is the task [B, …].
    `length`: T (or `horizons` [(T_k, w_k), …], J = Σ w_k L_qry(u(T_k))). `solver`: Dopri5() unless given.
    `adjoint`: Discrete() unless given. `proximal`: ρ, in the flow; `proximal_in_query` adds ½ρ‖u(T)−θ‖² to the query loss.
    `rates`: α > 0, like params. `wrt` names derivatives to compute in the same solve: "length", "rates", "proximal"; the
    others are computed when they are first read. `certify` estimates the error too, by an independent solve that costs much more.

    Raises ValueError for arguments that make no sense and SolveError where a task can't be solved.
    """
    unknown = sorted(set(wrt) - set(get_args(Wanted)))
    if unknown:
        raise ValueError(f"wrt names {', '.join(unknown)}: choose among {', '.join(get_args(Wanted))}")
    problem, layout = pose(
        params, support_loss, query_loss, tasks, length=length, horizons=horizons, solver=solver, adjoint=adjoint,
        proximal=proximal, proximal_in_query=proximal_in_query, rates=rates,
    )  # fmt: skip
    answer = answer_to(problem, set(wrt))

    def again(wanted: AbstractSet[Wanted]) -> Answer:
        with torch.no_grad():
            return answer_to(problem, wanted | set(wrt))

    return MetaGradient(
        grad=layout.unflatten(answer.gradients.mean(dim=0)),
        per_task=layout.unflatten(answer.gradients),
        loss=answer.losses @ answer.losses.new_tensor(problem.weights),
        adapted=layout.unflatten(answer.adapted),
        stats=answer.stats,
        certificate=certify_answer(
            problem, support_loss, query_loss, tasks, layout, answer.gradients, answer.stats.gradients
        )
        if certify
        else None,
        _layout=layout,
        _answer=answer,
        _again=again,
    )


def answer_to(problem: Problem, wanted: AbstractSet[Wanted]) -> Answer:
    """Solves forward, then backward: by the compiled kernel where there is one for the problem, else all tasks at once."""
    solved = kernel.solve(problem, wanted)
    if solved is not None:
        way = solved.carried
        return Answer(
            gradients=solved.gradients,
            losses=solved.losses,
            adapted=way.ends[:, -1],
            stats=Stats(way.steps, way.rejected, way.gradient_count, way.hvp_count, way.lambda_max, problem.target),
            length=solved.length,
            sensitivity=solved.sensitivity,
        )
    flow = problem.flow()
    forward = solve_forward(problem, flow)
    losses, jumps, direct = zip(*(problem.judge(k, end) for k, end in enumerate(forward.ends)), strict=True)
    sensitivity = Sensitivity(jumps[-1], wanted if problem.target == "discrete" else wanted - {"length"})
    start = forward.pull(list(jumps), sensitivity)
    gradients = start + sensitivity.theta + sum(direct)
    if sensitivity.proximal is not None and problem.proximal_in_query:
        for end, weight in zip(forward.ends, problem.weights, strict=True):
            sensitivity.proximal += 0.5 * weight * (end - problem.theta).square().sum(dim=1)
    raise_where(~gradients.isfinite().all(dim=1), Result.NON_FINITE, 0.0)
    return Answer(
        gradients=gradients,
        losses=torch.stack(losses, dim=1),
        adapted=forward.ends[-1],
        stats=Stats(
            forward.steps,
            forward.rejected,
            flow.evaluations.gradients,
            flow.evaluations.hvps,
            forward.lambda_max,
            problem.target,
        ),
        length=_length_derivatives(problem, flow, forward.ends, jumps, sensitivity),
        sensitivity=sensitivity,
    )


def _length_derivatives(
    problem: Problem, flow: GradientFlow, ends: list[Tensor], jumps: Sequence[Tensor], sensitivity: Sensitivity
) -> Tensor | None:
    """dJ/dT_k [B, K]: ⟨f(u(T_k)), jump_k⟩ for the flow; for equal steps a stretch's h is its length over a fixed N."""
    if problem.target == "flow":
        return torch.stack([(flow(end) * jump).sum(dim=1) for end, jump in zip(ends, jumps, strict=True)], dim=1)
    if not sensitivity.stretches:
        return None
    by_stretch = [
        sensitivity.stretches[k] / (end - start) for k, (start, end) in enumerate(pairwise([0.0, *problem.horizons]))
    ]
    following = [*by_stretch[1:], torch.zeros_like(by_stretch[0])]
    return torch.stack([own - after for own, after in zip(by_stretch, following, strict=True)], dim=1)
