"""Tests of whether explicit formulas for a kind of network are valid for a given network and its tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amaml.methods.parameters import Layout

KEYS = ("support_x", "support_y", "query_x", "query_y")
MASKS = ("support_mask", "query_mask")


def fits(net: nn.Module, ends: tuple[int, int], tasks: Any, layout: Layout) -> bool:
    """Whether the params are all of the network's parameters in the module's own order, and the tasks are batched rows of the
    same dtype, whose widths are the network's numbers of inputs and outputs `ends`."""
    return (
        not layout.flat
        and not layout.constants
        and list(layout.shapes.items()) == [(name, parameter.shape) for name, parameter in net.named_parameters()]
        and isinstance(tasks, Mapping)
        and all(
            isinstance(tasks.get(key), Tensor)
            and tasks[key].ndim == 3
            and tasks[key].dtype == layout.dtype
            and tasks[key].layout == torch.strided
            for key in KEYS
        )
        and all(tasks[f"{rows}_x"].shape[2] == ends[0] for rows in ("support", "query"))
        and all(tasks[f"{rows}_y"].shape[2] == ends[1] for rows in ("support", "query"))
        and all(tasks[key].numel() for key in KEYS)
        and all(tasks[f"{rows}_x"].shape[:2] == tasks[f"{rows}_y"].shape[:2] for rows in ("support", "query"))
    )


def agrees(net: nn.Module, row: Tensor, formula: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether the network's own output for a row [1, d] equals, to rounding, that of the formula of parameters [1, P] and rows
    [1, 1, d].

    The network is called with its own parameters, which needs no copy of it. PyTorch computes a single row in one thread: threads
    of its pool would afterwards wait actively for more work, and keep the kernel's threads from the cores.
    """
    own = list(net.parameters())
    if own[0].is_meta:
        return False
    row = row.to(own[0]).nan_to_num(0.0, 0.0, 0.0)  # a row that a mask leaves out may hold any values
    with torch.no_grad():
        predicted = net(row)
        expected = formula(torch.cat([parameter.flatten() for parameter in own])[None], row[None])[0]
    if not isinstance(predicted, Tensor) or predicted.shape != expected.shape:
        return False
    tolerance = 1e3 * torch.finfo(expected.dtype).eps
    scale = float(expected.abs().amax().nan_to_num(1.0)) + 1.0
    return torch.allclose(predicted, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
