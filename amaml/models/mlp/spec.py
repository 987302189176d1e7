"""Fully connected networks, as a job names them. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from amaml.models.cost import ModelCost
from amaml.models.mlp.cost import cost_of
from amaml.models.spec import ModelSpec


class MLPSpec(ModelSpec):
    implementation: ClassVar[str] = "amaml.models.mlp.module:build"
    summary: ClassVar[str] = (
        "Fully connected network; gradients and Hessian-vector products by batched matrix products."
    )
    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=1, max_length=8)] = [32, 32]  # noqa: RUF012 - pydantic copies it
    activation: Literal["tanh", "sigmoid", "softplus", "relu"] = "tanh"

    def cost(self, inputs: int, outputs: int, picture: tuple[int, int, int] | None = None) -> ModelCost | None:
        return cost_of(self, inputs, outputs)

    def not_smooth(self) -> tuple[str, str] | None:
        if self.activation != "relu":
            return None
        return "activation", "relu's are zero: set model.activation to tanh, sigmoid or softplus"
