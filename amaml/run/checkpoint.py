"""The file that a killed run goes on from, to the same bits: an initialization with more tensors and a state.

Tensors: θ by parameter name, `learned/NAME` (what is trained beside it, see `LearnedFlow`), `best/NAME` (the best of both
on validation tasks, if there is one), `average/NAME` (the moving average of both, if one is taken), `clip/norms` (those that a
clip's median is of) and `optimizer/INDEX/KEY`. Draws are functions of seed and iteration, so no generator's state is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from amaml.kernel.library import backend
from amaml.run.initialization import read, versions, write
from amaml.run.learned_flow import LearnedFlow
from amaml.spec import JobSpec

FORMAT = "amaml-checkpoint-1"

OptimizerState = dict[int, dict[str, Tensor]]


class CheckpointError(ValueError):
    """The checkpoint belongs to another run, or this machine couldn't go on to the same bits; the message says which."""


@dataclass
class Progress:
    """How far a run has got, beside its tensors."""

    iteration: int = 0
    """Meta-iterations done."""
    evaluated: int = -1
    """The meta-iteration after which the last finished evaluation was; −1 before the first."""
    seconds: float = 0.0
    """Spent in all attempts so far."""
    threads: int = 1
    left_out: int = 0
    """Tasks whose solves became infinite or NaN, and which the meta-gradients went without."""
    over_limit: int = 0
    """Certificates over runtime.certify_limit in a row, up to now."""
    undecided: str | None = None
    """Why the last certificate was infinite, if it was."""
    random: list[float] | None = None
    """What each test task scores fine-tuned from the random start, once it is known."""
    best: tuple[int, float] | None = None
    """Meta-iteration and validation score of the best θ so far."""
    worse: int = 0
    """Evaluations in a row whose validation score was no better."""
    ended_by: Literal["patience", "target"] | None = None
    """What ended the run before its last meta-iteration."""
    micro_batch: int | None = None
    """Tasks that a meta-gradient takes at once, since more didn't fit into memory; the bits depend on it."""
    evaluation_micro_batch: int | None = None
    """The same of an evaluation."""


@dataclass(frozen=True)
class Checkpoint:
    theta: dict[str, Tensor]
    learned: dict[str, Tensor]
    best: dict[str, Tensor]
    average: dict[str, Tensor]
    norms: list[float]
    optimizer: OptimizerState
    progress: Progress


def save(path: Path, checkpoint: Checkpoint, metadata: Mapping[str, str], device: torch.device) -> None:
    """Writes it, whole or not at all. `metadata` is what the run's initialization would hold."""
    tensors = checkpoint.theta | checkpoint.learned
    tensors |= {f"best/{name}": tensor for name, tensor in checkpoint.best.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in checkpoint.average.items()}
    if checkpoint.norms:
        tensors["clip/norms"] = torch.tensor(checkpoint.norms, dtype=torch.float64)
    for index, state in checkpoint.optimizer.items():
        tensors |= {f"optimizer/{index}/{key}": tensor for key, tensor in state.items()}
    beside = {"progress": json.dumps(asdict(checkpoint.progress)), "machine": json.dumps(_machine(device))}
    write(path, tensors, {**metadata, **beside}, form=FORMAT)


def restore(path: Path, spec: JobSpec, device: torch.device) -> Checkpoint:
    """Reads it back for this spec on this machine. Raises CheckpointError, InitializationError for a damaged file."""
    saved, metadata = load(path)
    if metadata["spec_sha256"] != spec.sha256() and not _is_beginning(metadata["spec"], spec):
        raise CheckpointError(
            f"{path} is of a run with another spec (sha256 {metadata['spec_sha256'][:12]}, this one's is "
            f"{spec.sha256()[:12]}): resume with the spec it was started with, or start a new run by meta.init_from"
        )
    _check_alike("libraries", json.loads(metadata["versions"]), versions())
    _check_alike("machine", json.loads(metadata["machine"]), _machine(device))
    return saved


def load(path: Path) -> tuple[Checkpoint, dict[str, str]]:
    """What it holds, and its metadata, whoever wrote it. Raises CheckpointError for an initialization, InitializationError for a
    damaged file."""
    tensors, metadata = read(path)
    if metadata["format"] != FORMAT:
        raise CheckpointError(
            f"{path} is an initialization, not a checkpoint: start a new run from it by meta.init_from"
        )
    progress: dict[str, Any] = json.loads(metadata["progress"])
    progress["best"] = tuple(progress["best"]) if progress["best"] is not None else None
    optimizer: OptimizerState = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            optimizer.setdefault(int(index), {})[key] = tensor
    saved = Checkpoint(
        theta={name: tensor for name, tensor in tensors.items() if "/" not in name},
        learned=LearnedFlow.among(tensors).logarithms,
        best=_below("best/", tensors),
        average=_below("average/", tensors),
        norms=tensors["clip/norms"].tolist() if "clip/norms" in tensors else [],
        optimizer=optimizer,
        progress=Progress(**progress),
    )
    return saved, metadata


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _is_beginning(saved: str, spec: JobSpec) -> bool:
    """Whether the run of the saved spec is the beginning of the other's."""
    try:
        return JobSpec.model_validate_json(saved).extended(spec.meta.iterations) == spec
    except ValueError:  # it isn't, or the spec is one of another release
        return False


def _machine(device: torch.device) -> dict[str, str]:
    """What the bits depend on beside library versions and the number of threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {"device": device.type, "kind": name, "solver": backend(device)}


def _check_alike(what: str, then: dict[str, str], now: dict[str, str]) -> None:
    changed = [
        f"{name} {then.get(name)} → {now.get(name)}" for name in {**then, **now} if then.get(name) != now.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"the checkpoint was written with other {what} ({', '.join(changed)}), with which the run would end in other "
            "bits: resume where they are the same, or start a new run from it by meta.init_from"
        )
