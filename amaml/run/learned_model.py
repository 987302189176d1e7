"""A network with the parameters that a run has learned, and all that is needed to use it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import nn

from amaml.families.scaling import Scaling
from amaml.objectives import Objective
from amaml.registry import build_model, objective_named
from amaml.run.initialization import InitializationError, put, read, theta_among
from amaml.run.learned_flow import LearnedFlow
from amaml.spec import JobSpec


@dataclass(frozen=True)
class LearnedModel:
    """The network maps standardised inputs [n, d] to standardised targets [n, o], or to a score for each class."""

    module: nn.Module
    spec: JobSpec
    objective: Objective
    """The losses that trained the network, and the metric."""
    scaling: Scaling
    """The conversion between raw and standardised units."""
    inputs: list[str]
    """The name of each input, as in `Family.inputs`."""
    outputs: list[str]
    """The name of each output: a quantity, or the class whose score it is."""
    learned: LearnedFlow
    """The quantities of the flow that were trained in addition to θ."""
    metadata: Mapping[str, str]
    """The metadata of the file."""

    @property
    def in_features(self) -> int:
        return int(self.metadata["in_features"])

    @property
    def out_features(self) -> int:
        return int(self.metadata["out_features"])

    @property
    def iteration(self) -> int:
        """The number of meta-iterations after which θ was taken."""
        return int(self.metadata["iteration"])

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LearnedModel:
        """Reads an initialization or a checkpoint. Raises InitializationError for a file that is neither or is damaged, OSError
        if it can't be read."""
        tensors, metadata = read(Path(path))
        try:
            spec = JobSpec.model_validate_json(metadata["spec"])
            sizes = {name: int(metadata[name]) for name in ("in_features", "out_features")}
            scaling = Scaling(**{name: tuple(values) for name, values in json.loads(metadata["scaling"]).items()})
            objective = objective_named(spec.family, metadata["objective"])
            inputs, outputs = (list(json.loads(metadata[name])) for name in ("inputs", "outputs"))
            picture = json.loads(metadata["picture"])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise InitializationError(
                f"{path}: its metadata can't be read ({_sentence(error)}): it was made by another version of amaml, or with a "
                "family or model from a package that isn't installed here"
            ) from error
        module = build_model(spec.model, seed=spec.runtime.seed, picture=picture and tuple(picture), **sizes)
        put(module, theta_among(tensors), path)
        learned = cls(module, spec, objective, scaling, inputs, outputs, LearnedFlow.among(tensors), metadata)
        object.__setattr__(module, "learned_model", learned)  # torch's own setter types it as a tensor
        return learned

    @staticmethod
    def of(module: nn.Module) -> LearnedModel | None:
        """The LearnedModel of a network from `load` or of a copy of one; None for any other network."""
        found: LearnedModel | None = vars(module).get("learned_model")
        return found


def load(path: str | os.PathLike[str]) -> nn.Module:
    """The network with the parameters θ, rebuilt from the file alone (an initialization or a checkpoint). Its attribute
    `learned_model` is its LearnedModel. Raises as `LearnedModel.read`."""
    return LearnedModel.read(path).module


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"spec {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{type(error).__name__}: {error}"
