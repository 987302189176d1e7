"""Small evaluations use one of PyTorch's threads, and restore the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import amaml
from tests.amaml.problems import Tensors


@pytest.fixture(autouse=True)
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def seen(parameters: int, points: int, *, fails: bool = False) -> set[int]:
    """The numbers of threads during a loss with this many parameters, for two tasks with this many points each."""
    found = set()

    def loss(u: Tensor, task: Tensors) -> Tensor:
        found.add(torch.get_num_threads())
        if fails:
            raise ZeroDivisionError
        return (u.sum() - task["y"]).square().mean() / len(u)

    tasks = {"y": torch.zeros(2, points), "weight": torch.ones(2)}
    amaml.meta_gradient(torch.ones(parameters), loss, loss, tasks, length=0.02, solver=amaml.Euler(0.01))
    return found


def test_small_work_uses_one_thread() -> None:
    assert seen(100, 50) == {1}
    assert torch.get_num_threads() == 3


def test_large_work_uses_all_threads() -> None:
    assert seen(1000, 500) == {3}


def test_the_number_comes_back_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError):
        seen(100, 50, fails=True)
    assert torch.get_num_threads() == 3


def test_the_number_comes_back_after_solves_of_several_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: seen(100, 50), range(16)))
        after = set(pool.map(lambda _: torch.get_num_threads(), range(16)))
    assert all(1 in one for one in found)
    assert after == {3}
    assert torch.get_num_threads() == 3
