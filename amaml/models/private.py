"""Private copies of networks, which can be called with other parameters without touching the caller's network.

`torch.func.functional_call` puts the given parameters into the module for the duration of the call, so another thread that calls
or uses the module meanwhile gets wrong results. A copy of the modules that shares their tensors costs little.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map


def copied(net: nn.Module, *, share_parameters: bool = False) -> nn.Module:
    """A copy of the network: its modules, hooks, buffers and, unless they are shared, parameters.

    Attributes that can't be copied, such as a lock or an open file, are shared. Raises ValueError if it still can't be copied.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in net.parameters()} if share_parameters else {}
    for module in net.modules():
        for tensor in tree_leaves([*vars(module).values(), *module._buffers.values()]):
            if isinstance(tensor, Tensor) and not tensor.is_leaf:  # deepcopy refuses the result of a computation
                memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(net, dict(memo))
    except (TypeError, RuntimeError, copy.Error):
        memo |= {
            id(value): value for module in net.modules() for value in vars(module).values() if not _copyable(value)
        }
    try:
        return copy.deepcopy(net, memo)
    except (TypeError, RuntimeError, copy.Error) as error:
        raise ValueError(
            f"{type(net).__name__} can't be copied ({error}), and it is copied so that its own parameters stay as they are: make "
            "what can't be copied in forward, or keep it outside of the network"
        ) from error


def _copyable(value: Any) -> bool:
    """Whether an attribute can be copied; those with tensors or modules always count as such."""
    if any(isinstance(leaf, Tensor | nn.Module) for leaf in tree_leaves(value)):
        return True
    try:
        copy.deepcopy(value)
    except (TypeError, RuntimeError, copy.Error):
        return False
    return True


def private(net: nn.Module) -> nn.Module:
    """A copy of the network that shares its parameters. Its normalisation layers in training mode use the statistics of the batch
    and don't track running ones, since those would mix tasks."""
    own = copied(net, share_parameters=True)
    for module in own.modules():
        if isinstance(module, _NormBase) and module.training and module.track_running_stats:
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.track_running_stats = False
    return own


class Redirected:
    """A private loss for a network that reads the caller's parameters, as a hook does that refers to the original network. Where
    such a parameter is an argument of a PyTorch operation, it is replaced by the tensor of the same name in `params`.

    That makes every operation a little slower, so only such networks use it.
    """

    def __init__(self, loss: Callable[[Any, Any], Tensor], net: nn.Module) -> None:
        self.loss = loss
        self._names = {id(parameter): name for name, parameter in net.named_parameters(remove_duplicate=False)}

    def __call__(self, params: Mapping[str, Tensor], task: Any) -> Tensor:
        given = {number: params[name] for number, name in self._names.items() if name in params}
        with _Replacing(given):
            return self.loss(params, task)


class _Replacing(TorchFunctionMode):
    def __init__(self, given: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._given = given

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda one: self._given.get(id(one), one), (args, kwargs or {}))
        return func(*args, **kwargs)
