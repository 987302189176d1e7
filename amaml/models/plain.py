"""Test of whether a module behaves exactly as its type does."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_modules


def plain(module: nn.Module) -> bool:
    """Whether the module has no hooks, no buffers, and no forward in its own attributes."""
    hooks = (
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
        torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks,
        torch_modules._global_backward_hooks, torch_modules._global_backward_pre_hooks,
    )  # fmt: skip
    return not any(hooks) and not module._buffers and not {"forward", "__call__", "_call_impl"} & vars(module).keys()
