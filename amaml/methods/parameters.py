"""Parameters as the solvers see them, one flat vector, and as the user's losses see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Params = Mapping[str, Tensor] | Tensor


class Layout:
    """How a dict of named tensors (or one flat tensor [P]) lies in a vector [P].

    Raises ValueError for no parameters, mixed dtypes or devices, or a dtype other than float32 and float64.
    """

    def __init__(self, params: Params) -> None:
        if not isinstance(params, Tensor | Mapping):
            raise TypeError(f"params must be a dict of tensors or one flat tensor, got {type(params).__name__}")
        named = {"": params} if isinstance(params, Tensor) else dict(params)
        if not named or sum(tensor.numel() for tensor in named.values()) == 0:
            raise ValueError("params is empty: give at least one parameter")
        kinds = {(tensor.dtype, tensor.device) for tensor in named.values()}
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
        self.sizes = [tensor.numel() for tensor in named.values()]

    def flatten(self, params: Params, what: str = "params") -> Tensor:
        """[P], a copy. Raises ValueError where names or shapes differ from the layout's."""
        if not isinstance(params, Tensor | Mapping):
            raise TypeError(
                f"{what} must be like params, a dict of tensors or one flat tensor, got {type(params).__name__}"
            )
        named = {"": params} if isinstance(params, Tensor) else params
        shapes = {name: tensor.shape for name, tensor in named.items()}
        if shapes != self.shapes:
            raise ValueError(f"{what} has names and shapes {shapes}, but params has {self.shapes}: make them alike")
        return torch.cat([named[name].detach().to(self.dtype).reshape(-1) for name in self.shapes]).to(self.device)

    def unflatten(self, vector: Tensor) -> Any:
        """[…, P] as what `params` was, every tensor with the leading axes of `vector`; views, no copies."""
        if self.flat:
            return vector
        lead = vector.shape[:-1]
        parts = torch.split(vector, self.sizes, dim=-1)
        return {
            name: part.reshape((*lead, *shape)) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }
