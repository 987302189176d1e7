"""The problem that a meta-gradient solves, with the parameters as flat vectors, and its answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from amaml.adjoint.discrete import Discrete
from amaml.adjoint.graph import Graph
from amaml.adjoint.interpolated import Interpolated
from amaml.adjoint.protocol import Adjoint
from amaml.flow.derivatives import Derivatives, Loss
from amaml.flow.field import Evaluations, GradientFlow
from amaml.flow.result import Result, raise_where
from amaml.flow.solvers import Dopri5, Solver
from amaml.methods.estimate import Stats
from amaml.methods.parameters import Layout, Params
from amaml.models.derivatives import derivatives_of

_DEFAULT_ADJOINT: dict[str, type[Adjoint]] = {"discrete": Discrete, "interpolated": Interpolated, "graph": Graph}


@dataclass(frozen=True)
class GradientProblem:
    """J(θ) = Σ_k weights_k · L_qry(u(horizons_k)) for each of `batch` tasks, and how to solve it."""

    derivatives: Derivatives
    theta: Tensor
    sizes: list[int]
    """The sizes of the parameter tensors in θ."""
    batch: int
    horizons: list[float]
    weights: list[float]
    solver: Solver
    adjoint: Adjoint
    rates: Tensor | None
    proximal: float
    proximal_in_query: bool

    @property
    def target(self) -> Literal["flow", "discrete"]:
        """What the gradient differentiates; see `Stats.target`."""
        return "discrete" if self.solver.fixed and self.adjoint.exact else "flow"

    def flow(self, *, watched: bool = False) -> GradientFlow:
        """The inner flow, with its counts of evaluations at 0. For `watched` see `GradientFlow`."""
        gradients, hvps = torch.zeros(2, self.batch, dtype=torch.int64, device=self.theta.device)
        return GradientFlow(
            self.derivatives, self.theta, Evaluations(gradients, hvps),
            sizes=self.sizes, rates=self.rates, proximal=self.proximal, watched=watched,
        )  # fmt: skip

    def judge(self, k: int, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At the state u(T_k) [B, P]: the query loss [B], its weighted gradient [B, P], by which λ jumps, and the direct
        derivative by θ [B, P] through the proximal term of the query loss, if there is one. Raises SolveError if not finite."""
        weight = self.weights[k]
        loss, gradient = self.derivatives.query(u)
        direct = torch.zeros_like(self.theta)
        if self.proximal and self.proximal_in_query:
            away = u - self.theta
            loss = loss + 0.5 * self.proximal * away.square().sum(dim=1)
            gradient = gradient + self.proximal * away
            direct = -weight * self.proximal * away
        raise_where(~(loss.isfinite() & gradient.isfinite().all(dim=1)), Result.NON_FINITE, self.horizons[k])
        return loss, weight * gradient, direct


@dataclass(frozen=True)
class Answer:
    """The solution of a GradientProblem, with one row for each task."""

    gradients: Tensor
    losses: Tensor
    """The query losses [B, K], one column for each horizon."""
    adapted: Tensor
    stats: Stats
    length: Tensor | None
    """dJ/dT_k [B, K], where it was requested or costs nothing; else None."""
    rates: Tensor | None
    """dJ/dα [B, P], where it was requested; else None."""
    proximal: Tensor | None
    """dJ/dρ [B], where it was requested; else None."""


def pose(
    params: Params,
    support_loss: Loss,
    query_loss: Loss,
    tasks: Any,
    *,
    length: float | None = None,
    horizons: Sequence[tuple[float, float]] | None = None,
    solver: Solver | None = None,
    adjoint: Adjoint | None = None,
    proximal: float = 0.0,
    proximal_in_query: bool = False,
    rates: Params | None = None,
) -> tuple[GradientProblem, Layout]:
    """The problem and the layout of its vectors; arguments as in `meta_gradient`. Raises ValueError for invalid arguments."""
    layout = Layout(params)
    solver = solver or Dopri5()
    if isinstance(solver, type) or not isinstance(solver, Solver):
        raise ValueError(f"solver must be a solver such as amaml.Dopri5(), got {solver!r}")  # noqa: TRY004 - a wrong choice
    adjoint = _adjoint(adjoint, solver)
    if solver.guard is None:
        solver = solver.guarded(solver.fixed or not adjoint.controlled)
    batch = _batch_size(tasks, layout)
    times, weights = _horizons(length, horizons)
    if not (math.isfinite(proximal) and proximal >= 0):
        raise ValueError(f"proximal must be a finite number of at least 0, got {proximal}")
    alpha = None if rates is None else layout.flatten(rates, "rates")
    if alpha is not None and not bool((alpha.isfinite() & (alpha >= 0)).all()):
        raise ValueError(
            f"rates must be finite numbers of at least 0, got {float(alpha.min()):g} to {float(alpha.max()):g}: give 0 for "
            "parameters that shall not flow, and learn the logarithm of the others"
        )
    problem = GradientProblem(
        derivatives_of(support_loss, query_loss, tasks, layout), layout.theta, layout.sizes, batch, times,
        weights, solver, adjoint, alpha, proximal, proximal_in_query,
    )  # fmt: skip
    return problem, layout


def _adjoint(given: Adjoint | None, solver: Solver) -> Adjoint:
    """The given adjoint, or the solver's default. Raises ValueError for one that doesn't work with the solver."""
    if given is None:
        return _DEFAULT_ADJOINT[solver.adjoint]()
    if isinstance(given, type) or not isinstance(given, Adjoint):
        raise ValueError(f"adjoint must be an adjoint such as amaml.Discrete(), got {given!r}")  # noqa: TRY004 - a wrong choice
    if solver.adjoint != "graph":
        return given
    if given not in (Graph(), Discrete()):
        raise ValueError(
            f"{solver} keeps its own graph: use adjoint=None or Discrete() without checkpoints, got {given}"
        )
    return Graph()


def _batch_size(tasks: Any, layout: Layout) -> int:
    leaves = tree_leaves(tasks)
    if _is_ragged(tasks) or any(isinstance(leaf, Tensor) and leaf.is_nested for leaf in leaves):
        raise ValueError(
            "tasks hold tensors of unequal lengths, one for each task: pad them to one length, stack them to [B, n, …], and say "
            "which points count by support_mask and query_mask [B, n], which the losses of amaml read (your own may read what "
            "you name)"
        )
    if not leaves:
        raise ValueError("tasks hold no tensor: give at least one, whose first axis is the task")
    foreign = sorted({type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)})
    if foreign:
        raise ValueError(f"tasks hold {', '.join(foreign)}: give tensors alone, whose first axis is the task")
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(sizes) != 1 or sizes & {None, 0}:
        shapes = [tuple(leaf.shape) for leaf in leaves]
        raise ValueError(
            f"every tensor of tasks needs the same first axis, the task, of at least 1; got shapes {shapes}"
        )
    elsewhere = {str(leaf.device) for leaf in leaves if leaf.device != layout.device}
    if elsewhere:
        raise ValueError(
            f"tasks lie on {', '.join(sorted(elsewhere))} but params on {layout.device}: move them together"
        )
    return int(leaves[0].shape[0])


def _is_ragged(tasks: Any) -> bool:
    """Whether the tasks hold a list of tensors that differ only in the length of their first axis: tasks of different sizes."""
    parts = list(tasks.values()) if isinstance(tasks, Mapping) else [tasks]
    lists = [part for part in parts if isinstance(part, list | tuple) and len(part) > 1]
    return any(
        all(isinstance(one, Tensor) and one.ndim and not one.is_nested for one in part)
        and len({one.shape[1:] for one in part}) == 1
        and len({one.shape[0] for one in part}) > 1
        for part in lists
    )


def _horizons(length: float | None, horizons: Sequence[tuple[float, float]] | None) -> tuple[list[float], list[float]]:
    if (length is None) == (horizons is None):
        raise ValueError("give either length, or horizons as [(T_k, w_k), …]")
    pairs = [(length, 1.0)] if length is not None else list(horizons or [])
    times, weights = [float(time) for time, _ in pairs], [float(weight) for _, weight in pairs]
    if not times or not all(math.isfinite(time) and time > 0 for time in times):
        raise ValueError(f"length and horizons must be positive finite numbers, got {times}")
    if any(later <= earlier for earlier, later in pairwise(times)):
        raise ValueError(f"horizons must increase strictly, got {times}: sort them and drop repeats")
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights of horizons must be finite, got {weights}")
    return times, weights
