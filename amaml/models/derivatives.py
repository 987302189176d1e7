"""Chooses the derivatives of a pair of losses: written out for fully connected networks and `Conv4`, traced for everything
else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from amaml.flow.derivatives import Derivatives, Loss, explained
from amaml.flow.trial import differentiated
from amaml.methods.parameters import Layout
from amaml.models.conv4.written_out import of_conv4
from amaml.models.losses import NetworkLoss
from amaml.models.mlp.written_out import of_mlp
from amaml.models.private import Redirected, private
from amaml.models.written_out import KEYS

_WRITTEN_OUT = (of_mlp, of_conv4)
"""The functions that choose derivatives; each returns None for networks, losses or rows to which its formulas don't apply."""


def derivatives_of(support: Loss, query: Loss, tasks: Any, layout: Layout) -> Derivatives:
    """The fastest derivatives that are valid for the losses and tasks; all give the same values to rounding.

    Raises ValueError for losses that can't be differentiated or aren't pure functions, and for parameters or rows that don't
    belong to the network of a loss.
    """
    for loss in (support, query):
        if isinstance(loss, NetworkLoss):
            _check(loss, tasks, layout)
    fast = _written_out(support, query, tasks, layout)
    if fast is not None:
        return fast
    own_support, own_query = _private_losses(support, query)
    support, query = _faithful(own_support, support, tasks, layout), _faithful(own_query, query, tasks, layout)
    return differentiated(support, query, tasks, layout.unflatten, layout.theta)


def _check(loss: NetworkLoss, tasks: Any, layout: Layout) -> None:
    # A tied weight may be given by any of its names.
    own = dict(loss.net.named_parameters(remove_duplicate=False)) | dict(loss.net.named_buffers(remove_duplicate=False))
    if layout.flat:
        raise ValueError("params is one flat tensor, but a network's loss takes dict(net.named_parameters())")
    unknown = [name for name in layout.shapes if name not in own]
    if unknown:
        raise ValueError(f"params name {', '.join(unknown)}, which the network doesn't have: it has {', '.join(own)}")
    keys = (f"{loss.rows}_x", f"{loss.rows}_y")
    missing = [key for key in keys if not (isinstance(tasks, Mapping) and key in tasks)]
    if missing:
        raise ValueError(f"tasks lack {', '.join(missing)}: a network's losses read {', '.join(KEYS)}")
    for key in keys:
        for leaf in tree_leaves(tasks[key]):
            if leaf.is_floating_point() and leaf.dtype != layout.dtype:
                raise ValueError(f"tasks[{key!r}] is {leaf.dtype} but params are {layout.dtype}: convert one of them")
    if f"{loss.rows}_mask" in tasks:
        _check_mask(f"{loss.rows}_mask", tasks[f"{loss.rows}_mask"], tasks[f"{loss.rows}_y"])


def _check_mask(key: str, mask: Any, y: Any) -> None:
    if not isinstance(mask, Tensor) or mask.shape != y.shape[:2]:
        raise ValueError(
            f"tasks[{key!r}] must be one tensor [tasks, points] of shape {list(y.shape[:2])}, "
            f"got {list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__}"
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"tasks[{key!r}] holds other values than 0 and 1: give 1 for points that count, 0 for padding")
    empty = torch.nonzero(~mask.bool().any(dim=1)).flatten().tolist()
    if empty:
        raise ValueError(
            f"tasks[{key!r}] leaves no point of task {', '.join(map(str, empty))}: a set needs at least one, so drop the task"
        )


def _private_losses(support: Loss, query: Loss) -> tuple[Loss, Loss]:
    """The losses with private copies of their networks, where they have networks. Losses that share a network share its copy."""
    networks = {id(loss.net): loss.net for loss in (support, query) if isinstance(loss, NetworkLoss)}
    copies = {number: private(net) for number, net in networks.items()}

    def own(loss: Loss) -> Loss:
        return replace(loss, net=copies[id(loss.net)]) if isinstance(loss, NetworkLoss) else loss

    return own(support), own(query)


def _faithful(own: Loss, loss: Loss, tasks: Any, layout: Layout) -> Loss:
    """The private loss if its network reads only its own parameters; else the private loss with reads of the caller's parameters
    redirected. Raises ValueError if it still reads the caller's."""
    if not isinstance(loss, NetworkLoss):
        return loss
    strays: list[str] = []
    for candidate in (own, Redirected(own, loss.net)):
        strays = _strays(candidate, loss, tasks, layout)
        if not strays:
            return candidate
    raise ValueError(
        f"the network computes with {', '.join(strays)} in a way in which params can't take their place: let it read its "
        "parameters from its own modules in forward"
    )


def _strays(candidate: Loss, loss: NetworkLoss, tasks: Any, layout: Layout) -> list[str]:
    """The names of the parameters in params for which the candidate still reads the tensors of the caller's network."""
    own = {
        name: parameter
        for name, parameter in loss.net.named_parameters(remove_duplicate=False)
        if name in layout.shapes and name not in layout.constants and parameter.requires_grad
    }
    task = tree_map(lambda leaf: leaf[0].clone(), tasks)
    with explained(loss.rows), torch.enable_grad():
        value = candidate(layout.unflatten(layout.theta), task)
        if not (own and isinstance(value, Tensor) and value.requires_grad):
            return []
        reached = torch.autograd.grad(value.sum(), list(own.values()), allow_unused=True)
    return [name for name, slope in zip(own, reached, strict=True) if slope is not None]


def _written_out(support: Loss, query: Loss, tasks: Any, layout: Layout) -> Derivatives | None:
    """The derivatives by explicit formulas, if some are valid for both losses, the network and the tasks; else None."""
    if not (
        isinstance(support, NetworkLoss)
        and isinstance(query, NetworkLoss)
        and (support.rows, query.rows) == ("support", "query")
        and support.net is query.net
    ):
        return None
    found = (written_out(support, query, tasks, layout) for written_out in _WRITTEN_OUT)
    return next((derivatives for derivatives in found if derivatives is not None), None)
