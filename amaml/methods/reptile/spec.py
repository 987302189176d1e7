"""Reptile as a job names it. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from amaml.methods.spec import MethodSpec


class ReptileSpec(MethodSpec):
    summary: ClassVar[str] = "Reptile (Nichol et al. 2018): θ moves towards where the tasks' flows end."
    implementation: ClassVar[str | None] = "amaml.methods.reptile.gradient:reptile"
    proximal: ClassVar[float] = 0.0
    kind: Literal["reptile"] = "reptile"

    def evaluations(self, forward: float, gradients: float, hvps: float) -> tuple[float, float]:
        return forward, 0
