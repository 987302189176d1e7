"""A network at the θ that a run has learned, with all that using it takes."""

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
    """Its network maps standardised inputs [n, d] to standardised targets [n, o], or to a score a class."""

    module: nn.Module
    spec: JobSpec
    objective: Objective
    """The losses that trained the network, and the metric."""
    scaling: Scaling
    """Raw units ↔ standardised ones."""
    inputs: list[str]
    """What each input is, as `Family.inputs`."""
    outputs: list[str]
    """What each output is: a quantity, or the class whose score it is."""
    learned: LearnedFlow
    """What was trained of the flow."""
    metadata: Mapping[str, str]
    """All that the file says of itself."""

    @property
    def in_features(self) -> int:
        return int(self.metadata["in_features"])

    @property
    def out_features(self) -> int:
        return int(self.metadata["out_features"])

    @property
    def iteration(self) -> int:
        """The meta-iteration after which θ was so."""
        return int(self.metadata["iteration"])

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LearnedModel:
        """Raises InitializationError for a foreign or damaged file, OSError if it can't be read."""
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
                f"{path}: its metadata can't be read ({_sentence(error)}): it was made by another version of amaml, or a "
                "family or model of an entry point that isn't installed here"
            ) from error
        module = build_model(spec.model, seed=spec.runtime.seed, picture=picture and tuple(picture), **sizes)
        put(module, theta_among(tensors), path)
        learned = cls(module, spec, objective, scaling, inputs, outputs, LearnedFlow.among(tensors), metadata)
        object.__setattr__(module, "learned_model", learned)  # torch's own setter types it as a tensor
        return learned

    @staticmethod
    def of(module: nn.Module) -> LearnedModel | None:
        """What a network that `load` gave, or a copy of one, belongs to; None for a network of the caller's own."""
        found: LearnedModel | None = vars(module).get("learned_model")
        return found


def load(path: str | os.PathLike[str]) -> nn.Module:
    """The network at θ, rebuilt from the file alone (an initialization or a checkpoint); its attribute `learned_model` is the
    LearnedModel that it belongs to. Raises as `LearnedModel.read`."""
    return LearnedModel.read(path).module


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"spec {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{type(error).__name__}: {error}"
