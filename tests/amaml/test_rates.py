"""Rates of zero: a parameter stays where it is in the flow, and has a gradient all the same."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

import amaml
from amaml.kernel import disabled
from tests.amaml.classifier import classes, entropy, solved
from tests.amaml.problems import apart, cosines, flat, network, start, unrolled

RATED = {
    "kernel euler": (amaml.Euler(0.05), amaml.Discrete()),
    "kernel heun": (amaml.Heun(0.05), amaml.Discrete()),
    "kernel rk4": (amaml.RK4(0.05), amaml.Discrete()),
    "kernel dopri5": (amaml.Dopri5(1e-9), amaml.Discrete()),
    "kernel bosh3": (amaml.Bosh3(1e-9), amaml.Discrete()),
    "interpolated": (amaml.Dopri5(1e-9), amaml.Interpolated()),
    "backsolve": (amaml.Dopri5(1e-9), amaml.Backsolve()),
    "torchdiffeq": (amaml.TorchDiffEq("rk4", step=0.05), amaml.Discrete()),
}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("how", RATED)
def test_rates_of_zero_keep_a_parameter_and_leave_its_gradient(how: str, batched: bool) -> None:
    """The same as with rates so small that nothing moves."""
    net, tasks = network([5, 5]), cosines(2, 9)
    solver, adjoint = RATED[how]
    answers = []
    for rate in (0.0, 1e-30):
        rates = {
            name: torch.full_like(value, rate if name.startswith("0.") else 0.7) for name, value in start(net).items()
        }
        with disabled() if batched else nullcontext():
            answers.append(
                amaml.meta_gradient(
                    start(net), *amaml.regression_losses(net), tasks, length=0.3, solver=solver, adjoint=adjoint,
                    rates=rates, proximal=0.1, wrt=["rates", "length", "proximal"],
                )
            )  # fmt: skip
    zero, tiny = answers
    assert torch.equal(zero.adapted["0.weight"], start(net)["0.weight"].expand(2, 5, 1))
    assert zero.grad["0.weight"].any()
    for name in ("per_task", "rates"):
        torch.testing.assert_close(flat(getattr(zero, name)), flat(getattr(tiny, name)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(zero.proximal, tiny.proximal, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("solver", [amaml.Euler(0.05), amaml.Dopri5(1e-6), amaml.Bosh3(1e-6)], ids=str)
def test_rates_of_zero_for_all_are_no_flow_at_all(solver: Any, batched: bool) -> None:
    net, tasks = network([5]), cosines(2, 9)
    rates = {name: torch.zeros_like(value) for name, value in start(net).items()}
    with disabled() if batched else nullcontext():
        answer = amaml.meta_gradient(
            start(net), *amaml.regression_losses(net), tasks, length=0.3, solver=solver, rates=rates
        )
    expected = unrolled(start(net), *amaml.regression_losses(net), tasks, 0, 0.0)
    assert apart(flat(answer.grad), flat(expected)) < 1e-13


def test_the_body_is_learned_through_the_head_alone() -> None:
    """Almost no inner loop (Raghu et al., arXiv 1909.09157): only the head is adapted, and the body's gradient goes through
    it."""
    params, tasks = classes()
    rates = {"w": torch.zeros_like(params["w"]), "b": torch.ones_like(params["b"])}
    answer = solved(entropy, rates=rates)
    assert apart(flat(answer.grad), flat(unrolled(params, entropy, entropy, tasks, 4, 0.1, rates))) < 1e-13
