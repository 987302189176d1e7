"""Derivatives with respect to the flow itself, gathered on the way back: θ through the proximal term, rates, ρ, length."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Literal

import torch
from torch import Tensor

from amaml.flow.field import GradientFlow

Wanted = Literal["length", "rates", "proximal"]


class Sensitivity:
    """Sums over stages of what the field's own parameters see of λ. With the weighted adjoint k̄ of a stage at U (for a
    quadrature ∫…λ dt: k̄ = λ·weight), df = −(∇L + ρ(U−θ))∘dα − α∘(U−θ) dρ + ρα∘dθ."""

    def __init__(self, like: Tensor, wanted: AbstractSet[Wanted]) -> None:
        batch = len(like)
        self.wanted = wanted
        self.theta = torch.zeros_like(like)
        """ρ∫α∘λ [B, P]: what θ gets through the proximal term, beside λ(0)."""
        self.rates = torch.zeros_like(like) if "rates" in wanted else None
        self.proximal = like.new_zeros(batch) if "proximal" in wanted else None
        self.stretches: dict[int, Tensor] = {}
        """Where the length is wanted: Σ⟨k̄, f(U)⟩ [B] over each stretch between horizons."""
        self._product = like.new_zeros(batch) if "length" in wanted else None

    def idle(self, proximal: float) -> bool:
        """Whether there is nothing to gather."""
        return not proximal and not self.wanted

    def visit(self, field: GradientFlow, u: Tensor, weighted: Tensor) -> None:
        """Adds a stage at u [A, P] with weighted adjoint k̄ [A, P]."""
        scaled = weighted if field.rates is None else weighted * field.rates
        if field.proximal:
            _add(self.theta, field.rows, field.proximal * scaled)
        if self.proximal is not None:
            _add(self.proximal, field.rows, -(scaled * (u - field.theta)).sum(dim=1))
        if self.rates is None and self._product is None:
            return
        force = field.force(u)
        if self.rates is not None:
            _add(self.rates, field.rows, -weighted * force)
        if self._product is not None:
            _add(self._product, field.rows, -(scaled * force).sum(dim=1))

    def close_stretch(self, k: int) -> None:
        """Ends the k-th stretch between horizons: what is gathered from now on belongs to an earlier one."""
        if self._product is not None:
            self.stretches[k], self._product = self._product, torch.zeros_like(self._product)


def _add(total: Tensor, rows: Tensor | None, part: Tensor) -> None:
    if rows is None:
        total.add_(part)
    else:
        total.index_add_(0, rows, part)
