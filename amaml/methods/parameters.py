"""Conversion of the parameters between one flat vector, for the solvers, and named tensors, for the user's losses."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

Params = Mapping[str, Tensor] | Tensor


class Layout:
    """The order of named tensors (or of one flat tensor [P]) in a vector [P], and which of the tensors are constants.

    Constants are left out of the vector: they don't flow and have no gradient, and the losses receive them unchanged. A parameter
    of a module (`nn.Parameter`) with `requires_grad=False` is a constant. So is any other tensor without `requires_grad` if
    another tensor has it; where none has it, as in a dict of detached tensors, all are trained.

    Raises TypeError for params that aren't tensors, and ValueError for params of which none is trained, of mixed dtypes or
    devices, or of a dtype other than float32 and float64.
    """

    def __init__(self, params: Params) -> None:
        if not isinstance(params, Tensor | Mapping):
            raise TypeError(f"params must be a dict of tensors or one flat tensor, got {type(params).__name__}")
        named = {"": params} if isinstance(params, Tensor) else dict(params)
        for name, tensor in named.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"params[{name!r}] is a {type(tensor).__name__}: give tensors alone")
        if not named or sum(tensor.numel() for tensor in named.values()) == 0:
            raise ValueError("params is empty: give at least one parameter")
        trained = {name: tensor for name, tensor in named.items() if name not in _frozen(named)}
        if not trained:
            raise ValueError(
                "every parameter has requires_grad=False, so that none would be trained: call requires_grad_(True) on those that "
                "shall flow, or pass detached tensors to train all"
            )
        kinds = {(tensor.dtype, tensor.device) for tensor in trained.values()}
        if len(kinds) > 1:
            raise ValueError(
                f"params mix dtypes or devices ({', '.join(sorted(map(str, kinds)))}): convert them to one"
            )
        self.dtype, self.device = kinds.pop()
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"params are {self.dtype}: convert them to float32 or float64")
        if isinstance(params, Tensor) and params.ndim != 1:
            raise ValueError(
                f"a flat params tensor has one axis, got shape {tuple(params.shape)}: flatten it or give a dict"
            )
        self.flat = isinstance(params, Tensor)
        self.shapes = {name: tensor.shape for name, tensor in named.items()}
        """The shapes of all tensors, constants included, in the order of `params`."""
        self.constants = {name: named[name].detach().clone() for name in named if name not in trained}
        self.sizes = [tensor.numel() for tensor in trained.values()]
        self.theta = self.flatten(params)
        """The initial state of the flow [P], a copy."""

    def in_float64(self) -> Layout:
        """The same names, shapes and values in float64."""
        layout = copy(self)
        layout.dtype, layout.theta = torch.float64, self.theta.double()
        layout.constants = {
            name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in self.constants.items()
        }
        return layout

    def flatten(self, params: Params, what: str = "params") -> Tensor:
        """The trained tensors as one vector [P], a copy. Raises ValueError for names or shapes other than the layout's, TypeError
        for what is neither a dict nor a tensor."""
        if not isinstance(params, Tensor | Mapping):
            raise TypeError(
                f"{what} must be like params, a dict of tensors or one flat tensor, got {type(params).__name__}"
            )
        named = {"": params} if isinstance(params, Tensor) else params
        shapes = {name: tensor.shape for name, tensor in named.items()}
        if shapes != self.shapes:
            raise ValueError(f"{what} has names and shapes {shapes}, but params has {self.shapes}: make them alike")
        parts = [named[name].detach() for name in self.shapes if name not in self.constants]
        return torch.cat([part.to(self.dtype).reshape(-1) for part in parts]).to(self.device)

    def unflatten(self, vector: Tensor) -> Any:
        """A vector […, P] in the form of `params`, constants included: views with the leading axes of `vector`."""
        return self._like_params(vector, self.constants)

    def unflatten_gradient(self, vector: Tensor) -> Any:
        """A gradient [P], or several [B, P], in the form of `params`, with zeros for the constants."""
        zeros = {name: vector.new_zeros(tensor.shape) for name, tensor in self.constants.items()}
        return self._like_params(vector, zeros)

    def _like_params(self, vector: Tensor, constants: Mapping[str, Tensor]) -> Any:
        if self.flat:
            return vector
        lead = vector.shape[:-1]
        parts = iter(torch.split(vector, self.sizes, dim=-1))
        return {
            name: constants[name].expand((*lead, *shape)) if name in constants else next(parts).reshape((*lead, *shape))
            for name, shape in self.shapes.items()
        }


def _frozen(named: Mapping[str, Tensor]) -> set[str]:
    """The names of the constants, by the rule in `Layout`."""
    some_learn = any(tensor.requires_grad for tensor in named.values())
    return {
        name
        for name, tensor in named.items()
        if not tensor.requires_grad and (some_learn or isinstance(tensor, nn.Parameter))
    }
