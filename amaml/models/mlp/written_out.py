"""Chooses the explicit derivatives of fully connected networks where they are valid."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amaml.methods.parameters import Layout
from amaml.models.losses import NetworkLoss, RegressionLoss
from amaml.models.mlp.derivatives import MLPDerivatives
from amaml.models.mlp.structure import dense
from amaml.models.written_out import KEYS, MASKS, agrees, fits


def of_mlp(support: NetworkLoss, query: NetworkLoss, tasks: Any, layout: Layout) -> MLPDerivatives | None:
    """The derivatives of a fully connected network with regression losses; None for other networks, losses or tasks."""
    net = support.net
    if type(support) is not RegressionLoss or type(query) is not RegressionLoss or (structure := dense(net)) is None:
        return None
    ends = structure.widths[0], structure.widths[-1]
    if not fits(net, ends, tasks, layout) or any(key in tasks for key in MASKS):
        return None

    def formula(u: Tensor, x: Tensor) -> Tensor:
        return MLPDerivatives(*structure, (x, x), (x, x)).outputs(u)

    x, y, query_x, query_y = (tasks[key] for key in KEYS)
    if not agrees(net, x[0, :1], formula):
        return None
    return MLPDerivatives(*structure, (x, y), (query_x, query_y))
