"""Derivatives with respect to the flow itself, gathered on the way back: θ through the proximal term, rates, ρ, length."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Literal

import torch
from torch import Tensor

from amaml.flow.field import GradientFlow

Wanted = Literal["length", "rates", "proximal"]


class Sensitivity:
    """What the field's own parameters see of λ, as integrals over the way back: `total` [B, Q] has all that is gathered.

    With the weighted adjoint k̄ of a stage at U (λ itself for the integrand of ∫…λ dt),
    df = −(∇L + ρ(U−θ))∘dα − α∘(U−θ) dρ + ρα∘dθ.
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
        """Name and width of everything that is gathered, in the order of its columns."""
        self.total = field.theta.new_zeros(batch, sum(self.parts.values()))
        self.by_interval: dict[int, Tensor] = {}
        """Where the length is wanted: Σ⟨k̄, f(U)⟩ [B] over each interval between horizons."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to gather."""
        return not self.parts

    def __getitem__(self, name: str) -> Tensor | None:
        """What was gathered under this name: "theta" [B, P], ρ∫α∘λ, what θ gets through the proximal term beside λ(0);
        "rates" [B, P]; "proximal" [B]; None where it wasn't gathered."""
        if name not in self.parts:
            return None
        split: tuple[Tensor, ...] = self.total.split(list(self.parts.values()), dim=1)
        columns = dict(zip(self.parts, split, strict=True))[name]
        return columns[:, 0] if self.parts[name] == 1 and name in ("proximal", "length") else columns

    def integrand(self, field: GradientFlow, u: Tensor, weighted: Tensor) -> Tensor:
        """What a stage at u [A, P] with weighted adjoint k̄ [A, P] adds, [A, Q]."""
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
        """Adds a stage of the tasks of `field`."""
        part = self.integrand(field, u, weighted)
        if field.rows is None:
            self.total += part
        else:
            self.total.index_add_(0, field.rows, part)

    def close_interval(self, k: int) -> None:
        """Ends the k-th interval between horizons: what is gathered of the length from now on belongs to an earlier one."""
        length = self["length"]
        if length is not None:
            self.by_interval[k] = length.clone()
            length.zero_()
