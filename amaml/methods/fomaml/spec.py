"""First-order MAML as a job names it. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from amaml.methods.spec import MethodSpec


class FomamlSpec(MethodSpec):
    summary: ClassVar[str] = "First-order MAML (Finn et al. 2017): the query gradient at the flow's end, taken for θ's."
    implementation: ClassVar[str | None] = "amaml.methods.fomaml.gradient:fomaml"
    proximal: ClassVar[float] = 0.0
    kind: Literal["fomaml"] = "fomaml"

    def evaluations(self, forward: float, gradients: float, hvps: float) -> tuple[float, float]:
        return forward, 0
