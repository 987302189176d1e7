"""Derivatives with respect to the flow's own parameters (θ through the proximal term, rates, ρ, length), summed up along the
adjoint solve."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Literal

import torch
from torch import Tensor

from amaml.flow.field import GradientFlow

Wanted = Literal["length", "rates", "proximal"]


class Sensitivity:
    """The derivatives of the loss with respect to the field's own parameters, as integrals along the adjoint solve: `total` [B,
    Q].

    A stage at U with cotangent k̄ contributes ⟨k̄, df⟩, where df = −(∇L + ρ(U−θ))∘dα − α∘(U−θ) dρ + ρα∘dθ. For an adjoint
    equation λ takes the place of k̄, and the contribution is the integrand.
    """

    def __init__(self, field: GradientFlow, batch: int, wanted: AbstractSet[Wanted]) -> None:
        parameters = len(field.theta)
        sizes = {
            "theta": parameters if field.proximal else 0,
            "rates": parameters if "rates" in wanted else 0,
            "proximal": 1 if "proximal" in wanted else 0,
            "length": 1 if "length" in wanted else 0,
        }
        self.parts = {name: size for name, size in sizes.items() if size}
        """Name and width of each derivative, in the order of its columns in `total`."""
        self.total = field.theta.new_zeros(batch, sum(self.parts.values()))
        self.by_interval: dict[int, Tensor] = {}
        """Σ⟨k̄, f(U)⟩ [B] over each interval between horizons, where the derivative by the length is wanted."""

    @property
    def idle(self) -> bool:
        """Whether no derivative is wanted."""
        return not self.parts

    def __getitem__(self, name: str) -> Tensor | None:
        """The derivative of this name, None where it isn't wanted: "theta" [B, P] is ρ∫α∘λ, the part through the proximal term,
        which λ(0) doesn't have; "rates" is [B, P], "proximal" [B]."""
        if name not in self.parts:
            return None
        split: tuple[Tensor, ...] = self.total.split(list(self.parts.values()), dim=1)
        columns = dict(zip(self.parts, split, strict=True))[name]
        return columns[:, 0] if self.parts[name] == 1 and name in ("proximal", "length") else columns

    def integrand(self, field: GradientFlow, u: Tensor, weighted: Tensor) -> Tensor:
        """The contribution [A, Q] of a stage at u [A, P] with the cotangent k̄ = `weighted` [A, P]."""
        scaled = weighted if field.rates is None else weighted * field.rates
        columns = []
        force = field.force(u) if self.parts.keys() & {"rates", "length"} else None
        for name in self.parts:
            if name == "theta":
                columns.append(field.proximal * scaled)
            elif name == "proximal":
                columns.append(-(scaled * (u - field.theta)).sum(dim=1, keepdim=True))
            elif force is not None:
                columns.append(-weighted * force if name == "rates" else -(scaled * force).sum(dim=1, keepdim=True))
        return torch.cat(columns, dim=1)

    def visit(self, field: GradientFlow, u: Tensor, weighted: Tensor) -> None:
        """Adds the contribution of a stage of the tasks of `field`."""
        part = self.integrand(field, u, weighted)
        if field.rows is None:
            self.total += part
        else:
            self.total.index_add_(0, field.rows, part)

    def close_interval(self, k: int) -> None:
        """Ends the k-th interval between horizons: what is added for the length from now on belongs to an earlier interval."""
        length = self["length"]
        if length is not None:
            self.by_interval[k] = length.clone()
            length.zero_()
