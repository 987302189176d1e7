"""How a solve ended, as data: a code for each task, and a sentence with the task, the time t and the remedy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class Result(IntEnum):
    """Why a task's solve ended. Zero is success."""

    SUCCESS = 0
    STABILITY_LIMIT = 1
    """A step left the solver's stability region: h·λmax exceeds its limit."""
    STEP_UNDERFLOW = 2
    """An adaptive step became too short to advance the time."""
    NON_FINITE = 3
    """The state or a loss became infinite or NaN."""
    BUDGET_SPENT = 4
    """The solve needed more steps than the solver may take."""
    DRIFTED = 5
    """The backward solve of `Backsolve` didn't return to θ at t=0."""
    KINK = 6
    """The flow meets a kink of the support loss, where the adjoint equation doesn't hold."""


_REMEDY = {
    Result.STABILITY_LIMIT: "a fixed step is outside the stability region (h·λmax = {value:.3g}): "
    "use a step below {bound:.3g}, or an adaptive solver, such as dopri5",
    Result.STEP_UNDERFLOW: "the step shrank to {value:.3g}: loosen rtol and atol, use float64, or check the losses for kinks",
    Result.NON_FINITE: "the parameters or the loss became infinite or NaN: check the data for NaN and huge "
    "values, use a smaller step or length, or standardise the inputs",
    Result.BUDGET_SPENT: "the budget of {bound:.0f} {unit} was spent: shorten the length, loosen rtol "
    "and atol, or raise the budget",
    Result.DRIFTED: "re-integrating u backwards missed θ by {value:.3g} times the tolerance (at most {bound:.3g}): a contracting "
    "flow can't be reversed this far; use the discrete or the interpolated adjoint",
    Result.KINK: "the flow meets a kink of the support loss: the gradient jumps there by {value:.2g} times the speed at which "
    "the flow crosses it, and the adjoint equation doesn't describe the jump of λ: use a smooth loss or activation (Huber's loss "
    "for an absolute value, softplus or tanh for relu), a fixed-step solver such as euler, or the discrete adjoint",
}


_SEEN_TOO_LATE = (
    "the flow became stiff so fast (h·λmax = {value:.3g}) that the guard noticed it too late: use the interpolated "
    "adjoint, or lower rtol and atol, so that the guard makes more estimates"
)


@dataclass(frozen=True)
class Failure:
    """The failure of one task: its index in the batch, the time t, and the numbers in its sentence."""

    code: Result
    task: int
    time: float
    value: float = float("nan")
    bound: float = float("nan")
    unit: str = "steps"

    def __str__(self) -> str:
        sentence = _REMEDY[self.code]
        if self.code is Result.STABILITY_LIMIT and math.isnan(self.bound):
            sentence = _SEEN_TOO_LATE
        remedy = sentence.format(value=self.value, bound=self.bound, unit=self.unit)
        return f"task {self.task} at t={self.time:.4g}: {remedy}"


class SolveError(Exception):
    """At least one task of the batch couldn't be solved. `failures` lists all of them, `code` is the code of the first.

    The message is that of the hardest task among those with the same code as the first (the one that needs the smallest step,
    say), so that its remedy suffices for all of them.
    """

    def __init__(self, failures: list[Failure]) -> None:
        alike = [failure for failure in failures if failure.code is failures[0].code]
        hardest = min(alike, key=lambda failure: math.inf if math.isnan(failure.bound) else failure.bound)
        others = f" ({len(failures)} tasks failed)" if len(failures) > 1 else ""
        super().__init__(f"{hardest}{others}")
        self.failures = failures
        self.code = failures[0].code

    def __reduce__(self) -> tuple[type[SolveError], tuple[list[Failure]]]:
        return type(self), (self.failures,)  # pickle and copy would otherwise call __init__ with the message


def raise_where(
    mask: Tensor,
    code: Result,
    time: Tensor | float,
    value: Tensor | float = float("nan"),
    bound: Tensor | float = float("nan"),
    unit: str = "steps",
    rows: Tensor | None = None,
) -> None:
    """Raises SolveError for the tasks where `mask` [A] is true; `rows` [A] are the tasks' indices in the batch."""
    failures = failures_where(mask, code, time, value, bound, unit, rows)
    if failures:
        raise SolveError(failures)


def failures_where(
    mask: Tensor,
    code: Result,
    time: Tensor | float,
    value: Tensor | float = float("nan"),
    bound: Tensor | float = float("nan"),
    unit: str = "steps",
    rows: Tensor | None = None,
) -> list[Failure]:
    """The failures of the tasks where `mask` [A] is true, with arguments as of `raise_where`."""
    if not bool(mask.any()):
        return []

    def at(quantity: Tensor | float, index: int) -> float:
        return float(quantity[index]) if isinstance(quantity, Tensor) and quantity.ndim else float(quantity)

    indices = [int(index) for index in torch.nonzero(mask).flatten()]
    return [
        Failure(code, int(rows[i]) if rows is not None else i, at(time, i), at(value, i), at(bound, i), unit)
        for i in indices
    ]
