"""The parts of a run that don't change while it goes on, built from its spec."""

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
    """A range of meta-iterations (from 0) with the same method, solver and optimizer."""

    iterations: range
    spec: JobSpec
    solver: Solver
    estimator: Estimator | None
    """None for the method `random`, which trains nothing."""


@dataclass(frozen=True)
class Setup:
    spec: JobSpec
    device: torch.device
    threads: int
    family: Family
    net: nn.Module
    """The network with the random start as its parameters."""
    losses: tuple[Loss, Loss]
    """The support loss and the query loss, functions of parameters and task."""
    phases: tuple[Phase, ...]
    baselines: dict[str, Tensor] = field(default_factory=dict)
    """The scores [B] of the test tasks by each baseline; the first assessment fills them in."""

    def phase(self, iteration: int) -> Phase:
        """The phase of this meta-iteration (from 0); after the last meta-iteration, the last phase."""
        return next((phase for phase in self.phases if iteration in phase.iterations), self.phases[-1])

    @property
    def random_start(self) -> dict[str, Tensor]:
        """The network's parameters by name; frozen ones have requires_grad=False."""
        return dict(self.net.named_parameters())


def build(spec: JobSpec, datasets: Mapping[str, Path], threads: int) -> Setup:
    """Builds a run's parts, and sets for the whole process: torch's number of threads, deterministic algorithms, and float32
    products of full precision.

    Raises DataError if the data can't serve the spec, ValueError for a device that doesn't exist.
    """
    device, dtype, seed = device_of(spec), getattr(torch, spec.runtime.dtype), spec.runtime.seed
    _be_deterministic(threads)
    paths = {str(name): Path(path) for name, path in datasets.items()}
    family = build_family(spec.family, seed=seed, dtype=dtype, device=device, datasets=paths)
    if spec.evaluation.select == "validation":
        family.evaluation_batch(
            "validation", 1
        )  # raises at once, and not during the run, if there are no validation tasks
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
    """The device of the run. Raises ValueError for a device that doesn't exist."""
    name: str = spec.runtime.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("runtime.device is cuda, but this machine has no CUDA device: set it to auto or cpu")
    return torch.device(name)


def _be_deterministic(threads: int) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS needs to be deterministic
    torch.use_deterministic_algorithms(True)
    # Every tensor is written before it is read, so new ones need not be filled.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False  # it would choose the fastest algorithm, which differs from run to run
    # Otherwise GPUs would round the factors of float32 products to 10 bits (TF32).
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(threads)
