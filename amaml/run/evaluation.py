"""The paper's evaluation: how well unseen tasks are learned from an initialization.

Each task is adapted on its support set in two ways: by the inner flow to T, and by fine-tuning (full-batch Adam with weight decay
1e-6, which `torch.optim.Adam` adds to the gradient). Then it is scored on its query set by the objective's metric: nRMSE for
regression, accuracy for classification. The mean over the tasks is reported, with its standard error s/√B.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from amaml.families.base import Tasks
from amaml.flow.derivatives import Derivatives
from amaml.flow.field import Evaluations, GradientFlow
from amaml.flow.result import SolveError
from amaml.flow.solvers import Solver
from amaml.methods.parameters import Layout
from amaml.metrics import FLOW, RANDOM, TUNED, TUNED_BEST
from amaml.models.derivatives import derivatives_of
from amaml.models.private import private
from amaml.modes import plain_modes
from amaml.objectives import REGRESSION, Metric, Objective

WEIGHT_DECAY = 1e-6
RECORD_EVERY = 10
BLOCK = 2**23
"""The most parameters of all tasks in one block, which bounds the memory."""

WITHIN = (0.25, 0.5, 0.75)
"""The times before T at which the flow is scored, as fractions of T."""
BEYOND = (1.5, 2.0)
"""The times after T at which the flow is scored, as multiples of T."""

Params = Mapping[str, Tensor]


@dataclass(frozen=True)
class Flow:
    """The inner flow that adapts a task, and its solver."""

    length: float
    solver: Solver
    proximal: float = 0.0
    rates: Params | None = None
    """The rates α by parameter name; None: all 1."""


@dataclass(frozen=True)
class FineTuning:
    """How a task is fine-tuned."""

    epochs: int
    lr: float
    rates: Params | None = None
    """The learning rate of each parameter, as a multiple of `lr`; None: all 1."""


@dataclass(frozen=True)
class Curve:
    """The fine-tuning curve: the scores [E, B] of B tasks after each of the E `epochs`; epoch 0 is the start."""

    epochs: list[int]
    scores: Tensor
    metric: Metric = REGRESSION.metric

    @property
    def last(self) -> Tensor:
        """The scores [B] after the last epoch."""
        return self.scores[-1]

    @property
    def best_epoch(self) -> int:
        """The recorded epoch with the best mean over tasks, which need not be the last: long fine-tuning on few points
        overfits."""
        means = self.scores.mean(dim=1)
        return self.epochs[int(means.argmax() if self.metric.higher_is_better else means.argmin())]

    @property
    def best(self) -> Tensor:
        """The scores [B] after the best epoch."""
        return self.scores[self.epochs.index(self.best_epoch)]


@dataclass(frozen=True)
class AlongFlow:
    """The scores along the flow, up to T and beyond it."""

    times: list[float]
    scores: Tensor
    """[times, B]; NaN where the task's flow couldn't be solved up to that time."""
    trouble: str | None = None
    """The error that ended a solve beyond T; None if there was none."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of one initialization on a batch of B tasks."""

    metric: Metric
    flow: Tensor
    """[B], adapted by the flow to T."""
    curve: Curve
    along_flow: AlongFlow | None = None
    random: Tensor | None = None
    """[B], fine-tuned from the random start."""
    baselines: dict[str, Tensor] = field(default_factory=dict)
    """The scores [B] of each baseline, by name."""

    @property
    def scores(self) -> dict[str, Tensor]:
        """All scores [B], by name."""
        own = {FLOW: self.flow, TUNED: self.curve.last, TUNED_BEST: self.curve.best}
        random = {} if self.random is None else {RANDOM: self.random}
        return {**own, **random, **self.baselines}


def evaluate(
    net: nn.Module,
    params: Params,
    tasks: Tasks,
    flow: Flow,
    tuning: FineTuning,
    objective: Objective = REGRESSION,
    micro_batch: int | None = None,
) -> Generator[None, None, Evaluation]:
    """Adapts every task from `params` by flow and by fine-tuning, at most `micro_batch` tasks at once. Yields between parts of
    the work, so that a caller can report progress; the value of `yield from` is the evaluation. Raises SolveError where the flow
    of a task can't be solved."""
    scores = yield from scores_by_flow(net, params, tasks, flow, objective, micro_batch)
    curve = yield from fine_tuning_curve(net, params, tasks, tuning, objective, micro_batch)
    return Evaluation(objective.metric, scores, curve)


def scores_by_flow(
    net: nn.Module,
    params: Params,
    tasks: Tasks,
    flow: Flow,
    objective: Objective = REGRESSION,
    micro_batch: int | None = None,
) -> Generator[None, None, Tensor]:
    """The scores [B] of the tasks adapted by the flow to T; yields after each block of tasks."""
    scores = []
    for block in blocks(params, tasks, micro_batch):
        scores.append(score_by_flow(net, params, block, flow, objective))
        yield
    return torch.cat(scores)


def score_by_flow(
    net: nn.Module, params: Params, tasks: Tasks, flow: Flow, objective: Objective = REGRESSION
) -> Tensor:
    """The scores [B] of the tasks adapted by the flow to T, all at once."""
    adapted = adapted_by_flow(net, params, tasks, flow, objective)
    return objective.metric.score(predictions(net, adapted, tasks["query_x"]), tasks["query_y"])


def along_flow(
    net: nn.Module,
    params: Params,
    tasks: Tasks,
    flow: Flow,
    objective: Objective = REGRESSION,
    micro_batch: int | None = None,
) -> Generator[None, None, AlongFlow]:
    """The scores at the start, at times before T, and at times after T. No run trains for times after T, so where a solve fails
    there, the result has the sentence as `trouble`, and no error is raised."""
    within, beyond = ([part * flow.length for part in parts] for parts in (WITHIN, BEYOND))
    columns, trouble = [], None
    for block in blocks(params, tasks, micro_batch):
        start = {name: tensor.expand(len(block["support_x"]), *tensor.shape) for name, tensor in params.items()}
        states = [start, *states_by_flow(net, params, block, flow, within, objective)]
        yield
        try:
            states += states_by_flow(net, params, block, flow, beyond, objective)
        except SolveError as error:
            trouble = str(error)
        rows = [objective.metric.score(predictions(net, own, block["query_x"]), block["query_y"]) for own in states]
        missing = [torch.full_like(rows[0], float("nan"))] * (1 + len(WITHIN) + len(BEYOND) - len(rows))
        columns.append(torch.stack([*rows, *missing]))
        yield
    return AlongFlow([0.0, *within, *beyond], torch.cat(columns, dim=1), trouble)


def fine_tuning_curve(
    net: nn.Module,
    params: Params,
    tasks: Tasks,
    tuning: FineTuning,
    objective: Objective = REGRESSION,
    micro_batch: int | None = None,
) -> Generator[None, None, Curve]:
    """The scores of the tasks after every 10th epoch of fine-tuning and after the last. Yields at each record."""
    recorded: list[int] = []
    columns = []
    for block in blocks(params, tasks, micro_batch):
        recorded, rows = [], []
        for epoch, adapted in fine_tuned(net, params, block, tuning, objective):
            recorded.append(epoch)
            rows.append(objective.metric.score(predictions(net, adapted, block["query_x"]), block["query_y"]))
            yield
        columns.append(torch.stack(rows))
    return Curve(recorded, torch.cat(columns, dim=1), objective.metric)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of values [B] and its standard error, which is NaN for a single value."""
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return values.mean().item(), error


def adapted_by_flow(
    net: nn.Module, params: Params, tasks: Tasks, flow: Flow, objective: Objective = REGRESSION
) -> dict[str, Tensor]:
    """u(T) of every task, each tensor with a first axis B. Raises SolveError."""
    return states_by_flow(net, params, tasks, flow, [flow.length], objective)[0]


@plain_modes()
def states_by_flow(
    net: nn.Module, params: Params, tasks: Tasks, flow: Flow, times: list[float], objective: Objective
) -> list[dict[str, Tensor]]:
    """u of every task at each of the times (increasing), as in `adapted_by_flow`."""
    layout, derivatives = _derivatives(net, params, tasks, objective)
    batch = len(tasks["support_x"])
    theta = layout.theta
    evaluations = Evaluations(*(torch.zeros(batch, dtype=torch.int64, device=theta.device) for _ in range(2)))
    rates = None if flow.rates is None else layout.flatten(flow.rates, "rates")
    own = GradientFlow(derivatives, theta, evaluations, sizes=layout.sizes, rates=rates, proximal=flow.proximal)
    ends = flow.solver.solve(own, batch, times).ends
    derivatives.confirm()
    return [layout.unflatten(end) for end in ends]


def fine_tuned(
    net: nn.Module, params: Params, tasks: Tasks, tuning: FineTuning, objective: Objective = REGRESSION
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Fine-tunes every task by Adam on its support loss, and yields (epoch, parameters with a first axis B) at epoch 0, every
    10th epoch and the last.

    Adam is elementwise, so one optimizer over [B, P] acts as one for each task. The next epoch overwrites the tensors yielded.
    """
    with plain_modes():
        layout, derivatives = _derivatives(net, params, tasks, objective)
        u = layout.theta.repeat(len(tasks["support_x"]), 1)
        alpha = None if tuning.rates is None else layout.flatten(tuning.rates, "rates")
    adam = torch.optim.Adam([u], lr=tuning.lr, weight_decay=WEIGHT_DECAY, fused=True)
    yield 0, layout.unflatten(u)
    for epoch in range(1, tuning.epochs + 1):
        with plain_modes():
            u.grad = derivatives.gradient(u)
            before = None if alpha is None else u.clone()
            adam.step()
            if alpha is not None and before is not None:
                u.copy_(before.lerp(u, alpha))
        if epoch % RECORD_EVERY == 0 or epoch == tuning.epochs:
            yield epoch, layout.unflatten(u)


@plain_modes()
def predictions(net: nn.Module, adapted: Params, x: Tensor) -> Tensor:
    """The predictions [B, m, o] of each task's network, with parameters that have a first axis B, at its rows x [B, m, d]."""
    copy = private(net)
    predicted: Tensor = vmap(lambda own, rows: functional_call(copy, own, (rows,)))(dict(adapted), x)
    return predicted


def blocks(params: Params, tasks: Tasks, micro_batch: int | None = None) -> Iterator[Tasks]:
    """The tasks in order, divided into blocks that fit into memory."""
    size = block_size(params, micro_batch)
    for start in range(0, len(tasks["support_x"]), size):
        yield {name: tensor[start : start + size] for name, tensor in tasks.items()}


def block_size(params: Params, micro_batch: int | None) -> int:
    """The number of tasks in a block: as many as `BLOCK` allows, and at most `micro_batch`."""
    size = max(1, BLOCK // sum(tensor.numel() for tensor in params.values()))
    return size if micro_batch is None else min(size, micro_batch)


def _derivatives(net: nn.Module, params: Params, tasks: Tasks, objective: Objective) -> tuple[Layout, Derivatives]:
    layout = Layout(params)
    return layout, derivatives_of(*objective.losses(net), tasks, layout)
