"""What a spec names, built: all of a run that stays as it is while the run goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from amaml.families.base import Family
from amaml.flow.derivatives import Loss
from amaml.flow.solvers import Solver
from amaml.registry import Estimator, build_estimator, build_family, build_model, build_solver
from amaml.spec import JobSpec


@dataclass(frozen=True)
class Phase:
    """Some of the meta-iterations (from 0), and what holds for them."""

    iterations: range
    spec: JobSpec
    solver: Solver
    estimator: Estimator | None
    """None for the method that trains nothing."""


@dataclass(frozen=True)
class Setup:
    spec: JobSpec
    device: torch.device
    threads: int
    family: Family
    net: nn.Module
    """The architecture, at the random start."""
    losses: tuple[Loss, Loss]
    """Of the support and of the query set, by parameters and task."""
    phases: tuple[Phase, ...]
    baselines: dict[str, Tensor] = field(default_factory=dict)
    """What the test tasks score without a trained network, name → [B]: filled by the first assessment."""

    def phase(self, iteration: int) -> Phase:
        """The one that does this meta-iteration (from 0); the last one where there is none any more."""
        return next((phase for phase in self.phases if iteration in phase.iterations), self.phases[-1])

    @property
    def random_start(self) -> dict[str, Tensor]:
        """By parameter name, as the network has them: those that are frozen don't ask for a gradient."""
        return dict(self.net.named_parameters())


def build(spec: JobSpec, datasets: Mapping[str, Path], threads: int) -> Setup:
    """Process-wide it sets torch's number of threads, its deterministic algorithms, and that products of float32 aren't rounded
    to fewer bits.

    Raises DataError if the data can't serve the spec, ValueError for a device that isn't there.
    """
    device, dtype, seed = device_of(spec), getattr(torch, spec.runtime.dtype), spec.runtime.seed
    _be_deterministic(threads)
    paths = {str(name): Path(path) for name, path in datasets.items()}
    family = build_family(spec.family, seed=seed, dtype=dtype, device=device, datasets=paths)
    if spec.evaluation.select == "validation":
        family.evaluation_batch("validation", 1)  # a split without tasks is told now, not amid the run
    sizes = {"in_features": family.in_features, "out_features": family.out_features}
    net = build_model(spec.model, seed=seed, picture=family.picture, **sizes).to(device, dtype)
    return Setup(
        spec=spec,
        device=device,
        threads=threads,
        family=family,
        net=net,
        losses=family.objective.losses(net),
        phases=tuple(
            Phase(iterations, own, build_solver(own.solver), build_estimator(own.method))
            for iterations, own in spec.phases
        ),
    )


def device_of(spec: JobSpec) -> torch.device:
    """Where the run computes. Raises ValueError for a device that isn't there."""
    name: str = spec.runtime.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("runtime.device is cuda, but this machine has no CUDA device: set it to auto or cpu")
    return torch.device(name)


def _be_deterministic(threads: int) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    torch.use_deterministic_algorithms(True)
    # Every tensor is written before it is read, so torch needn't fill new ones.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False  # which of several algorithms is the fastest differs from run to run
    # On a GPU both would round the factors of a product in float32 to 10 bits (TF32).
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(threads)
