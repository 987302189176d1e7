"""Small networks of two inputs, tasks for them, and how far their meta-gradient is from autograd's."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

import amaml
from amaml.methods.parameters import Layout
from amaml.models.derivatives import derivatives_of
from amaml.models.mlp.derivatives import MLPDerivatives
from tests.amaml.problems import Tensors, apart, flat, unrolled

STEPS, STEP = 6, 0.04


def plane(batch: int = 3, points: int = 12) -> Tensors:
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(batch, points, 2, generator=generator, dtype=torch.float64) * 2 - 1
    y = torch.randn(batch, points, 1, generator=generator, dtype=torch.float64)
    return {"support_x": x, "support_y": (3 * x[..., :1]).sin() + 0.1 * y, "query_x": -x, "query_y": y}


def solved(net: nn.Module, tasks: Any, params: Any = None, losses: Any = amaml.regression_losses) -> amaml.MetaGradient:
    given = dict(net.named_parameters()) if params is None else params
    return amaml.meta_gradient(given, *losses(net), tasks, length=STEPS * STEP, solver=amaml.Euler(STEP, guard=False))


def error(net: nn.Module, tasks: Any = None, params: Any = None, losses: Any = amaml.regression_losses) -> float:
    """Relative distance from autograd through the unrolled steps."""
    tasks = plane() if tasks is None else tasks
    given = dict(net.named_parameters()) if params is None else params
    answer = solved(net, tasks, params, losses)
    return apart(flat(answer.grad), flat(unrolled(given, *losses(net), tasks, STEPS, STEP)))


def is_fast(net: nn.Module, params: Any = None, tasks: Any = None) -> bool:
    layout = Layout(dict(net.named_parameters()) if params is None else params)
    with torch.no_grad():
        found = derivatives_of(*amaml.regression_losses(net), plane() if tasks is None else tasks, layout)
    return isinstance(found, MLPDerivatives)


def mlp(seed: int = 1, activation: Any = "tanh") -> amaml.MLP:
    torch.manual_seed(seed)
    return amaml.MLP(2, [6, 6], 1, activation).double()


def hold_what_can_not_be_copied(net: Any) -> None:
    net.lock = threading.Lock()
    net.left_over = net[0].weight * 2


def normalised() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()
