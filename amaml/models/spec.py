"""The base of every model's spec, which describes the model without importing torch."""

from __future__ import annotations

from typing import ClassVar

from amaml.models.cost import ModelCost
from amaml.spec.part import Part


class ModelSpec(Part):
    """Base of every architecture's spec, and the protocol of a model: a subclass fixes `kind`, `summary` and `implementation`.

    A model is a folder: `spec.py` (the subclass, without torch), `module.py` (the network), `cost.py` (what `cost` answers), and
    `derivatives.py` where they are written out.
    """

    implementation: ClassVar[str]
    """The `module:function` that the trainer calls as function(spec, in_features=…, out_features=…) to get the network, a Module.
    Nothing else imports the module, so it may import torch."""
    summary: ClassVar[str]
    reads_pictures: ClassVar[bool] = False
    """Whether the function also takes `picture=(channels, height, width)`, the shape of a row's inputs."""
    kind: str

    def cost(self, inputs: int, outputs: int, picture: tuple[int, int, int] | None = None) -> ModelCost | None:
        """The network's contribution to the estimated cost of a run; None where it isn't known, and the estimate is then null."""
        return None

    def not_smooth(self) -> tuple[str, str] | None:
        """The field that makes the network's second derivatives by its inputs zero, and the end of the error message about it;
        None where the network is smooth."""
        return None
