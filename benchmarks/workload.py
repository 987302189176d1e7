"""The work that every benchmark does: CosMixture on a line, MLP 1-32-32-1, 100 shots, 16 tasks.

`python -m benchmarks.workload train` trains the θ of `trained.safetensors`: 1,500 meta-iterations at T=2, 16 tasks each,
Adam 1e-3. Its Hessians are about four times as stiff as a random θ's, which is what makes it the harder one to judge on.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.integrate import solve_ivp
from torch import Tensor

import amaml
from amaml.families.formula.family import build
from amaml.models.losses import RegressionLoss
from amaml.spec import CosMixtureSpec

HERE = Path(__file__).parent
TRAINED = HERE / "trained.safetensors"
REFERENCES = HERE / ".references"
SHOTS = 100
TASKS = 16
STEP = 0.01
Start = Literal["random", "trained"]
NET = amaml.MLP(1, [32, 32], 1)


@dataclass(frozen=True)
class Work:
    """One meta-gradient to compute: θ, tasks, trajectory length."""

    start: Start
    length: float
    seed: int
    params: dict[str, Tensor]
    tasks: dict[str, Tensor]

    @cached_property
    def losses(self) -> tuple[RegressionLoss, RegressionLoss]:
        return amaml.regression_losses(NET)

    def solve(self, solver: object = None, adjoint: object = None) -> amaml.MetaGradient:
        """Ours."""
        return amaml.meta_gradient(
            self.params, *self.losses, self.tasks, length=self.length, solver=solver, adjoint=adjoint
        )

    def to(self, where: torch.dtype | torch.device) -> Work:
        """The same numbers in another precision or on another device."""
        return replace(
            self,
            params={name: value.to(where) for name, value in self.params.items()},
            tasks={name: value.to(where) for name, value in self.tasks.items()},
        )

    def first(self, tasks: int) -> Work:
        """Its first tasks alone."""
        return replace(self, tasks={name: value[:tasks] for name, value in self.tasks.items()})

    @property
    def batch(self) -> int:
        return len(self.tasks["support_x"])

    def reference(self) -> Tensor:
        """Every task's gradient of the flow [B, P], float64 at tolerance 1e-12, λ's too; kept on disk, since it takes a while.
        The numbers solved are the float32 ones of the work, so that only the solve's error is judged."""
        name = f"interpolated-{self.start}-T{self.length:g}-seed{self.seed}-{self._digest()}.safetensors"
        path = REFERENCES / name
        if not path.exists():
            exact = self.to(torch.float64).solve(amaml.Dopri5(rtol=1e-12, atol=1e-12), amaml.Interpolated())
            REFERENCES.mkdir(exist_ok=True)
            save_file({"per_task": flat(exact.per_task, axes=1)}, path)
        return load_file(path)["per_task"]

    def _digest(self) -> str:
        """Of the numbers solved: θ and tasks."""
        digest = hashlib.sha256()
        for value in (*self.params.values(), *self.tasks.values()):
            digest.update(value.double().numpy().tobytes())
        return digest.hexdigest()[:12]


def flat(params: dict[str, Tensor], axes: int = 0) -> Tensor:
    """Named tensors with this many leading axes as one tensor […, P], in the module's order."""
    return torch.cat([params[name].flatten(axes) for name, _ in NET.named_parameters()], dim=axes)


def error(gradient: Tensor, reference: Tensor) -> float:
    """Relative error, ‖g − r‖/‖r‖."""
    return float((gradient.double() - reference).norm() / reference.norm())


def random_start(seed: int) -> dict[str, Tensor]:
    """PyTorch's default initialization."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: value.detach().clone() for name, value in amaml.MLP(1, NET.widths[1:-1], 1).named_parameters()}


def trained_start() -> dict[str, Tensor]:
    """The θ in the folder of this file, in the module's order (the file's is alphabetical)."""
    kept = load_file(TRAINED)
    return {name: kept[name] for name, _ in NET.named_parameters()}


@cache
def _family(seed: int) -> Callable[[int, int], dict[str, Tensor]]:
    spec = CosMixtureSpec(dim=1, shots=SHOTS, queries=SHOTS)
    family = build(spec, dtype=torch.float64, device=torch.device("cpu"), seed=seed, datasets={})
    return family.training_batch


def work(start: Start, length: float, *, tasks: int = TASKS, seed: int = 0, dtype: torch.dtype = torch.float32) -> Work:
    """θ and tasks of a seed. Tasks of seed 0 come from the family that the trained θ saw, but from a meta-batch after
    its last. The numbers are those of float32 in every dtype."""
    params = random_start(seed) if start == "random" else trained_start()
    batch = _family(seed)(ITERATIONS, tasks)
    return Work(start, length, seed, params, {name: value.float() for name, value in batch.items()}).to(dtype)


Loss = Callable[[Tensor, str], Tensor]
"""(parameters [P], "support" or "query") → scalar."""


def network_loss(net: torch.nn.Module, params: dict[str, Tensor], task: dict[str, Tensor]) -> Loss:
    """½·mean((net(x)−y)²) of one task in float64, of the network as PyTorch calls it; `params` give names and shapes."""
    shapes = {name: value.shape for name, value in params.items()}

    def loss(u: Tensor, rows: str) -> Tensor:
        parts = torch.split(u, [shape.numel() for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        predicted = torch.func.functional_call(net, named, (task[f"{rows}_x"].double(),))
        return 0.5 * (predicted - task[f"{rows}_y"].double()).square().mean()

    return loss


def independent_gradient(loss: Loss, theta: Tensor, length: float) -> Tensor:
    """One task's gradient of the flow [P] from θ [P] with nothing of ours in it: torch.func derivatives of the loss, SciPy's
    DOP853 forward with dense output and again for the adjoint. Float64 at 1e-12."""
    support_gradient = torch.func.grad(lambda u: loss(u, "support"))

    def field(_t: float, u: np.ndarray) -> np.ndarray:
        return -support_gradient(torch.from_numpy(u)).numpy()

    def adjoint_field(s: float, adjoint: np.ndarray) -> np.ndarray:
        u = torch.from_numpy(np.ascontiguousarray(forward.sol(length - s)))
        return -torch.func.vjp(support_gradient, u)[1](torch.from_numpy(adjoint))[0].numpy()

    def solved(f: Callable[[float, np.ndarray], np.ndarray], y0: np.ndarray, dense: bool) -> Any:
        return solve_ivp(f, (0.0, length), y0, "DOP853", rtol=1e-12, atol=1e-13, dense_output=dense)

    forward = solved(field, theta.numpy(), dense=True)
    end = torch.from_numpy(np.ascontiguousarray(forward.y[:, -1]))
    query = torch.func.grad(lambda u: loss(u, "query"))(end)
    return torch.from_numpy(np.ascontiguousarray(solved(adjoint_field, query.numpy(), dense=False).y[:, -1]))


ITERATIONS = 1500


def train() -> None:
    """Trains and keeps θ. One thread: the same sums in the same order whatever the number of cores."""
    torch.set_num_threads(1)
    params = random_start(0)
    optimizer = torch.optim.Adam(params.values(), lr=1e-3)
    losses, batches = amaml.regression_losses(NET), _family(0)
    for iteration in range(ITERATIONS):
        tasks = {name: value.float() for name, value in batches(iteration, TASKS).items()}
        found = amaml.meta_gradient(params, *losses, tasks, length=2.0, solver=amaml.Dopri5(rtol=1e-5, atol=1e-5))
        for name, value in params.items():
            value.grad = found.grad[name]
        optimizer.step()
        if iteration % 100 == 99:
            print(
                f"{iteration + 1:5d}  query loss {float(found.loss.mean()):.4f}  λmax {float(found.stats.lambda_max.max()):.1f}"
            )
    save_file(params, TRAINED, metadata={"made_by": "python -m benchmarks.workload train", "torch": torch.__version__})


if __name__ == "__main__":
    if sys.argv[1:] != ["train"]:
        sys.exit("usage: python -m benchmarks.workload train")
    train()
