"""The first evaluation of a user's losses: it finds out how they can be differentiated, and whether they are pure functions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from amaml.flow.derivatives import LoopedDerivatives, Loss, TracedDerivatives, Witness, same
from amaml.memory import is_out_of_memory

_log = logging.getLogger(__name__)

_Make = Callable[[Loss, Loss, Any, Witness | None], TracedDerivatives | LoopedDerivatives]


def differentiated(
    support: Loss, query: Loss, tasks: Any, unflatten: Callable[[Tensor], Any], theta: Tensor
) -> TracedDerivatives | LoopedDerivatives:
    """Derivatives of the losses for all tasks [B, …], by vmap where a trial at θ [P] shows that it can trace them, otherwise task
    by task.

    Raises ValueError for losses that aren't pure scalar functions: whose values differ from one evaluation to the next, that
    write into their arguments, or whose dependence on params is hidden from autograd.
    """
    losses = ScalarLoss(support, "support", theta.dtype), ScalarLoss(query, "query", theta.dtype)
    tasks = tree_map(lambda leaf: leaf.clone() if leaf.is_inference() else leaf.detach(), tasks)
    u = theta.expand(len(tree_leaves(tasks)[0]), -1).clone()

    def traced(support: Loss, query: Loss, tasks: Any, witness: Witness | None) -> TracedDerivatives:
        return TracedDerivatives(support, query, tasks, unflatten, witness)

    def looped(support: Loss, query: Loss, tasks: Any, witness: Witness | None) -> LoopedDerivatives:
        each = [tree_map(lambda leaf, row=row: leaf[row], tasks) for row in range(len(u))]
        return LoopedDerivatives(support, query, each, unflatten, witness)

    try:
        witness = _try(traced, losses, tasks, u)
        traced(*losses, tasks, None).hvp(u, u)
        return traced(*losses, tasks, witness)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # The loop below shows whether the error is the loss's own or vmap's.
        _log.info("tasks are solved one at a time, since vmap can't trace the losses: %s", error)
    return looped(*losses, tasks, _try(looped, losses, tasks, u))


def _try(make: _Make, losses: tuple[ScalarLoss, ScalarLoss], tasks: Any, u: Tensor) -> Witness:
    """The losses' derivatives at u [B, P]. Raises ValueError where the losses aren't pure functions."""
    own, at = tree_map(torch.clone, tasks), u.clone()  # so that writing into them doesn't reach the caller's
    lent = [at, *tree_leaves(own)]
    versions = [tensor._version for tensor in lent]
    derivatives = make(*losses, own, None)
    witness = Witness(derivatives, at)
    if versions != [tensor._version for tensor in lent]:
        raise ValueError(
            "a loss changes its arguments in place, so that its next value would be another: write x = x - c instead of "
            "x -= c, and x.clamp(…) instead of x.clamp_(…), or clone the argument first"
        )
    witness.confirm(derivatives)
    for loss, slope in zip(losses, (witness.slope, witness.query_slope), strict=True):
        if not bool(slope.any()):
            _refuse_hidden_dependence(loss.name, make(loss, loss, own, None), at)
    return witness


def _refuse_hidden_dependence(name: str, derivatives: TracedDerivatives | LoopedDerivatives, u: Tensor) -> None:
    """Raises ValueError where the loss changes with params although its gradient is zero near u [B, P], too: then operations that
    autograd can't follow hide the dependence. A zero gradient at a stationary point or of a constant loss is accepted."""
    here, _ = derivatives.query(u)
    aside = torch.arange(u.shape[1], dtype=u.dtype, device=u.device).sin()
    for moved in (1.01 * u + 0.01 * aside, u + aside):
        there, slope = derivatives.query(moved)
        if bool(slope.any()):
            return
        if same(there, here):
            continue
        raise ValueError(
            f"the {name} loss changes with params, but its gradient is zero everywhere: .detach(), .item(), numpy, rounding "
            "or a count hides params from autograd; compute the loss by differentiable operations on params alone"
        )


class ScalarLoss:
    """A user's loss, whose value is checked to be a real scalar and converted to the dtype of params. Raises ValueError if
    not."""

    def __init__(self, loss: Loss, name: str, dtype: torch.dtype) -> None:
        self.loss, self.name, self.dtype = loss, name, dtype

    def __call__(self, params: Any, task: Any) -> Tensor:
        value = self.loss(params, task)
        if not isinstance(value, Tensor):
            raise ValueError(  # noqa: TRY004 - a wrong value of the caller's function
                f"the {self.name} loss returned a {type(value).__name__}: return the scalar tensor alone, through which the "
                "gradient reaches params, such as (prediction - y).square().mean()"
            )
        if not value.is_floating_point():
            raise ValueError(
                f"the {self.name} loss is {value.dtype}, and a gradient needs a real number: use a differentiable loss, and "
                ".real or .abs() of a complex one"
            )
        if value.numel() != 1:
            raise ValueError(
                f"the {self.name} loss has shape {list(value.shape)} for one task: return one number, such as its mean()"
            )
        return value.reshape(()).to(self.dtype)
