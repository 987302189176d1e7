"""The kernel against the batched path: the same answers to rounding, the same failures, the same bits on any threads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import amaml
from amaml.flow.result import Result, SolveError
from amaml.kernel import backend, disabled, library
from amaml.kernel import solve as kernel_solve
from amaml.methods.fomaml.gradient import fomaml
from amaml.methods.imaml.gradient import imaml
from amaml.methods.problem import GradientProblem, pose
from amaml.methods.reptile.gradient import reptile
from amaml.models.mlp.derivatives import MLPDerivatives
from tests.amaml.kernel_problems import SOLVERS, both, distance, regression
from tests.amaml.problems import cosines, flat, network, start

pytestmark = pytest.mark.usefixtures("kernel")
ACTIVATIONS = ("tanh", "sigmoid", "softplus", "relu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread for PyTorch, on which the batched path's small products are faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_equals_the_batched_path_to_rounding(solver: str, activation: str) -> None:
    problem = regression([2, 20, 7, 3], activation, points=(30, 11))
    adjoint = amaml.Discrete() if activation == "relu" else None  # the adjoint equation refuses relu's kinks
    a, b = both(**problem, length=1.0, solver=SOLVERS[solver], adjoint=adjoint)
    assert distance(a, b) < 1e-11
    assert torch.equal(a.stats.steps, b.stats.steps)
    assert torch.equal(a.stats.rejected, b.stats.rejected)
    assert torch.allclose(a.stats.lambda_max, b.stats.lambda_max, rtol=1e-10)
    assert a.stats.target == b.stats.target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", [amaml.Dopri5(1e-3), amaml.Dopri5(1e-5), amaml.Bosh3(1e-4)], ids=repr)
@pytest.mark.parametrize("widths", [[1, 8, 8, 1], [2, 20, 7, 3], [13, 1, 1], [1, 32, 32, 1]])
def test_kinks_of_relu_are_met_in_the_same_tasks(widths: list[int], solver: Any, dtype: torch.dtype) -> None:
    problem = regression(widths, "relu", dtype, batch=3, points=(10, 11))
    rates = {name: 0.2 + torch.rand_like(value) for name, value in problem["params"].items()}
    arguments = {**problem, "solver": solver, "rates": rates}
    answered = amaml.meta_gradient(**arguments, length=1e-5)
    with disabled():
        assert distance(answered, amaml.meta_gradient(**arguments, length=1e-5)) < 1e-4
        first = failure_of(**arguments, length=1.0)  # it lists the tasks that met a kink first
    by_kernel = {failure.task: failure for failure in failure_of(**arguments, length=1.0).failures}
    for failure in first.failures:
        assert failure.code is by_kernel[failure.task].code is Result.KINK
        if dtype == torch.float64:  # float32's rounding decides which of several kinks is the first that is noticed
            assert failure.value == pytest.approx(by_kernel[failure.task].value, rel=1e-3)
            assert failure.time == pytest.approx(by_kernel[failure.task].time, rel=0.1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_is_as_accurate_as_its_rounding(solver: str) -> None:
    net = network([32, 32], torch.float32)
    support, query = amaml.regression_losses(net)
    tasks = cosines(4, 100, torch.float32)
    a, b = both(
        params=start(net), support_loss=support, query_loss=query, tasks=tasks, length=2.0, solver=SOLVERS[solver]
    )
    assert flat(a.grad).dtype == torch.float64
    assert a.loss.dtype == torch.float32
    assert distance(a, b) < 2e-4


@pytest.mark.parametrize(
    ("widths", "points"),
    [
        ([1, 1, 1], (1, 1)),
        ([1, 32, 32, 1], (100, 20)),
        ([7, 3, 2], (128, 129)),
        ([2, 5, 33, 6, 17, 4, 9, 3, 2, 1], (4, 9)),
        ([3, 257, 2], (1000, 3)),
        ([100, 40, 40, 1], (10, 15)),
        ([2, 1024, 5], (3, 70)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_widths_depths_and_numbers_of_points(
    widths: list[int], points: tuple[int, int], dtype: torch.dtype
) -> None:
    problem = regression(widths, "tanh", dtype, batch=2, points=points)
    a, b = both(**problem, length=0.08, solver=amaml.Heun(0.02))
    assert distance(a, b) < (1e-11 if dtype == torch.float64 else 1e-4)


WIDTHS = (1, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 128, 129)
POINTS = (1, 15, 16, 17, 100, 128, 129, 300)
"""Sizes around multiples of vectors of both precisions, of the kernel's tiles and of its chunks of points."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
def test_gradients_and_hessian_products_of_any_size(width: int, dtype: torch.dtype) -> None:
    # One Euler step of size 1 ends at θ − ∇L_sup(θ), and its reverse gives λ − ∇²L_sup(θ)λ. Widths and numbers of points
    # decide the memory layout of each layer, so every width is combined with itself, with narrow and with wide neighbours.
    for number, points in enumerate(POINTS):
        activation = ACTIVATIONS[(number + width) % 4]
        for widths in ([2, width, width, 3], [width, 9, width], [1, 40, width, 1], [2, 4, 4, width, 1]):
            problem = regression(widths, activation, dtype, batch=2, points=(points, POINTS[-1 - number]))
            found = amaml.meta_gradient(**problem, length=1.0, solver=amaml.Euler(1.0, guard=False))
            bound = 1e-12 if dtype == torch.float64 else 1e-5
            for got, expected in zip((found.adapted, found.per_task), by_autograd(problem), strict=True):
                distance = (flat(got, 1).double() - expected).norm()
                # With a dead ReLU the answer consists of rounding errors, of terms of the size of the targets.
                assert distance <= bound * (0.1 + expected.norm()), (widths, points, activation)


def by_autograd(problem: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """θ − ∇L_sup(θ), and λ − ∇²L_sup(θ)λ with λ = ∇L_qry there, one row for each task, in float64 by PyTorch's derivatives."""
    theta = {name: value.double().requires_grad_() for name, value in problem["params"].items()}
    ends, gradients = [], []
    for number in range(2):
        task = {name: value[number].double() for name, value in problem["tasks"].items()}
        slope = torch.autograd.grad(problem["support_loss"](theta, task), list(theta.values()), create_graph=True)
        end = {name: value - part for (name, value), part in zip(theta.items(), slope, strict=True)}
        gradient = torch.autograd.grad(problem["query_loss"](end, task), list(theta.values()))
        ends.append(torch.cat([value.detach().flatten() for value in end.values()]))
        gradients.append(torch.cat([part.flatten() for part in gradient]))
    return torch.stack(ends), torch.stack(gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_task_that_diverges_does_not_affect_the_next(dtype: torch.dtype) -> None:
    # One thread solves all three in the same buffers, which then contain NaN, also in the padding of vectors.
    problem = regression([3, 4, 4, 33, 1], dtype=dtype, batch=3, points=(5, 19))
    problem["tasks"]["query_x"][:2] = math.nan
    failure = failure_of(**problem, length=0.5, solver=amaml.Euler(0.1))
    assert [one.task for one in failure.failures] == [0, 1]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_problems(data: st.DataObject) -> None:
    draw = data.draw
    widths = draw(st.lists(st.integers(1, 40), min_size=3, max_size=6))
    problem = regression(
        widths,
        draw(st.sampled_from(ACTIVATIONS)),
        batch=draw(st.integers(1, 4)),
        points=(draw(st.integers(1, 40)), draw(st.integers(1, 40))),
        seed=draw(st.integers(0, 2**16)),
    )
    rates = {name: 0.2 + torch.rand_like(value) for name, value in problem["params"].items()}
    wanted = draw(st.sets(st.sampled_from(["length", "rates", "proximal"])))
    arguments: dict[str, Any] = {
        "solver": SOLVERS[draw(st.sampled_from(sorted(SOLVERS)))],
        "adjoint": amaml.Discrete(checkpoints=draw(st.none() | st.integers(1, 12))),
        "rates": draw(st.sampled_from([None, rates])),
        "proximal": draw(st.sampled_from([0.0, 0.5])),
        "proximal_in_query": draw(st.booleans()),
        "horizons": draw(
            st.sampled_from([[(0.6, 1.0)], [(0.2, 0.5), (0.7, 2.0)], [(0.1, 1.0), (0.2, -1.0), (0.6, 1.0)]])
        ),
        "wrt": wanted,
    }
    try:
        a, b = both(**problem, **arguments)
    except SolveError:  # a random network may be too stiff for a fixed step, on both paths
        failure = failure_of(**problem, **arguments)
        with disabled():
            assert failure_of(**problem, **arguments).code == failure.code
        return
    assert distance(a, b, tuple(wanted)) < 1e-8
    assert torch.equal(a.stats.steps, b.stats.steps)


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
@pytest.mark.parametrize("checkpoints", [1, 2, 3, 4, 7, 30])
def test_a_limit_on_checkpoints_costs_what_the_schedule_says(solver: str, checkpoints: int) -> None:
    problem = regression([1, 6, 1])
    adjoint = amaml.Discrete(checkpoints=checkpoints)
    a, b = both(**problem, horizons=[(1.0, 1.0), (3.0, 1.0)], solver=SOLVERS[solver], adjoint=adjoint)
    assert distance(a, b) < 1e-11
    assert torch.equal(a.stats.gradients, b.stats.gradients)
    assert torch.equal(a.stats.hvps, b.stats.hvps)


def test_evaluations_are_counted_exactly() -> None:
    problem = regression([1, 6, 1])
    solver = amaml.Euler(0.05, guard=False)
    a = amaml.meta_gradient(**problem, length=1.0, solver=solver)
    assert a.stats.gradients.tolist() == [20] * 3
    assert a.stats.hvps.tolist() == [20] * 3
    assert a.stats.lambda_max.isnan().all()
    with_length = amaml.meta_gradient(**problem, length=1.0, solver=solver, wrt=["length"])
    assert with_length.stats.gradients.tolist() == [40] * 3
    controlled = amaml.meta_gradient(**problem, length=1.0, solver=amaml.Dopri5(1e-4)).stats
    segments = (controlled.steps + 15) // 16  # of forward steps, which the adjoint recomputes
    attempts = controlled.steps + controlled.rejected
    assert torch.equal(controlled.gradients, 2 + 6 * attempts + segments + 6 * controlled.steps)
    assert bool(((controlled.hvps - 2) % 6 == 0).all())
    discrete = amaml.Discrete()
    adaptive = amaml.meta_gradient(**problem, length=1.0, solver=amaml.Dopri5(1e-4), adjoint=discrete).stats
    attempts = adaptive.steps + adaptive.rejected
    assert torch.equal(adaptive.gradients, 2 + 6 * attempts + 5 * adaptive.steps)
    assert bool((adaptive.hvps <= 12 + attempts + 6 * adaptive.steps).all())
    assert bool((adaptive.hvps >= 12 + 7 * adaptive.steps).all())


def test_many_steps_are_thinned_and_recomputed() -> None:
    problem = regression([4, 40, 40, 1], dtype=torch.float64, batch=1)
    a, b = both(**problem, length=2.0, solver=amaml.Euler(0.004))
    assert distance(a, b) < 1e-10
    assert int(a.stats.gradients) > int(a.stats.steps)
    unthinned = amaml.meta_gradient(**problem, length=0.1, solver=amaml.Euler(0.004))
    assert torch.equal(unthinned.stats.gradients, unthinned.stats.steps)


def test_adaptive_steps_are_thinned_when_they_turn_out_many() -> None:
    problem = regression([4, 40, 40, 1], dtype=torch.float64, batch=1)
    a, b = both(**problem, length=8.0, solver=amaml.Bosh3(1e-7))
    assert int(a.stats.steps) * 8 * 1881 > 2**20
    assert distance(a, b) < 1e-7


@pytest.mark.parametrize("method", [fomaml, reptile, imaml])
@pytest.mark.parametrize("solver", SOLVERS)
def test_methods_without_an_adjoint_go_forward_by_it(solver: str, method: Any) -> None:
    problem = regression([2, 20, 7, 3], "tanh", points=(30, 11))
    arguments: dict[str, Any] = {"horizons": [(0.4, 0.5), (1.0, 2.0)], "solver": SOLVERS[solver]}
    a = method(**problem, **arguments)
    with disabled():
        b = method(**problem, **arguments)
    assert not torch.equal(flat(a.adapted, 1), flat(b.adapted, 1))  # they round differently, so the kernel was used
    for name in ("per_task", "adapted"):
        assert torch.allclose(flat(getattr(a, name), 1), flat(getattr(b, name), 1), rtol=1e-9, atol=1e-12)
    assert torch.allclose(a.loss, b.loss, rtol=1e-11)
    for name in ("steps", "rejected", "hvps"):
        assert torch.equal(getattr(a.stats, name), getattr(b.stats, name)), name
    # Whenever tasks leave the computation, the batched path evaluates an adaptive solver's slope once more.
    more = b.stats.gradients - a.stats.gradients
    assert bool((more >= 0).all() and (more <= 4 * (solver in ("bosh3", "dopri5"))).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS)
def test_bits_do_not_depend_on_threads(solver: str, dtype: torch.dtype) -> None:
    problem = regression([2, 9, 1], dtype=dtype, batch=9)
    arguments: dict[str, Any] = {"length": 1.0, "solver": SOLVERS[solver], "wrt": ["rates"], "proximal": 0.1}
    a = amaml.meta_gradient(**problem, **arguments)
    torch.set_num_threads(2)
    b = amaml.meta_gradient(**problem, **arguments)
    assert torch.equal(flat(a.per_task, 1), flat(b.per_task, 1))
    assert torch.equal(a.loss, b.loss)
    assert torch.equal(flat(a.rates), flat(b.rates))
    # Nor on the other tasks of the batch.
    problem["tasks"] = {name: value[4:5] for name, value in problem["tasks"].items()}
    alone = amaml.meta_gradient(**problem, **arguments)
    assert torch.equal(flat(alone.per_task, 1)[0], flat(a.per_task, 1)[4])


def failure_of(**arguments: Any) -> SolveError:
    with pytest.raises(SolveError) as failure:
        amaml.meta_gradient(**arguments)
    return failure.value


@pytest.mark.parametrize(
    ("solver", "activation", "spoil", "code"),
    [
        (amaml.Euler(0.5), "tanh", "stiff", Result.STABILITY_LIMIT),
        (amaml.RK4(1.0), "softplus", "stiff", Result.STABILITY_LIMIT),
        (amaml.Euler(0.5, guard=False), "relu", "stiff", Result.NON_FINITE),
        (amaml.Euler(0.05), "tanh", "support_x", Result.NON_FINITE),
        (amaml.Heun(0.05), "relu", "query_y", Result.NON_FINITE),
        (amaml.Dopri5(1e-5), "tanh", "support_y", Result.NON_FINITE),
        (amaml.Dopri5(1e-5, guard=False), "sigmoid", "support_x", Result.NON_FINITE),
        (amaml.Bosh3(1e-5), "softplus", "query_x", Result.NON_FINITE),
        (amaml.Dopri5(1e-8, max_steps=4), "tanh", "", Result.BUDGET_SPENT),
    ],
)
def test_the_same_failures_with_the_same_sentences(solver: Any, activation: str, spoil: str, code: Result) -> None:
    problem = regression([1, 8, 1], activation)
    if spoil == "stiff":
        problem["tasks"]["support_x"][1] *= 30
    elif spoil:
        problem["tasks"][spoil][1, 2] = math.nan
    failure = failure_of(**problem, solver=solver, length=20.0)
    with disabled():
        expected = failure_of(**problem, solver=solver, length=20.0)
    assert failure.code == code
    assert [(f.code, f.task) for f in failure.failures] == [(f.code, f.task) for f in expected.failures]
    assert str(failure) == str(expected)


def test_tensors_in_any_state_are_safe() -> None:
    problem = regression([2, 8, 3], batch=4)
    expected = amaml.meta_gradient(**problem, length=1.0)
    tasks = problem["tasks"]
    strange = {
        "support_x": tasks["support_x"].mT.contiguous().mT.requires_grad_(),
        "support_y": torch.cat([tasks["support_y"]] * 2, dim=2)[:, :, :3],
        "query_x": tasks["query_x"].clone().requires_grad_(),
        "query_y": tasks["query_y"].flip(0).flip(0),
    }
    params = {name: value.clone().requires_grad_() for name, value in problem["params"].items()}
    params["0.weight"] = problem["params"]["0.weight"].mT.contiguous().mT.requires_grad_()
    again = amaml.meta_gradient(**{**problem, "tasks": strange, "params": params}, length=1.0)
    assert torch.equal(flat(again.per_task, 1), flat(expected.per_task, 1))
    assert not again.loss.requires_grad
    expanded = {name: value[:1].expand_as(value) for name, value in tasks.items()}
    alike = amaml.meta_gradient(**{**problem, "tasks": expanded}, length=1.0)
    assert torch.equal(flat(alike.per_task, 1)[0], flat(expected.per_task, 1)[0])
    assert torch.equal(flat(alike.per_task, 1)[0], flat(alike.per_task, 1)[3])


def test_problems_that_the_kernel_can_not_solve_use_the_batched_path() -> None:
    problem = regression([1, 8, 1])
    assert backend().startswith("kernel")
    for adjoint in (amaml.Interpolated("heun"), amaml.Backsolve()):
        a, b = both(**problem, length=0.3, solver=amaml.Dopri5(1e-6), adjoint=adjoint)
        assert torch.equal(flat(a.per_task, 1), flat(b.per_task, 1))
    wrapped = {**problem, "support_loss": lambda params, task: problem["support_loss"](params, task) * 1.0}
    a, b = both(**wrapped, length=0.3, solver=amaml.Euler(0.1))
    assert torch.equal(flat(a.per_task, 1), flat(b.per_task, 1))


def posed(**changes: Any) -> GradientProblem:
    """A problem of an MLP 2-5-1 with three tasks, with some of its parts replaced."""
    given = regression([2, 5, 1])
    problem, _ = pose(**given, length=0.5, solver=amaml.Euler(0.05))
    return replace(problem, **changes)


def with_rows(widths: tuple[int, ...] = (2, 5, 1), **changes: torch.Tensor) -> MLPDerivatives:
    tasks = {**regression([2, 5, 1])["tasks"], **changes}
    return MLPDerivatives(
        widths, "tanh", (tasks["support_x"], tasks["support_y"]), (tasks["query_x"], tasks["query_y"])
    )


MISFITS: list[tuple[GradientProblem, str]] = [
    (posed(theta=torch.zeros(20, dtype=torch.float64)), r"theta has shape \[20\], but widths \[2, 5, 1\] need \[21\]"),
    (posed(rates=torch.ones(3, dtype=torch.float64)), r"rates has shape \[3\]"),
    (posed(batch=4), "4 tasks of a network"),
    (posed(derivatives=with_rows((2, 6, 1))), r"theta has shape \[21\], but widths \[2, 6, 1\] need \[25\]"),
    (
        posed(derivatives=with_rows(support_y=torch.zeros(3, 9, 1, dtype=torch.float64))),
        "support_x and support_y have shapes",
    ),
    (
        posed(derivatives=with_rows(query_x=torch.zeros(3, 7, 3, dtype=torch.float64))),
        "query_x and query_y have shapes",
    ),
]


@pytest.mark.parametrize(("problem", "sentence"), MISFITS, ids=[sentence for _, sentence in MISFITS])
def test_arrays_of_other_sizes_than_the_network_are_refused(problem: GradientProblem, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        kernel_solve.solve(problem, set())


@pytest.mark.parametrize("field", ["parameters", "activation", "layers"])
def test_the_kernel_itself_refuses_inconsistent_sizes(field: str, kernel: library.Kernel) -> None:
    problem = posed()
    assert isinstance(problem.derivatives, MLPDerivatives)
    asked = kernel_solve._ask(problem, set(), backward=True)
    assert asked is not None
    setattr(asked.c, field, getattr(asked.c, field) + (10 if field == "activation" else -1))
    with pytest.raises(ValueError, match="sizes don't match its network"):
        asked.carried()
