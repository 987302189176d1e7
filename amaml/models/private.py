"""A network of our own to call with other parameters, the caller's being left alone.

`torch.func.functional_call` puts the parameters it is given into the module for the time of the call: two threads at once
ruin it, and so does a thread that uses it meanwhile. A copy of the modules that shares their tensors costs little.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves

_log = logging.getLogger(__name__)
_turn = threading.RLock()
"""Whose turn it is to call a network that can't be copied."""


def copied(net: nn.Module, *, share_parameters: bool = True) -> nn.Module | None:
    """A copy of the modules, hooks and buffers, with the same parameters unless these are to be copied too. None where the
    network holds something that can't be copied.

    Normalisation that would take the batch's own statistics does so without keeping track of them: which task's would it
    be?
    """
    memo: dict[int, Any] = {}
    if share_parameters:
        memo = {id(parameter): parameter for parameter in net.parameters()}
    for module in net.modules():
        for tensor in tree_leaves([*vars(module).values(), *module._buffers.values()]):
            if isinstance(tensor, Tensor) and not tensor.is_leaf:  # what came out of a computation can't be copied
                memo[id(tensor)] = tensor.detach().clone()
    try:
        own = copy.deepcopy(net, memo)
    except Exception as error:  # noqa: BLE001 - modules may hold anything, and refuse a copy in any way
        _log.info("%s can't be copied, so that threads take turns with it: %s", type(net).__name__, error)
        return None
    for module in own.modules():
        if isinstance(module, _NormBase) and module.training and module.track_running_stats:
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.track_running_stats = False
    return own


class InTurn:
    """A loss of a network that can't be copied: one thread at a time, the network's buffers replaced by copies."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss
        self._buffers = {name: buffer.detach().clone() for name, buffer in loss.net.named_buffers()}

    def __call__(self, params: Mapping[str, Tensor], task: Any) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        with _turn:
            value: Tensor = self.loss({**buffers, **params}, task)
        return value
