"""The convolutional network of few-shot classification, as a job names it. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from amaml.models.conv4.cost import cost_of
from amaml.models.cost import ModelCost
from amaml.models.spec import ModelSpec


class Conv4Spec(ModelSpec):
    implementation: ClassVar[str] = "amaml.models.conv4.module:build"
    summary: ClassVar[str] = (
        "Four blocks of 3 × 3 convolution, group normalisation, ReLU and 2 × 2 pooling, then one linear layer; for pictures."
    )
    reads_pictures: ClassVar[bool] = True
    kind: Literal["conv4"] = "conv4"
    filters: Annotated[int, Field(ge=1, le=256)] = 32
    """The number of output channels of every block."""

    def cost(self, inputs: int, outputs: int, picture: tuple[int, int, int] | None = None) -> ModelCost | None:
        return None if picture is None else cost_of(self, picture, outputs)
