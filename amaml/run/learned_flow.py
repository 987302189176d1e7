"""The quantities of the inner flow that can be trained in addition to θ: T = e^τ, rates α = e^a, proximal strength ρ = e^r.

The meta-optimizer trains their logarithms, so that they stay positive; by the chain rule dJ/dτ = T·dJ/dT, and so on. Learned T:
Deleu et al. 2022 (COMLN); learned rates: Li et al. 2017 (Meta-SGD).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from amaml.flow.solvers import Solver
from amaml.methods.amaml.gradient import MetaGradient
from amaml.methods.estimate import GradientEstimate
from amaml.metrics import LEARNED_LENGTH, LEARNED_PROXIMAL, LEARNED_RATES
from amaml.run.evaluation import Flow
from amaml.run.schedules import length_at
from amaml.spec import JobSpec

PREFIX = "learned/"
LENGTH, PROXIMAL, RATES = "learned/log_length", "learned/log_proximal", "learned/log_rates/"
LONGEST = 10_000.0
"""The longest trajectory, as in a spec."""


class LearnedFlow:
    """The logarithms by their names in files; empty for a method that learns θ alone.

    `learned/log_length` and `learned/log_proximal` are float64 scalars, `learned/log_rates/NAME` has the parameter's shape.
    """

    def __init__(self, logarithms: Mapping[str, Tensor]) -> None:
        self.logarithms = dict(logarithms)

    def joined(self, spec: JobSpec, theta: Mapping[str, Tensor]) -> LearnedFlow:
        """Adds the quantities that the spec's method learns and that are missing here. They start at the spec's length and
        proximal strength, and at rates of 1. The order is always the same, since the optimizer's state depends on it."""
        learn, logarithms = spec.method.learned, dict(self.logarithms)
        device = next(iter(theta.values())).device
        if "length" in learn and LENGTH not in logarithms:
            logarithms[LENGTH] = torch.tensor(math.log(spec.trajectory.length), dtype=torch.float64, device=device)
        if "proximal" in learn and PROXIMAL not in logarithms:
            logarithms[PROXIMAL] = torch.tensor(math.log(spec.method.proximal), dtype=torch.float64, device=device)
        if "rates" in learn and self.rates is None:
            logarithms |= {RATES + name: torch.zeros_like(tensor) for name, tensor in theta.items()}
        order = [LENGTH, PROXIMAL, *(RATES + name for name in theta)]
        return LearnedFlow({name: logarithms[name] for name in order if name in logarithms})

    def trained_by(self, spec: JobSpec) -> dict[str, Tensor]:
        """The logarithms that the spec's method trains; the others stay as an earlier method learned them."""
        prefixes = {"length": LENGTH, "proximal": PROXIMAL, "rates": RATES}
        own = tuple(prefixes[name] for name in spec.method.learned)
        return {name: tensor for name, tensor in self.logarithms.items() if name.startswith(own)}

    @classmethod
    def among(cls, tensors: Mapping[str, Tensor]) -> LearnedFlow:
        """The learned flow among the tensors of a file."""
        return cls({name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)})

    @property
    def length(self) -> float | None:
        """The learned T, if it is learned."""
        return _exponential(self.logarithms.get(LENGTH))

    @property
    def proximal(self) -> float | None:
        """The learned ρ, if it is learned."""
        return _exponential(self.logarithms.get(PROXIMAL))

    @property
    def rates(self) -> dict[str, Tensor] | None:
        """The learned α by parameter name, if they are learned."""
        own = {name.removeprefix(RATES): tensor.exp() for name, tensor in self._log_rates.items()}
        return own or None

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics `learned_length`, `learned_proximal` and `learned_rates` (their mean), of those that are learned."""
        metrics = {LEARNED_LENGTH: self.length, LEARNED_PROXIMAL: self.proximal, LEARNED_RATES: self._mean_rate}
        return {name: value for name, value in metrics.items() if value is not None}

    def arguments(self, spec: JobSpec) -> dict[str, Any]:
        """The arguments of `meta_gradient` that the learned flow determines, except the length."""
        given = {"proximal": self.proximal, "rates": self.rates, "wrt": list(spec.method.learned) or None}
        return {name: value for name, value in given.items() if value is not None}

    def flow(self, spec: JobSpec, iteration: int, solver: Solver) -> Flow:
        """The inner flow in this meta-iteration (from 0): its learned quantities, and those of the spec for the rest."""
        return Flow(
            self.length or length_at(spec.trajectory, iteration),
            solver,
            spec.method.proximal if self.proximal is None else self.proximal,
            self.rates,
        )

    def gradients(self, spec: JobSpec, result: GradientEstimate) -> dict[str, Tensor]:
        """The derivatives of each task's loss with respect to the logarithms that the spec's method trains, by name and with a
        first axis B. `result` is the meta-gradient of θ, whose solve computed them too."""
        learn = spec.method.learned
        if not learn:
            return {}
        assert isinstance(result, MetaGradient), "a spec learns the flow with a method that differentiates it"
        gradients = {}
        if "length" in learn:
            gradients[LENGTH] = self.logarithms[LENGTH].exp() * result.by_task("length").double()
        if "proximal" in learn:
            gradients[PROXIMAL] = self.logarithms[PROXIMAL].exp() * result.by_task("proximal").double()
        if "rates" in learn:
            by_rate = result.by_task("rates")
            for name, logarithm in self._log_rates.items():
                gradients[name] = logarithm.exp() * by_rate[name.removeprefix(RATES)]
        return gradients

    def trouble(self) -> str | None:
        """A sentence about a learned value that makes the flow unsolvable; None if there is none."""
        if self.length is not None and not 0 < self.length <= LONGEST:
            return f"the learned trajectory length is {self.length:g}, outside (0, {LONGEST:g}]"
        if self.proximal is not None and not math.isfinite(self.proximal):
            return f"the learned proximal strength is {self.proximal:g}"
        if not all(bool((rates.isfinite() & (rates > 0)).all()) for rates in (self.rates or {}).values()):
            return "a learned rate is zero or not finite"
        return None

    @property
    def _log_rates(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.logarithms.items() if name.startswith(RATES)}

    @property
    def _mean_rate(self) -> float | None:
        if not self._log_rates:
            return None
        return torch.cat([logarithm.double().exp().flatten() for logarithm in self._log_rates.values()]).mean().item()


def _exponential(logarithm: Tensor | None) -> float | None:
    return None if logarithm is None else logarithm.exp().item()
