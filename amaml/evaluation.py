"""The paper's evaluation: how well unseen tasks are learnt from an initialization, all of them as one batch.

Each task is adapted on its support set in two ways: by the inner flow to T, and by fine-tuning (Adam, full batch,
weight decay 1e-6, as `torch.optim.Adam` takes it: L2). Its error is then measured on its test points.

nRMSE of a task is the root of the mean, over its test points and outputs, of (prediction − target)², in units in
which the training tasks' targets have mean 0 and standard deviation 1. So 1 is about what the constant 0 scores. Over
tasks the mean is reported, and its standard error s/√B.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from amaml.adjoint.graph import GraphSolve
from amaml.families.base import Tasks
from amaml.flow.derivatives import Derivatives
from amaml.flow.field import Evaluations, GradientFlow
from amaml.flow.snapshots import Snapshots
from amaml.flow.solve import solve
from amaml.flow.solvers import Solver, TorchDiffEq
from amaml.methods.parameters import Layout
from amaml.models.derivatives import derivatives_of
from amaml.models.losses import regression_losses

WEIGHT_DECAY = 1e-6
RECORD_EVERY = 10
BLOCK = 2**23
"""Parameters, over all its tasks, that one block of tasks may have: bounds the memory, changes no result's meaning."""

Params = Mapping[str, Tensor]


@dataclass(frozen=True)
class Flow:
    """How the inner flow is solved when a task is adapted."""

    length: float
    solver: Solver
    proximal: float = 0.0
    rates: Params | None = None
    """α by parameter name; None: 1."""


@dataclass(frozen=True)
class Curve:
    """The fine-tuning curve: nRMSE [E, B] after each of `epochs`, a column a task; epoch 0 is the start itself."""

    epochs: list[int]
    nrmse: Tensor

    @property
    def last(self) -> Tensor:
        """[B] after the last epoch."""
        return self.nrmse[-1]

    @property
    def best_epoch(self) -> int:
        """The recorded epoch with the lowest mean over tasks: long fine-tuning on few points overfits."""
        return self.epochs[int(self.nrmse.mean(dim=1).argmin())]

    @property
    def best(self) -> Tensor:
        """[B] after the best epoch."""
        return self.nrmse[self.epochs.index(self.best_epoch)]


@dataclass(frozen=True)
class Evaluation:
    """What one initialization scores on a batch of tasks."""

    flow: Tensor
    """nRMSE [B] after the flow to T."""
    curve: Curve


def evaluate(
    net: nn.Module, params: Params, tasks: Tasks, *, flow: Flow, epochs: int, lr: float
) -> Generator[None, None, Evaluation]:
    """Adapts every task from `params` both ways. Yields now and then, so that a caller sees that it lives; the value
    of `yield from` is the evaluation. Raises SolveError where the flow of a task can't be solved."""
    scores = []
    for block in blocks(params, tasks):
        scores.append(nrmse_by_flow(net, params, block, flow))
        yield
    curve = yield from fine_tuning_curve(net, params, tasks, epochs=epochs, lr=lr)
    return Evaluation(torch.cat(scores), curve)


def nrmse_by_flow(net: nn.Module, params: Params, tasks: Tasks, flow: Flow) -> Tensor:
    """nRMSE [B] of every task adapted by the flow to T."""
    return nrmse(predictions(net, adapted_by_flow(net, params, tasks, flow), tasks["query_x"]), tasks["query_y"])


def fine_tuning_curve(
    net: nn.Module, params: Params, tasks: Tasks, *, epochs: int, lr: float
) -> Generator[None, None, Curve]:
    """nRMSE of every task every 10 epochs of fine-tuning and after the last. Yields at each record."""
    recorded: list[int] = []
    columns = []
    for block in blocks(params, tasks):
        recorded, rows = [], []
        for epoch, adapted in fine_tuned(net, params, block, epochs=epochs, lr=lr):
            recorded.append(epoch)
            rows.append(nrmse(predictions(net, adapted, block["query_x"]), block["query_y"]))
            yield
        columns.append(torch.stack(rows))
    return Curve(recorded, torch.cat(columns, dim=1))


def nrmse(predicted: Tensor, target: Tensor) -> Tensor:
    """[B, m, o] twice → [B] in float64 on the CPU: see the module's head."""
    return (predicted - target).double().square().mean(dim=(1, 2)).sqrt().cpu()


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean over tasks [B] and its standard error; one task alone has none, which is given as NaN."""
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return values.mean().item(), error


@torch.no_grad()
def adapted_by_flow(net: nn.Module, params: Params, tasks: Tasks, flow: Flow) -> dict[str, Tensor]:
    """u(T) of every task, each tensor with a first axis B. Raises SolveError."""
    layout, derivatives = _derivatives(net, params, tasks)
    batch = len(tasks["support_x"])
    theta = layout.flatten(params)
    evaluations = Evaluations(*(torch.zeros(batch, dtype=torch.int64, device=theta.device) for _ in range(2)))
    rates = None if flow.rates is None else layout.flatten(flow.rates, "rates")
    field = GradientFlow(derivatives, theta, evaluations, rates=rates, proximal=flow.proximal)
    if isinstance(flow.solver, TorchDiffEq):
        ends = GraphSolve(field, batch, [flow.length], flow.solver).ends
    else:  # no backward solve follows, so no state on the way is kept but the first
        ends = solve(field, batch, [flow.length], flow.solver, Snapshots(limit=1)).ends
    adapted: dict[str, Tensor] = layout.unflatten(ends[-1])
    return adapted


@torch.no_grad()
def fine_tuned(
    net: nn.Module, params: Params, tasks: Tasks, *, epochs: int, lr: float
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Adam on every task's support loss: (epoch, parameters with a first axis B) at epoch 0, every 10 and the last.

    Adam is elementwise, so one optimizer over [B, P] is an optimizer a task. The tensors given are overwritten by the
    next epoch.
    """
    layout, derivatives = _derivatives(net, params, tasks)
    u = layout.flatten(params).repeat(len(tasks["support_x"]), 1)
    adam = torch.optim.Adam([u], lr=lr, weight_decay=WEIGHT_DECAY, fused=True)
    yield 0, layout.unflatten(u)
    for epoch in range(1, epochs + 1):
        u.grad = derivatives.gradient(u)
        adam.step()
        if epoch % RECORD_EVERY == 0 or epoch == epochs:
            yield epoch, layout.unflatten(u)


@torch.no_grad()
def predictions(net: nn.Module, adapted: Params, x: Tensor) -> Tensor:
    """Each task's own network on its own rows: parameters with a first axis B, x [B, m, d] → [B, m, o]."""
    predicted: Tensor = vmap(lambda own, rows: functional_call(net, own, (rows,)))(dict(adapted), x)
    return predicted


def blocks(params: Params, tasks: Tasks) -> Iterator[Tasks]:
    """The batch cut into blocks that fit into memory, in order."""
    size = max(1, BLOCK // sum(tensor.numel() for tensor in params.values()))
    for start in range(0, len(tasks["support_x"]), size):
        yield {name: tensor[start : start + size] for name, tensor in tasks.items()}


def _derivatives(net: nn.Module, params: Params, tasks: Tasks) -> tuple[Layout, Derivatives]:
    layout = Layout(params)
    return layout, derivatives_of(*regression_losses(net), tasks, layout)
