"""The method that trains nothing, as a job names it. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from amaml.methods.spec import MethodSpec


class RandomSpec(MethodSpec):
    summary: ClassVar[str] = "No training: what the random start scores, the floor for every other method."
    implementation: ClassVar[str | None] = None
    proximal: ClassVar[float] = 0.0
    kind: Literal["random"] = "random"

    def evaluations(self, forward: float, gradients: float, hvps: float) -> tuple[float, float]:
        return 0, 0
