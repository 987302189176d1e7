"""MAML (Finn, Abbeel, Levine 2017): N steps of gradient descent, and the exact gradient through them.

Explicit Euler with step h is gradient descent with learning rate h, so that its discrete adjoint equals backpropagation
through the unrolled steps to rounding, without their graph: √N states instead of N.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaml.adjoint.discrete import Discrete
from amaml.flow.derivatives import Loss
from amaml.flow.solvers import Euler, Solver
from amaml.methods.amaml.gradient import MetaGradient, meta_gradient
from amaml.methods.parameters import Params


def maml(
    params: Params,
    support_loss: Loss,
    query_loss: Loss,
    tasks: Any,
    *,
    length: float | None = None,
    horizons: Sequence[tuple[float, float]] | None = None,
    solver: Solver | None = None,
    steps: int | None = None,
    certify: bool = False,
) -> MetaGradient:
    """The gradient dJ/dθ where u(T) is the result of N = round(length/h) steps with learning rate h = `solver.step`. `steps` sets
    N and overrides `length` and `horizons`; the other arguments are as in `meta_gradient`. Raises ValueError for a solver other
    than Euler.
    """
    solver = solver or Euler()
    if not isinstance(solver, Euler):
        raise ValueError(f"maml is gradient descent: use Euler(step) as its solver, got {solver}")  # noqa: TRY004 - a wrong choice
    if steps is not None:
        length, horizons = steps * solver.step, None
    return meta_gradient(
        params, support_loss, query_loss, tasks, length=length, horizons=horizons, solver=solver, adjoint=Discrete(),
        certify=certify,
    )  # fmt: skip
