"""The architectures that a job names by `kind`. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from amaml.spec.part import Part


class ModelSpec(Part):
    """Base of every architecture's spec. Subclasses fix `kind` and name their implementation."""

    implementation: ClassVar[str]
    """`module:function`; called as function(spec, in_features=…, out_features=…) in the trainer, gives a Module."""
    summary: ClassVar[str]
    reads_pictures: ClassVar[bool] = False
    """The function takes `picture=(channels, height, width)` too: the shape of a row's inputs."""
    kind: str


class MLPSpec(ModelSpec):
    implementation: ClassVar[str] = "amaml.models.mlp:build"
    summary: ClassVar[str] = (
        "Fully connected network; gradients and Hessian-vector products by batched matrix products."
    )
    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=1, max_length=8)] = [32, 32]  # noqa: RUF012 - pydantic copies it
    activation: Literal["tanh", "sigmoid", "softplus", "relu"] = "tanh"


class Conv4Spec(ModelSpec):
    implementation: ClassVar[str] = "amaml.models.conv4:build"
    summary: ClassVar[str] = (
        "Four blocks of 3 × 3 convolution, group normalisation, ReLU and 2 × 2 pooling, then one linear layer; for pictures."
    )
    reads_pictures: ClassVar[bool] = True
    kind: Literal["conv4"] = "conv4"
    filters: Annotated[int, Field(ge=1, le=256)] = 32
    """Channels of every block."""
