"""First and second derivatives of the losses of a batch of tasks, each task at its own parameter vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vjp, vmap
from torch.utils._pytree import tree_map

from amaml.flow.threads import points_of, threads_for
from amaml.memory import is_out_of_memory
from amaml.modes import attention_by_products

Loss = Callable[[Any, Any], Tensor]
"""(params, task) → scalar."""


class Derivatives(Protocol):
    """Derivatives of the support and query losses. Arguments and results are [B, P], one row for each task, unless noted."""

    @property
    def smooth(self) -> bool:
        """Whether the support loss is known to have no kinks."""

    def gradient(self, u: Tensor) -> Tensor:
        """∇L_sup(u)."""

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """∇²L_sup(u) v."""

    def query(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """L_qry(u) [B] and ∇L_qry(u)."""

    def take(self, rows: Tensor) -> Self:
        """The derivatives of these tasks only."""

    def confirm(self) -> None:
        """To be called when a solve has ended: frees what was kept for it. Raises ValueError where the losses have changed since
        it began."""


class Witness:
    """The derivatives at one u [B, P], kept to test whether a later evaluation gives the same numbers.

    The adjoint evaluates the losses again along the forward solve. If they changed in between (a loss that draws random numbers,
    say), its gradient would be silently wrong.
    """

    ROUNDING = 50.0
    """The largest difference between two evaluations that counts as rounding, in units of the dtype's epsilon and relative to the
    task's largest number: sums may be taken in another order."""

    def __init__(self, derivatives: Derivatives, u: Tensor) -> None:
        self._u, self.slope = u, derivatives.gradient(u)
        self.query_loss, self.query_slope = derivatives.query(u)

    def confirm(self, derivatives: Derivatives) -> None:
        """Evaluates the losses again. Raises ValueError where the numbers differ by more than rounding."""
        again = Witness(derivatives, self._u)
        self._refuse_change("support", self.slope, again.slope)
        self._refuse_change("query", self.query_loss[:, None], again.query_loss[:, None])
        self._refuse_change("query", self.query_slope, again.query_slope)

    def _refuse_change(self, name: str, before: Tensor, after: Tensor) -> None:
        if same(before, after):
            return
        apart = (after - before).abs().amax(dim=1)
        scale = before.abs().amax(dim=1)
        if bool((apart <= self.ROUNDING * torch.finfo(before.dtype).eps * scale).all()):
            return
        raise ValueError(
            f"the {name} loss isn't a pure function: two evaluations at the same params and tasks differ by "
            f"{float((apart / scale).max()):.2g} times their size. Losses may not draw random numbers (call net.eval() for "
            "dropout, draw noise before and pass it as part of tasks), count their calls, read a clock or change what they read"
        )


def same(one: Tensor, other: Tensor) -> bool:
    """Whether the two are equal, counting NaN as equal to NaN."""
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


class TracedDerivatives:
    """Derivatives of any differentiable losses, by torch.func for all tasks at once.

    `unflatten` turns one task's flat vector [P] into the params that the losses take. The Hessian is symmetric, so a
    Hessian-vector product is a vector-Jacobian or a Jacobian-vector product of the gradient: reverse over reverse mode on the
    CPU, where that was measured to be faster, forward over reverse mode on CUDA. Small evaluations use one thread of PyTorch's.
    """

    smooth: ClassVar[bool] = False

    def __init__(
        self, support: Loss, query: Loss, tasks: Any, unflatten: Callable[[Tensor], Any], witness: Witness | None = None
    ) -> None:
        self._support, self._query, self._tasks, self._unflatten = support, query, tasks, unflatten
        self._witness = witness
        self._points = points_of(tasks)

    def _support_at(self, u: Tensor, task: Any) -> Tensor:
        return self._support(self._unflatten(u), task)

    def _query_at(self, u: Tensor, task: Any) -> Tensor:
        return self._query(self._unflatten(u), task)

    def gradient(self, u: Tensor) -> Tensor:
        with attention_by_products(), threads_for(u, self._points):
            gradient: Tensor = vmap(grad(self._support_at))(u, self._tasks)
        return gradient.contiguous()  # a constant gradient comes as an expanded view, which can't be written to

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        with attention_by_products(), threads_for(u, self._points):
            product: Tensor = vmap(self._hvp_forward if u.is_cuda else self._hvp_reverse)(u, v, self._tasks)
        return product.contiguous()

    def _hvp_reverse(self, u: Tensor, v: Tensor, task: Any) -> Tensor:
        product: Tensor = vjp(lambda w: grad(self._support_at)(w, task), u)[1](v)[0]
        return product

    def _hvp_forward(self, u: Tensor, v: Tensor, task: Any) -> Tensor:
        product: Tensor = jvp(lambda w: grad(self._support_at)(w, task), (u,), (v,))[1]
        return product

    def query(self, u: Tensor) -> tuple[Tensor, Tensor]:
        with attention_by_products(), threads_for(u, self._points):
            gradient, loss = vmap(grad_and_value(self._query_at))(u, self._tasks)
        return loss.contiguous(), gradient.contiguous()

    def take(self, rows: Tensor) -> TracedDerivatives:
        tasks = tree_map(lambda leaf: leaf[rows] if isinstance(leaf, torch.Tensor) else leaf, self._tasks)
        return TracedDerivatives(self._support, self._query, tasks, self._unflatten)

    def confirm(self) -> None:
        if self._witness is not None:
            self._witness.confirm(self)


class LoopedDerivatives:
    """The same derivatives by autograd, one task after another: for losses that vmap can't trace, such as those that branch on
    their values, call `.item()` or use an operation without a batching rule. Slower by a factor of about the number of tasks.

    `tasks` is a list with the tensors of each task.
    """

    smooth: ClassVar[bool] = False

    def __init__(
        self,
        support: Loss,
        query: Loss,
        tasks: list[Any],
        unflatten: Callable[[Tensor], Any],
        witness: Witness | None = None,
    ) -> None:
        self._support, self._query, self._tasks, self._unflatten = support, query, tasks, unflatten
        self._witness = witness

    def gradient(self, u: Tensor) -> Tensor:
        return torch.stack([self._support_slope(*own) for own in zip(u, self._tasks, strict=True)])

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        return torch.stack([self._support_slope(*own) for own in zip(u, self._tasks, v, strict=True)])

    def query(self, u: Tensor) -> tuple[Tensor, Tensor]:
        losses, slopes = [], []
        for row, task in zip(u, self._tasks, strict=True):
            with explained("query"), torch.enable_grad(), attention_by_products():
                at = row.detach().requires_grad_()
                losses.append(self._query(self._unflatten(at), task))
                slopes.append(_vjp(losses[-1], at))
        return torch.stack(losses).detach(), torch.stack(slopes)

    def take(self, rows: Tensor) -> LoopedDerivatives:
        tasks = [self._tasks[row] for row in rows.tolist()]
        return LoopedDerivatives(self._support, self._query, tasks, self._unflatten)

    def confirm(self) -> None:
        if self._witness is not None:
            self._witness.confirm(self)

    def _support_slope(self, row: Tensor, task: Any, v: Tensor | None = None) -> Tensor:
        """∇L_sup [P] of one task, or with v [P] ∇²L_sup v."""
        with explained("support"), torch.enable_grad(), attention_by_products():
            at = row.detach().requires_grad_()
            slope = _vjp(self._support(self._unflatten(at), task), at, graph=v is not None)
            return slope if v is None else _vjp(slope, at, v)


def _vjp(value: Tensor, at: Tensor, cotangent: Tensor | None = None, *, graph: bool = False) -> Tensor:
    """The vector-Jacobian product of `value` with respect to `at` [P]; zero where `value` doesn't depend on it."""
    if not value.requires_grad:
        return torch.zeros_like(at)
    (product,) = torch.autograd.grad(value, at, cotangent, create_graph=graph, allow_unused=True)
    return torch.zeros_like(at) if product is None else product


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns an error of PyTorch in a loss into a ValueError that names the loss."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"the {name} loss can't be evaluated or differentiated ({type(error).__name__}: {error}): the inner flow needs its "
            "gradient and its second derivatives; check shapes and dtypes, and replace in-place operations and operations "
            "without a second derivative"
        ) from error
