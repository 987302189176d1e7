"""A linear classifier of two tasks, losses for it as users write them, and its meta-gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import amaml
from tests.amaml.problems import Tensors

LOSS = Callable[[Tensors, Tensors], Tensor]


def classes() -> tuple[Tensors, Tensors]:
    """θ of a linear classifier, and two tasks."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 10, 4, generator=generator, dtype=torch.float64)
    params = {
        "w": torch.randn(4, 3, generator=generator, dtype=torch.float64),
        "b": torch.zeros(3, dtype=torch.float64),
    }
    return params, {"x": x, "c": torch.randint(3, (2, 10), generator=generator)}


def logits(params: Tensors, task: Tensors) -> Tensor:
    return task["x"] @ params["w"] + params["b"]


def entropy(params: Tensors, task: Tensors) -> Tensor:
    return cross_entropy(logits(params, task), task["c"])


def solved(support: Any, query: Any = None, tasks: Any = None, **options: Any) -> amaml.MetaGradient:
    params, own = classes()
    given = {"length": 0.4, "solver": amaml.Euler(0.1, guard=False), **options}
    return amaml.meta_gradient(params, support, query or support, own if tasks is None else tasks, **given)


def by_branch(params: Tensors, task: Tensors) -> Tensor:
    loss = entropy(params, task)
    return loss if loss > 1 else 2 * loss
