"""Small evaluations take one of PyTorch's threads, and leave the number as it was."""

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
    """The numbers of threads that a loss of so many parameters finds, two tasks of so many points each."""
    found = set()

    def loss(u: Tensor, task: Tensors) -> Tensor:
        found.add(torch.get_num_threads())
        if fails:
            raise ZeroDivisionError
        return (u.sum() - task["y"]).square().mean() / len(u)

    tasks = {"y": torch.zeros(2, points), "weight": torch.ones(2)}
    amaml.meta_gradient(torch.ones(parameters), loss, loss, tasks, length=0.02, solver=amaml.Euler(0.01))
    return found


def test_small_work_takes_one_thread() -> None:
    assert seen(100, 50) == {1}
    assert torch.get_num_threads() == 3


def test_large_work_takes_all() -> None:
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
