"""Random problems for `benchmarks.stress`, of kinds that are known to mislead solvers, each with an independent reference.

References share nothing with the engine: closed forms where there are any, autograd through a plain loop for fixed steps, SciPy's
DOP853 there and back for smooth flows, and central differences of the meta-loss for flows with kinks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.stress_problems.changing_curvature import bump, late_stiffness
from benchmarks.stress_problems.kinks import absolute, corners_of_relu, hinge
from benchmarks.stress_problems.networks import edited_network, network
from benchmarks.stress_problems.problem import StressProblem
from benchmarks.stress_problems.quadratics import at_rest, nothing, pulled, stiff, units


def drawn(number: int) -> StressProblem:
    """The problem with this number; the kinds alternate."""
    rng = np.random.default_rng([7, number])
    torch.manual_seed(number)
    kinds = list(KINDS)
    kind = kinds[number % len(kinds)]
    problem = KINDS[kind](rng)
    question = {name: repr(value) for name, value in problem.question.items() if not isinstance(value, Tensor)}
    problem.facts.update(kind=kind, **question)
    return problem


KINDS: dict[str, Callable[[np.random.Generator], StressProblem]] = {
    "network": network,
    "edited network": edited_network,
    "at rest": at_rest,
    "late stiffness": late_stiffness,
    "bump": bump,
    "stiff": stiff,
    "units": units,
    "pulled": pulled,
    "nothing": nothing,
    "absolute": absolute,
    "hinge": hinge,
    "corners of relu": corners_of_relu,
}
