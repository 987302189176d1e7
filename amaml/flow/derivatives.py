"""First and second derivatives of a batch of tasks' losses, at one parameter vector a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vjp, vmap
from torch.utils._pytree import tree_map

Loss = Callable[[Any, Any], Tensor]
"""(params, task) → scalar."""


class Derivatives(Protocol):
    """All arguments and results are [B, P], one row a task, unless said otherwise."""

    def gradient(self, u: Tensor) -> Tensor:
        """∇L_sup(u)."""

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """∇²L_sup(u) v."""

    def query(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """L_qry(u) [B] and ∇L_qry(u)."""

    def take(self, rows: Tensor) -> Self:
        """The same for some of the tasks."""


class TracedDerivatives:
    """Derivatives of any differentiable losses, by torch.func over all tasks at once.

    `unflatten` turns one task's [P] into what the losses take as params. The Hessian is symmetric, so an HVP is a VJP
    or a JVP of the gradient: reverse over reverse on the CPU, where it was measured faster, forward over reverse on CUDA.
    """

    def __init__(self, support: Loss, query: Loss, tasks: Any, unflatten: Callable[[Tensor], Any]) -> None:
        self._support, self._query, self._tasks, self._unflatten = support, query, tasks, unflatten

    def _support_at(self, u: Tensor, task: Any) -> Tensor:
        return self._support(self._unflatten(u), task)

    def _query_at(self, u: Tensor, task: Any) -> Tensor:
        return self._query(self._unflatten(u), task)

    def gradient(self, u: Tensor) -> Tensor:
        gradient: Tensor = vmap(grad(self._support_at))(u, self._tasks)
        return gradient.contiguous()  # one that is the same everywhere comes as a view, which can't be written to

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        product: Tensor = vmap(self._hvp_forward if u.is_cuda else self._hvp_reverse)(u, v, self._tasks)
        return product.contiguous()

    def _hvp_reverse(self, u: Tensor, v: Tensor, task: Any) -> Tensor:
        pull = vjp(lambda w: grad(self._support_at)(w, task), u)[1]
        product: Tensor = pull(v)[0]
        return product

    def _hvp_forward(self, u: Tensor, v: Tensor, task: Any) -> Tensor:
        product: Tensor = jvp(lambda w: grad(self._support_at)(w, task), (u,), (v,))[1]
        return product

    def query(self, u: Tensor) -> tuple[Tensor, Tensor]:
        gradient, loss = vmap(grad_and_value(self._query_at))(u, self._tasks)
        return loss, gradient.contiguous()

    def take(self, rows: Tensor) -> TracedDerivatives:
        tasks = tree_map(lambda leaf: leaf[rows] if isinstance(leaf, torch.Tensor) else leaf, self._tasks)
        return TracedDerivatives(self._support, self._query, tasks, self._unflatten)
