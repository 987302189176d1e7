"""Results and errors can be copied, pickled and sent between processes; a failure's remedy helps all tasks that failed."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import re
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import amaml
from amaml.flow.result import Failure, Result, SolveError
from amaml.kernel import disabled
from amaml.methods.fomaml.gradient import fomaml
from tests.amaml.kernel_problems import regression
from tests.amaml.problems import flat


def answer(**options: Any) -> amaml.MetaGradient:
    given: dict[str, Any] = {"length": 0.5, "solver": amaml.Euler(0.05), **options}
    return amaml.meta_gradient(**regression([2, 5, 1]), **given)


def gradient_of(seed: int) -> Tensor:
    torch.set_num_threads(1)
    problem = regression([2, 5, 1], seed=seed)
    return flat(amaml.meta_gradient(**problem, length=0.5, solver=amaml.Euler(0.05)).grad)


def failing(step: float) -> Tensor:
    torch.set_num_threads(1)
    x = torch.full((2, 10, 4), 50.0)
    return amaml.meta_gradient(
        {"w": torch.zeros(4, 1)},
        lambda params, rows: (rows @ params["w"] - 1).square().mean(),
        lambda params, rows: (rows @ params["w"]).square().mean(),
        x,
        length=1.0,
        solver=amaml.Euler(step),
    ).loss


def solve_error() -> SolveError:
    with pytest.raises(SolveError) as caught:
        failing(0.1)
    return caught.value


def pickled(one: Any) -> Any:
    return pickle.loads(pickle.dumps(one))  # noqa: S301 - our own bytes


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickled])
def test_errors_can_be_copied(way: Any) -> None:
    error = solve_error()
    again = way(error)
    assert type(again) is SolveError
    assert (str(again), again.code, again.failures) == (str(error), error.code, error.failures)
    assert way(error.failures[0]) == error.failures[0]


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickled])
def test_answers_can_be_copied(way: Any) -> None:
    own = answer(wrt=["rates"], certify=True)
    again = way(own)
    assert type(again) is amaml.MetaGradient
    assert torch.equal(flat(again.per_task), flat(own.per_task))
    assert torch.equal(flat(again.rates), flat(own.rates))
    assert torch.equal(again.stats.steps, own.stats.steps)
    assert torch.equal(again.certificate.error, own.certificate.error)
    first_order = fomaml(**regression([2, 5, 1]), length=0.5, solver=amaml.Euler(0.05))
    assert torch.equal(flat(way(first_order).grad), flat(first_order.grad))


def test_a_copy_computes_missing_derivatives_and_a_pickled_answer_names_the_remedy() -> None:
    own = answer()
    assert torch.equal(copy.copy(own).proximal, answer().proximal)
    assert torch.equal(copy.deepcopy(own).length, answer().length)
    again = pickled(pickled(own))
    with pytest.raises(
        ValueError, match=r"by proximal wasn't computed before .*: call meta_gradient with wrt=\['proximal'\]"
    ):
        _ = again.proximal


def test_a_derivative_is_solved_for_once_and_changes_nothing_else() -> None:
    calls = 0
    problem = regression([2, 5, 1])
    support = problem["support_loss"]

    def counted(params: Any, task: Any) -> Tensor:
        nonlocal calls
        calls += 1
        loss: Tensor = support(params, task)
        return loss

    options: dict[str, Any] = {"length": 0.5, "proximal": 0.1, "solver": amaml.Dopri5(1e-4, 1e-4)}
    own = amaml.meta_gradient(**{**problem, "support_loss": counted}, **options)
    first = flat(own.rates), own.proximal
    solved = calls
    assert torch.equal(flat(own.rates), first[0])
    assert torch.equal(own.proximal, first[1])
    assert calls == solved
    for _ in own.certify():
        pass
    certified = amaml.meta_gradient(**{**problem, "support_loss": counted}, **options, certify=True)
    assert own.certificate is not None
    assert certified.certificate is not None
    assert torch.equal(own.certificate.error, certified.certificate.error)


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_processes_return_results_and_errors(method: str) -> None:
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert torch.equal(pool.submit(gradient_of, 3).result(60), gradient_of(3))
        with pytest.raises(SolveError, match="use a step below"):
            pool.submit(failing, 0.1).result(60)
    with context.Pool(1) as workers, pytest.raises(SolveError, match="use a step below"):
        workers.map_async(failing, [0.1]).get(60)


def spread(steepest: float) -> Tensor:
    """Six least-squares tasks whose Hessians differ by a factor of twelve."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(2, steepest, 6, dtype=torch.float64)[torch.tensor([2, 0, 4, 5, 1, 3])]
    return torch.randn(6, 20, 4, generator=generator, dtype=torch.float64) * scales[:, None, None]


def least_squares(params: dict[str, Tensor], x: Tensor) -> Tensor:
    return 0.5 * (x @ params["w"] - 1).square().mean()


def solve_with(step: float, x: Tensor, **options: Any) -> amaml.MetaGradient:
    theta = {"w": torch.zeros(4, 1, dtype=torch.float64)}
    given = {"length": 1.0, **options}
    return amaml.meta_gradient(theta, least_squares, least_squares, x, solver=amaml.Euler(step), **given)


@pytest.mark.parametrize("step", [1.0, 0.2, 0.05])
@pytest.mark.parametrize("options", [{}, {"length": None, "horizons": [(0.21, 1.0), (1.0, 1.0)]}], ids=["one", "two"])
def test_the_first_remedy_helps_all_that_failed(step: float, options: dict[str, Any]) -> None:
    x = spread(7.0)
    with pytest.raises(SolveError) as caught:
        solve_with(step, x, **options)
    error = caught.value
    (named,) = re.findall(r"use a step below ([\d.e-]+)", str(error))
    assert float(named) == pytest.approx(min(failure.bound for failure in error.failures), rel=5e-3)
    curvature = torch.linalg.eigvalsh(x.mT @ x / 20)[:, -1]
    failed = torch.isin(torch.arange(6), torch.tensor([failure.task for failure in error.failures]))
    product = step * curvature
    assert failed[product > 2.2].all()  # the power iteration's estimate is too low by up to a tenth
    assert not failed[product <= 2].any()
    assert len(error.failures) == 1 or f"({len(error.failures)} tasks failed)" in str(error)
    solve_with(0.999 * float(named), x, **options)


@pytest.mark.usefixtures("kernel")
def test_both_paths_report_the_same_failures() -> None:
    problem = regression([2, 8, 1], batch=4, points=(20, 20))
    problem["tasks"]["support_x"] *= torch.tensor([1.0, 8.0, 3.0, 10.0], dtype=torch.float64)[:, None, None]
    problem["tasks"]["support_y"][0] = float("nan")
    errors = []
    for path in (torch.no_grad, disabled):  # no_grad changes nothing, so the kernel is used
        with path(), pytest.raises(SolveError) as caught:
            amaml.meta_gradient(**problem, length=2.0, solver=amaml.Euler(0.5))
        errors.append(caught.value)
    by_kernel, batched = errors
    assert len(by_kernel.failures) > 1
    for one, other in zip(by_kernel.failures, batched.failures, strict=True):
        assert (one.code, one.task) == (other.code, other.task)
        assert one.time == pytest.approx(other.time, rel=1e-12)
        assert one.bound == pytest.approx(other.bound, rel=1e-6, nan_ok=True)


def test_the_message_is_that_of_the_hardest_among_equal_failures() -> None:
    failures = [
        Failure(Result.STABILITY_LIMIT, 0, 0.1, 3.0, 0.2),
        Failure(Result.STABILITY_LIMIT, 1, 0.2, 9.0, 0.1),
        Failure(Result.NON_FINITE, 2, 0.0),
        Failure(Result.STABILITY_LIMIT, 3, 0.0, 2.5, 0.3),
    ]
    error = SolveError(failures)
    assert str(error).startswith("task 1 at t=0.2")
    assert str(error).endswith("(4 tasks failed)")
    assert error.failures == failures
    assert str(SolveError([Failure(Result.STABILITY_LIMIT, 5, 0.3, 4.0)])).startswith(
        "task 5 at t=0.3: the flow became stiff so fast"
    )
