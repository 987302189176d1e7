"""COMLN as a job names it: adjoint MAML's gradient, with a learned length. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from amaml.methods.amaml.spec import AdjointMethodSpec
from amaml.methods.spec import Learnable


class ComlnSpec(AdjointMethodSpec):
    summary: ClassVar[str] = (
        "COMLN (Deleu et al. 2022), for all parameters: adjoint MAML that learns its length, from trajectory.length on."
    )
    proximal: ClassVar[float] = 0.0
    kind: Literal["comln"] = "comln"

    @property
    def learned(self) -> Sequence[Learnable]:
        return ("length",)
