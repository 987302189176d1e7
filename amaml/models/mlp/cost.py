"""The estimated cost of a fully connected network. Imports no torch."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from amaml.models.cost import ModelCost

if TYPE_CHECKING:
    from amaml.models.mlp.spec import MLPSpec


def cost_of(spec: MLPSpec, inputs: int, outputs: int) -> ModelCost:
    parameters = sum((before + 1) * after for before, after in pairwise([inputs, *spec.hidden, outputs]))
    return ModelCost(parameters, multiplications=parameters, activations=sum(spec.hidden))
