"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from amaml.models.mlp.spec import MLPSpec

Activation = Literal["tanh", "sigmoid", "softplus", "relu"]

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "relu": nn.ReLU,
}


class MLP(nn.Sequential):
    """A network of linear layers with one activation between them: `in_features → hidden… → out_features`.

    Parameters are named as in any `nn.Sequential`: `0.weight` [hidden, in], `0.bias`, `2.weight`, …
    Raises ValueError for a width below 1, no hidden layer, or an unknown activation.
    """

    def __init__(
        self, in_features: int, hidden: Sequence[int], out_features: int, activation: Activation = "tanh"
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is unknown: choose one of {', '.join(ACTIVATIONS)}")
        widths = (in_features, *hidden, out_features)
        if not hidden or min(widths) < 1:
            raise ValueError(f"widths {widths} need at least one hidden layer and no width below 1")
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
        super().__init__(*layers[:-1])
        self.widths = widths
        self.activation: Activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """The outputs […, out_features] for inputs […, in_features]."""
        out: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return out


def build(spec: MLPSpec, *, in_features: int, out_features: int) -> MLP:
    """The spec's network with PyTorch's default random initialization."""
    return MLP(in_features, spec.hidden, out_features, spec.activation)
