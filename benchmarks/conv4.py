"""Seconds for a meta-gradient of the convolutional network, with derivatives written out and traced by torch.func, in turn.

Few-shot classification of random pictures, exact MAML: 20 Euler steps, float32, on one thread and on all.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import amaml
from amaml.models.conv4 import Conv4
from amaml.models.losses import classification_losses
from benchmarks.record import arguments, in_turn, threads

REPEATS = 7
BUDGET = 12.0
"""Seconds for each case."""


class Traced(Conv4):
    """The same network as another type, for which there are no formulas."""


class Case(NamedTuple):
    """A setting in which a network is trained."""

    picture: tuple[int, int, int]
    filters: int
    ways: int
    shots: int
    queries: int
    tasks: int
    step: float = 0.01

    def __str__(self) -> str:
        return (
            f"{self.ways}-way {self.shots}-shot, {self.queries} queries a class, {self.tasks} tasks, "
            f"{' × '.join(map(str, self.picture))}, {self.filters} filters"
        )


CASES = [
    Case((1, 8, 8), 16, ways=5, shots=5, queries=15, tasks=4),
    Case((1, 8, 8), 16, ways=5, shots=1, queries=5, tasks=16),
    Case((1, 28, 28), 32, ways=5, shots=1, queries=5, tasks=4, step=0.002),
    Case((3, 84, 84), 32, ways=5, shots=1, queries=1, tasks=1, step=0.002),
]


def drawn(case: Case) -> dict[str, Tensor]:
    """Pictures of noise, the same number for each class."""
    generator = torch.Generator().manual_seed(0)
    tasks = {}
    for rows, count in (("support", case.shots), ("query", case.queries)):
        points, pixels = case.ways * count, case.picture[0] * case.picture[1] * case.picture[2]
        tasks[f"{rows}_x"] = torch.rand(case.tasks, points, pixels, generator=generator)
        tasks[f"{rows}_y"] = torch.eye(case.ways).repeat(case.tasks, count, 1)
    return tasks


def solve(net: Conv4, tasks: dict[str, Tensor], steps: int, step: float) -> Tensor:
    found = amaml.meta_gradient(
        dict(net.named_parameters()), *classification_losses(net), tasks, length=steps * step, solver=amaml.Euler(step)
    )
    return torch.cat([value.flatten() for value in found.grad.values()])


def compared(case: Case, *, steps: int, repeats: int, budget: float) -> dict[str, Any]:
    """Times both on one thread and on all; `difference` is relative."""
    torch.manual_seed(0)
    net, traced, tasks = (
        Conv4(case.picture, case.filters, case.ways),
        Traced(case.picture, case.filters, case.ways),
        drawn(case),
    )
    traced.load_state_dict(net.state_dict())
    cases = {
        "written out": partial(solve, net, tasks, steps, case.step),
        "traced": partial(solve, traced, tasks, steps, case.step),
    }
    result: dict[str, Any] = {}
    for count in sorted({1, torch.get_num_threads()}):
        with threads(count):
            timings = in_turn(cases, repeats=repeats, budget=budget)
        one, other = timings["written out"], timings["traced"]
        result[f"{count} threads"] = {
            **{name: timing.summary() for name, timing in timings.items()},
            "speedup": other.median / one.median,
            "difference": float((one.value - other.value).norm() / other.value.norm()),
        }
        print(
            f"{case}, {count} threads: {one.median:.4f} s, traced {other.median:.4f} s, {other.median / one.median:.1f} times"
        )
    return result


def main() -> None:
    run = arguments("conv4")
    cases = CASES[:1] if run.quick else CASES
    steps, repeats, budget = (2, 1, 0.1) if run.quick else (20, REPEATS, BUDGET)
    run.write({str(case): compared(case, steps=steps, repeats=repeats, budget=budget) for case in cases})


if __name__ == "__main__":
    main()
