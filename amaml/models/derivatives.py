"""Which derivatives a pair of losses gets: written out for the built-in networks, traced for everything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from amaml.flow.derivatives import Derivatives, Loss, TracedDerivatives
from amaml.methods.parameters import Layout
from amaml.models.losses import ClassificationLoss, RegressionLoss
from amaml.models.mlp import MLP
from amaml.models.mlp_derivatives import MLPDerivatives

_KEYS = ("support_x", "support_y", "query_x", "query_y")


def derivatives_of(support: Loss, query: Loss, tasks: Any, layout: Layout) -> Derivatives:
    """The fastest derivatives that fit; all give the same values to rounding. Raises ValueError where a network's loss is asked
    of parameters or rows that aren't the network's."""
    for loss in (support, query):
        if isinstance(loss, RegressionLoss | ClassificationLoss):
            _check(loss, tasks, layout)
    if (
        isinstance(support, RegressionLoss)
        and isinstance(query, RegressionLoss)
        and (support.rows, query.rows) == ("support", "query")
        and support.net is query.net
        and type(support.net) is MLP
        and _fits(support.net, tasks, layout)
    ):
        x, y, query_x, query_y = (tasks[key] for key in _KEYS)
        return MLPDerivatives(support.net.widths, support.net.activation, (x, y), (query_x, query_y))
    return TracedDerivatives(support, query, tasks, layout.unflatten)


def _check(loss: RegressionLoss | ClassificationLoss, tasks: Any, layout: Layout) -> None:
    # A tied weight goes by any of its names.
    own = dict(loss.net.named_parameters(remove_duplicate=False)) | dict(loss.net.named_buffers(remove_duplicate=False))
    if layout.flat:
        raise ValueError("params is one flat tensor, but a network's loss takes dict(net.named_parameters())")
    unknown = [name for name in layout.shapes if name not in own]
    if unknown:
        raise ValueError(f"params name {', '.join(unknown)}, which the network doesn't have: it has {', '.join(own)}")
    keys = (f"{loss.rows}_x", f"{loss.rows}_y")
    missing = [key for key in keys if not (isinstance(tasks, Mapping) and key in tasks)]
    if missing:
        raise ValueError(f"tasks lack {', '.join(missing)}: a network's losses read {', '.join(_KEYS)}")
    for key in keys:
        for leaf in tree_leaves(tasks[key]):
            if leaf.is_floating_point() and leaf.dtype != layout.dtype:
                raise ValueError(f"tasks[{key!r}] is {leaf.dtype} but params are {layout.dtype}: convert one of them")


def _fits(net: MLP, tasks: Any, layout: Layout) -> bool:
    """Parameters in the module's own order, tasks as batched rows of the same dtype."""
    return (
        not layout.flat
        and list(layout.shapes.items()) == [(name, parameter.shape) for name, parameter in net.named_parameters()]
        and isinstance(tasks, Mapping)
        and all(
            isinstance(tasks.get(key), Tensor) and tasks[key].ndim == 3 and tasks[key].dtype == layout.dtype
            for key in _KEYS
        )
        and all(tasks[f"{rows}_x"].shape[2] == net.widths[0] for rows in ("support", "query"))
        and all(tasks[f"{rows}_y"].shape[2] == net.widths[-1] for rows in ("support", "query"))
        and all(tasks[key].numel() for key in _KEYS)
        and all(tasks[f"{rows}_x"].shape[:2] == tasks[f"{rows}_y"].shape[:2] for rows in ("support", "query"))
    )
