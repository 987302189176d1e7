"""What every architecture's spec is, and what a model says of itself without torch: the base of each model's `spec.py`."""

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
    """`module:function`; called as function(spec, in_features=…, out_features=…) in the trainer, gives a Module. Nothing else
    imports the module, so it may import torch."""
    summary: ClassVar[str]
    reads_pictures: ClassVar[bool] = False
    """The function takes `picture=(channels, height, width)` too: the shape of a row's inputs."""
    kind: str

    def cost(self, inputs: int, outputs: int, picture: tuple[int, int, int] | None = None) -> ModelCost | None:
        """What a run with it takes, for the estimate; None where it isn't known, and the estimate says null."""
        return None

    def not_smooth(self) -> tuple[str, str] | None:
        """The field by which the network's second derivatives in its inputs are zero, and what is said of it; None where the
        network is smooth."""
        return None
