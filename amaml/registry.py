"""From a spec's part to the thing it names: the only place where `implementation` is imported."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import nn

from amaml.draws import key
from amaml.families.base import Family
from amaml.spec import FamilySpec, ModelSpec


def build_family(
    spec: FamilySpec, *, seed: int, dtype: torch.dtype, device: torch.device, datasets: Mapping[str, Path]
) -> Family:
    """The task family; raises DataError if the data sets can't serve it."""
    build = pkgutil.resolve_name(spec.implementation)
    return cast(Family, build(spec, dtype=dtype, device=device, seed=seed, datasets=datasets))


def build_model(spec: ModelSpec, *, in_features: int, out_features: int, seed: int) -> nn.Module:
    """The network on the CPU in float32, at a random start that is a function of the seed alone."""
    build = pkgutil.resolve_name(spec.implementation)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "model"))
        return cast(nn.Module, build(spec, in_features=in_features, out_features=out_features))
