"""A checkpoint: the file from which an interrupted run continues to the same bits. It is an initialization with more tensors.

Tensors: θ by parameter name, `learned/NAME` (what is trained in addition to θ, see `LearnedFlow`), `best/NAME` (the best of both
on validation tasks, if they are evaluated), `average/NAME` (the moving average of both, if it is taken), `clip/norms` (the
gradient norms of which a clip takes the median) and `optimizer/INDEX/KEY`. Random draws are functions of seed and iteration, so
no generator's state is stored.
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
    """The checkpoint belongs to another run, or this machine can't continue it to the same bits; the message says which."""


@dataclass
class RunProgress:
    """The state of a run except its tensors."""

    iteration: int = 0
    """Meta-iterations done."""
    evaluated: int = -1
    """The meta-iteration after which the last finished evaluation was; −1 before the first."""
    seconds: float = 0.0
    """Seconds spent in all attempts so far."""
    threads: int = 1
    left_out: int = 0
    """Tasks that were left out of meta-gradients because their solves became infinite or NaN."""
    over_limit: int = 0
    """The number of latest certificates in a row above runtime.certify_limit."""
    undecided: str | None = None
    """The reason why the last certificate was infinite; None if it wasn't."""
    random: list[float] | None = None
    """The score of each test task fine-tuned from the random start; None before the first evaluation."""
    best: tuple[int, float] | None = None
    """Meta-iteration and validation score of the best θ so far."""
    worse: int = 0
    """Evaluations in a row whose validation score was no better."""
    ended_by: Literal["patience", "target"] | None = None
    """The rule that ended the run before its last meta-iteration."""
    micro_batch: int | None = None
    """The most tasks at once in a meta-gradient, where more didn't fit into memory; the bits depend on it."""
    evaluation_micro_batch: int | None = None
    """The same for an evaluation."""


@dataclass(frozen=True)
class Checkpoint:
    theta: dict[str, Tensor]
    learned: dict[str, Tensor]
    best: dict[str, Tensor]
    average: dict[str, Tensor]
    norms: list[float]
    optimizer: OptimizerState
    progress: RunProgress


def save(path: Path, checkpoint: Checkpoint, metadata: Mapping[str, str], device: torch.device) -> None:
    """Writes the checkpoint, whole or not at all. `metadata` is that of the run's initialization."""
    tensors = checkpoint.theta | checkpoint.learned
    tensors |= {f"best/{name}": tensor for name, tensor in checkpoint.best.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in checkpoint.average.items()}
    if checkpoint.norms:
        tensors["clip/norms"] = torch.tensor(checkpoint.norms, dtype=torch.float64)
    for index, state in checkpoint.optimizer.items():
        tensors |= {f"optimizer/{index}/{key}": tensor for key, tensor in state.items()}
    own = {"progress": json.dumps(asdict(checkpoint.progress)), "machine": json.dumps(_machine(device))}
    write(path, tensors, {**metadata, **own}, form=FORMAT)


def restore(path: Path, spec: JobSpec, device: torch.device) -> Checkpoint:
    """Reads the checkpoint to continue the run of this spec on this machine. Raises CheckpointError where that isn't possible,
    InitializationError for a damaged file."""
    saved, metadata = load(path)
    if metadata["spec_sha256"] != spec.sha256() and not _is_beginning(metadata["spec"], spec):
        raise CheckpointError(
            f"{path} is of a run with another spec (sha256 {metadata['spec_sha256'][:12]}, this one's is "
            f"{spec.sha256()[:12]}): resume with the spec of that run, or start a new run by meta.init_from"
        )
    _check_alike("libraries", json.loads(metadata["versions"]), versions())
    _check_alike("machine", json.loads(metadata["machine"]), _machine(device))
    return saved


def load(path: Path) -> tuple[Checkpoint, dict[str, str]]:
    """The checkpoint of any run, and its metadata. Raises CheckpointError for an initialization, InitializationError for a
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
        progress=RunProgress(**progress),
    )
    return saved, metadata


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _is_beginning(saved: str, spec: JobSpec) -> bool:
    """Whether the run of the saved spec is the beginning of the run of `spec`, which only has more meta-iterations."""
    try:
        return JobSpec.model_validate_json(saved).extended(spec.meta.iterations) == spec
    except ValueError:  # it can't be extended, or is of another release
        return False


def _machine(device: torch.device) -> dict[str, str]:
    """What the bits depend on, except library versions and the number of threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {"device": device.type, "kind": name, "solver": backend(device)}


def _check_alike(what: str, then: dict[str, str], now: dict[str, str]) -> None:
    changed = [
        f"{name} {then.get(name)} → {now.get(name)}" for name in {**then, **now} if then.get(name) != now.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"the checkpoint was written with other {what} ({', '.join(changed)}), so the run would end in other bits here: "
            "resume where they are the same, or start a new run from it by meta.init_from"
        )
