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
    """Number of function evaluations a task [B], forward gradients and HVPs apart."""

    gradients: Tensor
    hvps: Tensor


class GradientFlow:
    """The vector field f and its Jacobian's products. All arguments and results are [A, P]: a row an active task.

    `theta` [P] is where the flow starts and what the proximal term pulls towards, `sizes` those of the tensors in it;
    `rates` [P] is α (None: 1); `proximal` is ρ. `watched`: kinks must fail the solve, since an adjoint of the flow follows.
    Every call is counted in `evaluations`, at the tasks' places in the whole batch.
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
        """The field of some tasks of the whole batch (on the whole batch's field only)."""
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
        """What absolute tolerances are relative to, [P]."""
        return scales(self.theta, self.sizes)

    @cached_property
    def norms(self) -> TensorNorms:
        """Of every parameter tensor's part of a vector."""
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
        """‖√α∘v‖ [A]: for v and (∂f/∂u)ᵀ v they are a vector's and its image's under `curvature`."""
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
