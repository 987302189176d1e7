"""Adapting a learned initialization to one task's rows, and predicting with what came out."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from amaml.evaluation import Flow, adapted_by_flow, fine_tuned
from amaml.families.base import Tasks
from amaml.families.scaling import Scaling
from amaml.learned import LearnedFlow
from amaml.registry import build_solver
from amaml.spec import EvaluationSpec, JobSpec, SolverSpec, TrajectorySpec

Rows = Tensor | Sequence[Any]
"""Rows of numbers: a tensor, nested lists, or whatever `torch.as_tensor` takes."""
Units = Literal["standardised", "raw"]


def adapt(
    model: nn.Module,
    x: Rows,
    y: Rows,
    *,
    by: Literal["flow", "finetune"] = "flow",
    length: float | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    units: Units = "standardised",
) -> nn.Module:
    """A copy of `model` trained on one task's support rows; the model itself stays as it is.

    `x` [n, d] (or [n] where d is 1) and `y` [n, o] (or [n] where o is 1), in the units that the model itself maps
    between: standardised as its family was. With units="raw" they are converted by the `scaling` that a loaded model
    has; `predict` takes and gives raw units too.

    by="flow": the inner flow over `length` (the run's own T unless given), with the run's solver, proximal term and rates,
    learned ones where it learned them.
    by="finetune": `epochs` of full-batch Adam at rate `lr` (the run's evaluation's unless given), weight decay 1e-6.
    A model that `amaml.load` didn't make has no run: then the defaults of a job spec hold.

    Raises ValueError for rows that don't fit or aren't finite and for options that don't, SolveError where the flow
    can't be solved.
    """
    theta = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tasks = _task(model, next(iter(theta.values())), x, y, units)
    if by == "flow":
        _refuse("flow", "finetune", epochs=epochs, lr=lr)
        found = adapted_by_flow(model, theta, tasks, _flow(model, length))
    elif by == "finetune":
        _refuse("finetune", "flow", length=length)
        spec = getattr(model, "spec", None)
        how = spec.evaluation if isinstance(spec, JobSpec) else EvaluationSpec()
        epochs = how.epochs if epochs is None else epochs
        lr = how.lr if lr is None else lr
        if epochs < 1 or not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"finetune needs at least 1 epoch and a positive finite lr, got epochs={epochs}, lr={lr}")
        _, found = deque(fine_tuned(model, theta, tasks, epochs=epochs, lr=lr), maxlen=1).pop()
    else:
        raise ValueError(f"by must be flow or finetune, got {by!r}")
    adapted = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            parameter.copy_(found[name][0])
    return adapted


@torch.no_grad()
def predict(model: nn.Module, x: Rows) -> Tensor:
    """The targets [n, o] that a loaded (or then adapted) model predicts at `x` [n, d], both in raw units.

    Raises ValueError for rows that don't fit, and for a model without `scaling`.
    """
    like = next(model.parameters())
    scaling = _scaling(model)
    predicted: Tensor = model(scaling.standardise_x(_rows("x", x, like, len(scaling.x_mean))))
    raw: Tensor = scaling.raw_y(predicted)
    return raw


def _task(model: nn.Module, like: Tensor, x: Rows, y: Rows, units: Units) -> Tasks:
    """The rows as a batch of one task, standardised; its query set is never looked at."""
    features, outputs = _sizes(model)
    inputs, targets = _rows("x", x, like, features), _rows("y", y, like, outputs)
    if len(inputs) != len(targets):
        raise ValueError(f"x has {len(inputs)} rows and y has {len(targets)}: give a target for every row")
    if units == "raw":
        scaling = _scaling(model)
        inputs, targets = scaling.standardise_x(inputs), scaling.standardise_y(targets)
    elif units != "standardised":
        raise ValueError(f"units must be standardised or raw, got {units!r}")
    return {
        "support_x": inputs[None],
        "support_y": targets[None],
        "query_x": inputs[None],
        "query_y": targets[None],
    }


def _rows(name: str, values: Rows, like: Tensor, width: int | None) -> Tensor:
    """[n, width] in the model's dtype, on its device."""
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
    """Inputs and outputs of the model, where it says: a loaded one does, and so does an `MLP`."""
    scaling = getattr(model, "scaling", None)
    if isinstance(scaling, Scaling):
        return len(scaling.x_mean), len(scaling.y_mean)
    widths = getattr(model, "widths", (None, None))
    return widths[0], widths[-1]


def _scaling(model: nn.Module) -> Scaling:
    scaling = getattr(model, "scaling", None)
    if not isinstance(scaling, Scaling):  # a model of the caller's own: a wrong value, not a wrong type
        raise ValueError("the model has no scaling: load it by amaml.load, or work in standardised units")  # noqa: TRY004
    return scaling


def _flow(model: nn.Module, length: float | None) -> Flow:
    spec = getattr(model, "spec", None)
    if not isinstance(spec, JobSpec):
        return Flow(TrajectorySpec().length if length is None else _positive(length), build_solver(SolverSpec()))
    learned, last = getattr(model, "learned", LearnedFlow({})), int(getattr(model, "metadata", {})["iteration"]) - 1
    flow: Flow = learned.flow(spec, max(last, 0), build_solver(spec.solver))
    return flow if length is None else replace(flow, length=_positive(length))


def _positive(length: float) -> float:
    if not (math.isfinite(length) and length > 0):
        raise ValueError(f"length must be a positive finite number, got {length}")
    return length


def _refuse(by: str, other: str, **options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} has no meaning with by={by!r}: leave it out, or use by={other!r}")
