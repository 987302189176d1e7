"""Adapts a learned initialization to the rows of one task, and predicts with the adapted model."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from amaml.families.base import Tasks
from amaml.families.scaling import Scaling
from amaml.flow.solve import fixed_steps
from amaml.flow.solvers import FixedStep
from amaml.models.private import copied
from amaml.modes import plain_modes
from amaml.objectives import CLASSIFICATION, REGRESSION, Objective
from amaml.registry import build_solver
from amaml.run.evaluation import FineTuning, Flow, adapted_by_flow, fine_tuned, states_by_flow
from amaml.run.learned_model import LearnedModel
from amaml.spec import EvaluationSpec, SolverSpec, TrajectorySpec

Rows = Tensor | Sequence[Any]
"""Rows of numbers: a tensor, nested lists, or whatever `torch.as_tensor` takes."""
Units = Literal["standardised", "raw"]
By = Literal["flow", "finetune"]

POINTS = 20
"""The number of times in the loss curve of a flow, without the start."""


@dataclass(frozen=True)
class LossCurve:
    """The losses of one task during its adaptation: those that trained the model, in standardised units."""

    over: Literal["t", "epochs"]
    at: list[float]
    """Times t of the flow, or epochs, from 0 on."""
    support: list[float]
    query: list[float] | None
    """None where no query set was given."""


@plain_modes()
def adapt(
    model: nn.Module,
    x: Rows,
    y: Rows,
    *,
    by: By = "flow",
    length: float | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    learned_rates: bool | None = None,
    units: Units = "standardised",
) -> nn.Module:
    """A copy of `model` that is trained on the support rows of one task; the model itself isn't changed.

    `x` is [n, d] (or [n] where d is 1) and `y` [n, o] (or [n] where o is 1), in standardised units, which are those of the
    model's inputs and outputs. With units="raw" they are in the data's own units, and are converted by the `scaling` of a loaded
    model (see `LearnedModel`); `predict` takes and returns raw units too. Where the model classifies, `y` is the index of each
    row's class among the model's `outputs` ([n] or [n, 1]), or a probability for each class [n, o].

    by="flow" follows the inner flow over `length` (default: the run's T), with the run's solver, proximal term and rates; values
    that the run has learned are used. by="finetune" trains by `epochs` of full-batch Adam at rate `lr`, with weight decay 1e-6;
    with `learned_rates`, each parameter's rate is `lr` times the rate that the run has learned for it. The defaults of these
    three are those of the run's evaluation. A model that `amaml.load` didn't make has no run; then the defaults of a job spec
    hold. Parameters with requires_grad=False stay as they are.

    Raises ValueError for rows that don't fit the model or aren't finite and for options that don't fit `by`, SolveError where the
    flow can't be solved.
    """
    adapted = copied(model)
    theta, tasks = _theta(model), _task(model, x, y, units)
    found: Mapping[str, Tensor]
    if by == "flow":
        flow = _flow(model, length, epochs, lr, learned_rates)
        found = adapted_by_flow(model, theta, tasks, flow, _objective(model))
    else:
        _, found = deque(_epochs(model, theta, tasks, by, length, epochs, lr, learned_rates), maxlen=1).pop()
    for name, parameter in adapted.named_parameters():
        parameter.copy_(found[name][0])
    return adapted


@plain_modes()
def loss_curve(
    model: nn.Module,
    x: Rows,
    y: Rows,
    *,
    query: tuple[Rows, Rows] | None = None,
    by: By = "flow",
    length: float | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    learned_rates: bool | None = None,
    units: Units = "standardised",
) -> LossCurve:
    """The support loss, and the loss on the rows `query` = (x, y), during the adaptation that `adapt` does with these arguments.

    The curve has 20 times along a flow, or every 10th epoch of fine-tuning. With a fixed-step solver the times are ends of steps;
    an adaptive solver stops at each of them, so that its end agrees with `adapt` to its tolerance. Raises as `adapt`.
    """
    theta, tasks = _theta(model), _task(model, x, y, units, query)
    start = {name: tensor[None] for name, tensor in theta.items()}
    states: list[tuple[float, Mapping[str, Tensor]]]
    support_loss, query_loss = _objective(model).losses(copied(model))
    task = {name: tensor[0] for name, tensor in tasks.items()}

    def losses(params: Mapping[str, Tensor]) -> tuple[float, float]:
        own = {name: tensor[0] for name, tensor in params.items()}
        return float(support_loss(own, task)), float(query_loss(own, task))

    if by == "flow":
        flow = _flow(model, length, epochs, lr, learned_rates)
        times = _times(flow)
        states = [
            (0.0, start),
            *zip(times, states_by_flow(model, theta, tasks, flow, times, _objective(model)), strict=True),
        ]
        found = [(at, *losses(params)) for at, params in states]
    else:
        # Each record is evaluated before the next is made, since the next epoch overwrites its tensors.
        records = _epochs(model, theta, tasks, by, length, epochs, lr, learned_rates)
        found = [(at, *losses(params)) for at, params in records]
    at, support, asked = (list(column) for column in zip(*found, strict=True))
    return LossCurve("t" if by == "flow" else "epochs", at, support, None if query is None else asked)


@plain_modes()
def predict(model: nn.Module, x: Rows) -> Tensor:
    """The targets [n, o] that a loaded (and perhaps adapted) model predicts at `x` [n, d], both in raw units; where the model
    classifies, the probability of each class.

    Raises ValueError for rows that don't fit the model, and for a model without `scaling`.
    """
    like = next(model.parameters())
    scaling = _scaling(model)
    predicted: Tensor = model(scaling.standardise_x(_rows("x", x, like, _sizes(model)[0])))
    if _objective(model) == CLASSIFICATION:
        return predicted.softmax(dim=-1)
    raw: Tensor = scaling.raw_y(predicted)
    return raw


def _theta(model: nn.Module) -> dict[str, Tensor]:
    """The parameters themselves and not copies, so that requires_grad=False shows which are constants."""
    return dict(model.named_parameters())


def _epochs(
    model: nn.Module, theta: Mapping[str, Tensor], tasks: Tasks, by: str,
    length: float | None, epochs: int | None, lr: float | None, learned_rates: bool | None,
) -> Iterator[tuple[int, Mapping[str, Tensor]]]:  # fmt: skip
    """The records of fine-tuning: (epoch, parameters)."""
    if by != "finetune":
        raise ValueError(f"by must be flow or finetune, got {by!r}")
    _refuse("finetune", "flow", length=length)
    loaded = LearnedModel.of(model)
    how = EvaluationSpec() if loaded is None else loaded.spec.evaluation
    epochs = how.epochs if epochs is None else epochs
    lr = how.lr if lr is None else lr
    if epochs < 1 or not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"finetune needs at least 1 epoch and a positive finite lr, got epochs={epochs}, lr={lr}")
    rates = None
    if how.learned_rates if learned_rates is None else learned_rates:
        rates = None if loaded is None else loaded.learned.rates
        if rates is None and learned_rates:
            raise ValueError(
                "the model has learned no rates: leave learned_rates out, or train it by amaml with learn=['rates']"
            )
    return fine_tuned(model, theta, tasks, FineTuning(epochs, lr, rates), _objective(model))


def _task(model: nn.Module, x: Rows, y: Rows, units: Units, query: tuple[Rows, Rows] | None = None) -> Tasks:
    """The rows as a batch of one task, standardised; without `query`, the support set is the query set too."""
    inputs, targets = _points(model, "", x, y, units)
    asked = (inputs, targets) if query is None else _points(model, "query ", *query, units)
    return {
        "support_x": inputs[None],
        "support_y": targets[None],
        "query_x": asked[0][None],
        "query_y": asked[1][None],
    }


def _points(model: nn.Module, which: str, x: Rows, y: Rows, units: Units) -> tuple[Tensor, Tensor]:
    """Inputs [n, d] and targets [n, o], standardised."""
    like = next(model.parameters())
    features, outputs = _sizes(model)
    inputs = _rows(f"{which}x", x, like, features)
    if _objective(model) == CLASSIFICATION:
        targets = _classes(f"{which}y", y, like, outputs)
    else:
        targets = _rows(f"{which}y", y, like, outputs)
    if len(inputs) != len(targets):
        raise ValueError(
            f"{which}x has {len(inputs)} rows and {which}y has {len(targets)}: give a target for every row"
        )
    if units == "raw":
        scaling = _scaling(model)
        inputs, targets = scaling.standardise_x(inputs), scaling.standardise_y(targets)
    elif units != "standardised":
        raise ValueError(f"units must be standardised or raw, got {units!r}")
    return inputs, targets


def _times(flow: Flow) -> list[float]:
    """The times of the loss curve, up to the end; with fixed steps they are ends of steps, so that the steps don't change."""
    if not isinstance(flow.solver, FixedStep):
        return [flow.length * point / POINTS for point in range(1, POINTS)] + [flow.length]
    [(count, h)] = fixed_steps([flow.length], flow.solver.step)
    steps = sorted({round(count * point / POINTS) for point in range(1, POINTS)} - {0, count})
    return [number * h for number in steps] + [flow.length]


def _classes(name: str, values: Rows, like: Tensor, classes: int | None) -> Tensor:
    """The probabilities of the classes for each point, [n, classes]."""
    rows = _rows(name, values, like, None)
    if rows.shape[1] != 1:
        return _rows(name, rows, like, classes)
    assert classes is not None, "a model that classifies was loaded, and says how many outputs it has"
    if not bool(((rows == rows.round()) & (rows >= 0) & (rows < classes)).all()):
        raise ValueError(
            f"{name} holds numbers that aren't the index of a class: give whole numbers from 0 to {classes - 1}"
        )
    return one_hot(rows[:, 0].long(), classes).to(like.dtype)


def _rows(name: str, values: Rows, like: Tensor, width: int | None) -> Tensor:
    """The values as [n, width], with the model's dtype and device."""
    try:
        rows = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} can't be read as rows of numbers ({error}): give every row the same length"
        ) from error
    if rows.ndim == 1:
        rows = rows[:, None]
    if rows.ndim != 2 or len(rows) == 0 or (width is not None and rows.shape[1] != width):
        raise ValueError(
            f"{name} has shape {tuple(rows.shape)}, the model needs [rows, {width or 'columns'}] with at least one row"
        )
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinite values in {like.dtype}: drop or fill those rows")
    return rows


def _sizes(model: nn.Module) -> tuple[int | None, int | None]:
    """The numbers of inputs and outputs of a loaded model or an `MLP`; None for another model, which doesn't state them."""
    loaded = LearnedModel.of(model)
    if loaded is not None:
        return loaded.in_features, loaded.out_features
    widths = getattr(model, "widths", (None, None))
    return widths[0], widths[-1]


def _objective(model: nn.Module) -> Objective:
    """The objective of a loaded model; regression for another model."""
    loaded = LearnedModel.of(model)
    return REGRESSION if loaded is None else loaded.objective


def _scaling(model: nn.Module) -> Scaling:
    loaded = LearnedModel.of(model)
    if loaded is None:
        raise ValueError("the model has no scaling: load it by amaml.load, or work in standardised units")
    return loaded.scaling


def _flow(
    model: nn.Module, length: float | None, epochs: int | None, lr: float | None, learned_rates: bool | None
) -> Flow:
    _refuse("flow", "finetune", epochs=epochs, lr=lr, learned_rates=learned_rates)
    loaded = LearnedModel.of(model)
    if loaded is None:
        return Flow(TrajectorySpec().length if length is None else _positive(length), build_solver(SolverSpec()))
    flow = loaded.learned.flow(loaded.spec, max(loaded.iteration - 1, 0), build_solver(loaded.spec.solver))
    return flow if length is None else replace(flow, length=_positive(length))


def _positive(length: float) -> float:
    if not (math.isfinite(length) and length > 0):
        raise ValueError(f"length must be a positive finite number, got {length}")
    return length


def _refuse(by: str, other: str, **options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} has no meaning with by={by!r}: leave it out, or use by={other!r}")
