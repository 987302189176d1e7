"""The inner flow du/dt = f(u) = −α∘(∇L_sup(u) + ρ(u−θ)) of a batch of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from amaml.flow.derivatives import Derivatives
from amaml.flow.norms import TensorNorms, scales


@dataclass(frozen=True)
class Evaluations:
    """The numbers of gradients and of Hessian-vector products that were evaluated for each task [B]."""

    gradients: Tensor
    hvps: Tensor


class GradientFlow:
    """The vector field f and products with its Jacobian. Arguments and results are [A, P]: one row for each active task.

    `theta` [P] is the start of the flow and the centre of its proximal term; `sizes` are the sizes of the parameter tensors in
    it; `rates` [P] is α (None: 1); `proximal` is ρ. With `watched`, a solve fails where the flow meets a kink of the loss, since
    an adjoint equation of the flow follows, which doesn't hold there. Every evaluation is counted in `evaluations`, at the
    task's place in the whole batch.
    """

    def __init__(
        self,
        derivatives: Derivatives,
        theta: Tensor,
        evaluations: Evaluations,
        *,
        sizes: Sequence[int],
        rates: Tensor | None = None,
        proximal: float = 0.0,
        rows: Tensor | None = None,
        watched: bool = False,
    ) -> None:
        self.derivatives, self.theta, self.evaluations, self.sizes = derivatives, theta, evaluations, sizes
        self.rates, self.proximal, self.rows = rates, proximal, rows
        self.watched = watched and not derivatives.smooth
        self._root_rates = None if rates is None else rates.sqrt()

    def take(self, rows: Tensor) -> GradientFlow:
        """The field of these tasks; only the field of the whole batch can be asked for it."""
        return GradientFlow(
            self.derivatives.take(rows),
            self.theta,
            self.evaluations,
            sizes=self.sizes,
            rates=self.rates,
            proximal=self.proximal,
            rows=rows,
            watched=self.watched,
        )

    @cached_property
    def scales(self) -> Tensor:
        """The size [P] that the absolute tolerance of each parameter is multiplied by."""
        return scales(self.theta, self.sizes)

    @cached_property
    def norms(self) -> TensorNorms:
        """The norms of a vector's parts, one for each parameter tensor."""
        return TensorNorms(self.sizes, self.theta)

    def __call__(self, u: Tensor) -> Tensor:
        """f(u)."""
        return self._scaled(self.force(u)).neg_()

    def force(self, u: Tensor) -> Tensor:
        """∇L_sup(u) + ρ(u−θ)."""
        self._count(self.evaluations.gradients)
        force = self.derivatives.gradient(u)
        return force.add_(u - self.theta, alpha=self.proximal) if self.proximal else force

    def jacobian(self, u: Tensor, v: Tensor) -> Tensor:
        """(∂f/∂u) v = −α∘((∇²L_sup(u) + ρ) v)."""
        return self._scaled(self._hessian(u, v)).neg_()

    def jacobian_transposed(self, u: Tensor, v: Tensor) -> Tensor:
        """(∂f/∂u)ᵀ v = −(∇²L_sup(u) + ρ)(α∘v)."""
        return self._hessian(u, v if self.rates is None else v * self.rates).neg_()

    def curvature(self, u: Tensor, v: Tensor) -> Tensor:
        """√α∘((∇²L_sup(u) + ρ)(√α∘v)): symmetric, with the eigenvalues of −∂f/∂u."""
        if self._root_rates is None:
            return self._hessian(u, v)
        return self._hessian(u, v * self._root_rates).mul_(self._root_rates)

    def symmetric_norm(self, v: Tensor) -> Tensor:
        """‖√α∘v‖ [A]. The norms of v and of (∂f/∂u)ᵀ v in this sense are those of a vector and its image under `curvature`."""
        size: Tensor = (v if self._root_rates is None else v * self._root_rates).norm(dim=1)
        return size

    def _hessian(self, u: Tensor, v: Tensor) -> Tensor:
        self._count(self.evaluations.hvps)
        product = self.derivatives.hvp(u, v)
        return product.add_(v, alpha=self.proximal) if self.proximal else product

    def _scaled(self, v: Tensor) -> Tensor:
        return v if self.rates is None else v.mul_(self.rates)

    def _count(self, counter: Tensor) -> None:
        if self.rows is None:
            counter.add_(1)
        else:
            counter.index_add_(0, self.rows, torch.ones_like(self.rows))
