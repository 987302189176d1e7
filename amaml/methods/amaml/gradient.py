"""Adjoint MAML (Li, Wang, Narayan, Kirby, Zhe, arXiv 2110.08432): the meta-gradient by one forward and one backward solve."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from amaml.adjoint.protocol import Adjoint
from amaml.adjoint.sensitivity import Sensitivity, Wanted
from amaml.flow.derivatives import Loss
from amaml.flow.field import GradientFlow
from amaml.flow.result import Result, raise_where
from amaml.flow.solvers import Solver
from amaml.kernel import solve as kernel
from amaml.methods.certificate import Certificate, Verdict, verdicts
from amaml.methods.estimate import GradientEstimate, Stats
from amaml.methods.parameters import Layout, Params
from amaml.methods.problem import Answer, GradientProblem, pose
from amaml.modes import plain_modes


class Again:
    """Repeats the solve, for derivatives that weren't requested at first and to judge the gradient. Losses can seldom be pickled,
    so pickling replaces it by `NotAgain`."""

    def __init__(
        self, problem: GradientProblem, wrt: AbstractSet[Wanted], judge: Callable[[Tensor, Tensor], Iterator[Verdict]]
    ) -> None:
        self._problem, self._wrt, self._judge = problem, wrt, judge

    @plain_modes()
    def derivatives(self, wanted: AbstractSet[Wanted]) -> Answer:
        return answer_to(self._problem, self._wrt | wanted)

    def verdicts(self, answer: Answer) -> Iterator[Verdict]:
        return self._judge(answer.gradients, answer.stats.gradients)

    def __deepcopy__(self, memo: dict[int, Any]) -> Again:
        return self

    def __reduce__(self) -> tuple[type[NotAgain], tuple[()]]:
        return NotAgain, ()


class NotAgain:
    """Takes the place of `Again` in a pickled meta-gradient. Both methods raise ValueError and say what to do instead."""

    def derivatives(self, wanted: AbstractSet[Wanted]) -> Answer:
        raise ValueError(
            f"the derivative by {', '.join(sorted(wanted))} wasn't computed before this meta-gradient was pickled: call "
            f"meta_gradient with wrt={sorted(wanted)}"
        )

    def verdicts(self, answer: Answer) -> Iterator[Verdict]:
        raise ValueError("this meta-gradient was pickled before it was certified: call meta_gradient with certify=True")


@dataclass
class MetaGradient(GradientEstimate):
    """A batch's meta-gradient, with all tensors detached. `length`, `rates` and `proximal` are derivatives with respect to the
    flow itself: those that `wrt` names come from the same solve; each other one costs another solve when it is first read, and is
    then kept. Pickling keeps the ones already computed."""

    certificate: Certificate | None
    """The gradient's estimated error, where it was requested; else None."""
    _layout: Layout = field(repr=False)
    _answer: Answer = field(repr=False)
    _again: Again | NotAgain = field(repr=False)

    def certify(self) -> Iterator[Verdict]:
        """Yields the verdicts on the tasks one at a time; after the last one, `certificate` is set."""
        found = []
        for verdict in self._again.verdicts(self._answer):
            found.append(verdict)
            yield verdict
        self.certificate = Certificate.of(found)

    def by_task(self, name: Wanted) -> Any:
        """Each task's derivative with respect to the flow's length, rates or proximal strength, with a first axis B."""
        if getattr(self._answer, name) is None:
            solved = self._again.derivatives({name})
            self._answer = replace(self._answer, **{name: getattr(solved, name)})
        found: Tensor = getattr(self._answer, name)
        if name == "rates":
            return self._layout.unflatten_gradient(found)
        return found[:, 0] if name == "length" and found.shape[1] == 1 else found

    @property
    def length(self) -> Tensor:
        """dJ/dT for each task [B]; with `horizons`, dJ/dT_k [B, K]. For a fixed-step solver N is constant and h = T/N varies."""
        length: Tensor = self.by_task("length")
        return length

    @property
    def rates(self) -> Any:
        """The mean of dJ/dα over tasks, like `params`."""
        return tree_map(lambda tensor: tensor.mean(dim=0), self.by_task("rates"))

    @property
    def proximal(self) -> Tensor:
        """The mean of dJ/dρ over tasks, a scalar."""
        mean: Tensor = self.by_task("proximal").mean()
        return mean


@plain_modes()
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

    `params`: θ, a dict of named tensors or one flat tensor [P], float32 or float64; it decides dtype and device. Module
    parameters with requires_grad=False, and tensors without it beside others that have it, are constants (see `Layout`):
    they don't flow, and their gradient is zero.
    `support_loss`, `query_loss`: (params, task) → scalar, any pure and twice differentiable functions. Those that vmap can't
    trace are solved one task at a time.
    `tasks`: pytree of tensors whose first axis is the task [B, …].
    `length`: T (or `horizons` [(T_k, w_k), …], J = Σ w_k L_qry(u(T_k))). `solver`: Dopri5() unless given.
    `adjoint`: unless given, Discrete() for fixed steps and Interpolated() for adaptive ones.
    `proximal`: ρ, in the flow; `proximal_in_query` adds ½ρ‖u(T)−θ‖² to the query loss.
    `rates`: α ≥ 0, like params; a parameter whose rate is 0 doesn't flow, but still has a gradient.
    `wrt` names derivatives to compute in the same solve: "length", "rates", "proximal"; the others are computed when they
    are first read. `certify` estimates the error too, by an independent solve that costs much more.

    Autocast and inference mode around the call are switched off within it. Nothing of the caller's is changed.
    Raises ValueError for invalid arguments and SolveError where a task can't be solved.
    """
    unknown = sorted(set(wrt) - set(get_args(Wanted)))
    if unknown:
        raise ValueError(f"wrt names {', '.join(unknown)}: choose among {', '.join(get_args(Wanted))}")
    problem, layout = pose(
        params, support_loss, query_loss, tasks, length=length, horizons=horizons, solver=solver, adjoint=adjoint,
        proximal=proximal, proximal_in_query=proximal_in_query, rates=rates,
    )  # fmt: skip
    answer = answer_to(problem, set(wrt))
    problem.derivatives.confirm()
    judge = partial(verdicts, problem, support_loss, query_loss, tasks, layout)
    found = MetaGradient(
        grad=layout.unflatten_gradient(answer.gradients.mean(dim=0)),
        per_task=layout.unflatten_gradient(answer.gradients),
        loss=answer.losses @ answer.losses.new_tensor(problem.weights),
        adapted=layout.unflatten(answer.adapted),
        stats=answer.stats,
        certificate=None,
        _layout=layout,
        _answer=answer,
        _again=Again(problem, frozenset(wrt), judge),
    )
    if certify:
        deque(found.certify(), maxlen=0)
    return found


def answer_to(problem: GradientProblem, wanted: AbstractSet[Wanted]) -> Answer:
    """The answer by a forward and a backward solve: in the compiled kernel where it supports the problem, else batched."""
    return kernel.solve(problem, wanted) or _batched(problem, wanted)


def _batched(problem: GradientProblem, wanted: AbstractSet[Wanted]) -> Answer:
    solver, adjoint = problem.solver, problem.adjoint
    flow = problem.flow(watched=not adjoint.exact)
    state_bytes = problem.batch * problem.theta.numel() * problem.theta.element_size()
    snapshots = adjoint.snapshots(solver.steps(problem.horizons), state_bytes)
    solution = solver.solve(flow, problem.batch, problem.horizons, snapshots)
    losses, jumps, direct = zip(*(problem.judge(k, end) for k, end in enumerate(solution.ends)), strict=True)
    gathered = Sensitivity(flow, problem.batch, wanted if problem.target == "discrete" else wanted - {"length"})
    gradients = adjoint.vjp(flow, solution, list(jumps), gathered, solver.rtol) + sum(direct)
    through_theta, by_proximal = gathered["theta"], gathered["proximal"]
    if through_theta is not None:
        gradients = gradients + through_theta
    if by_proximal is not None and problem.proximal_in_query:
        for end, weight in zip(solution.ends, problem.weights, strict=True):
            by_proximal = by_proximal + 0.5 * weight * (end - problem.theta).square().sum(dim=1)
    raise_where(~gradients.isfinite().all(dim=1), Result.NON_FINITE, 0.0)
    return Answer(
        gradients=gradients,
        losses=torch.stack(losses, dim=1),
        adapted=solution.ends[-1],
        stats=Stats.of(solution, flow.evaluations, problem.target),
        length=_length_derivatives(problem, flow, solution.ends, jumps, gathered),
        rates=gathered["rates"],
        proximal=by_proximal,
    )


def _length_derivatives(
    problem: GradientProblem, flow: GradientFlow, ends: list[Tensor], jumps: Sequence[Tensor], gathered: Sensitivity
) -> Tensor | None:
    """The derivatives dJ/dT_k [B, K]: ⟨f(u(T_k)), jump_k⟩ for the flow; for equal steps, through h = (interval length)/N at fixed
    N. None where the latter weren't requested."""
    if problem.target == "flow":
        return torch.stack([(flow(end) * jump).sum(dim=1) for end, jump in zip(ends, jumps, strict=True)], dim=1)
    if not gathered.by_interval:
        return None
    by_interval = [
        gathered.by_interval[k] / (end - start) for k, (start, end) in enumerate(pairwise([0.0, *problem.horizons]))
    ]
    following = [*by_interval[1:], torch.zeros_like(by_interval[0])]
    return torch.stack([own - after for own, after in zip(by_interval, following, strict=True)], dim=1)
