"""Chooses the explicit derivatives of the convolutional network where they are valid."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from amaml.methods.parameters import Layout
from amaml.models.conv4.derivatives import Conv4Derivatives, outputs, points_of
from amaml.models.conv4.structure import convolutional
from amaml.models.loss_slopes import MAKE_SLOPE
from amaml.models.losses import NetworkLoss
from amaml.models.written_out import KEYS, agrees, fits


def of_conv4(support: NetworkLoss, query: NetworkLoss, tasks: Any, layout: Layout) -> Conv4Derivatives | None:
    """The derivatives of a `Conv4` with losses in MAKE_SLOPE; None for other networks, losses or tasks."""
    net, structure = support.net, convolutional(support.net)
    if structure is None or type(support) not in MAKE_SLOPE or type(query) not in MAKE_SLOPE:
        return None
    if not fits(net, (math.prod(structure.picture), structure.outputs), tasks, layout):
        return None
    x, y, query_x, query_y = (tasks[key] for key in KEYS)
    if not agrees(net, x[0, :1], partial(outputs, structure)):
        return None
    support_points = points_of(structure, x, y, tasks.get("support_mask"))
    query_points = points_of(structure, query_x, query_y, tasks.get("query_mask"))
    losses = MAKE_SLOPE[type(support)], MAKE_SLOPE[type(query)]
    return Conv4Derivatives(structure, losses, support_points, query_points)
