"""The GPU kernel without a GPU: its source runs on a CPU, with every thread of a block (see cuda_block.cpp)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import amaml
from amaml.flow.result import SolveError
from amaml.kernel import cuda, library, solve
from tests.amaml.kernel_problems import SOLVERS, both, distance, regression
from tests.amaml.problems import apart, flat

ORDERS = (0, 1, 2)
"""The orders in which threads run: by number, backwards, shuffled."""


class Shape(NamedTuple):
    widths: list[int]
    activation: Any
    points: tuple[int, int]


RAGGED = Shape([2, 9, 6, 3], "tanh", (130, 7))
"""Widths that aren't multiples of a tile's four; the support set in two chunks."""
OTHERS = {
    "euler": Shape([1, 32, 32, 1], "tanh", (100, 30)),
    "heun": Shape([3, 5, 2], "sigmoid", (1, 1)),
    "rk4": Shape([2, 17, 4, 9, 3], "relu", (16, 17)),
    "bosh3": Shape([20, 16, 100, 17], "softplus", (300, 19)),
    "dopri5": Shape([5, 33, 1], "tanh", (30, 128)),
}


def compiled(compiler: str, folder: Path, shape: Shape) -> Path:
    made = folder / "block.so"
    chunks = [-(-count // -(-count // cuda.CHUNKS[0])) for count in shape.points]
    defined = {
        "THREADS": cuda.THREADS, "WIDTHS": ",".join(map(str, shape.widths)), "ACTIVATION": shape.activation.title(),
        "SUPPORT": chunks[0], "QUERY": chunks[1],
    }  # fmt: skip
    source = Path(__file__).with_name("cuda_block.cpp")
    options = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas", "-fsanitize=alignment,bounds,shift"]
    places = [f"-I{cuda.HERE}", f"-I{cuda.HERE / 'cuda'}"]
    given = [f"-DAMAML_{name}={value}" for name, value in defined.items()]
    subprocess.run([compiler, *options, *places, *given, str(source), "-o", str(made)], check=True)
    return made


def put_in_place(made: Path) -> library.Kernel:
    library.cached = lambda: made  # type: ignore[assignment]
    library._loaded.cache_clear()
    kernel = library.kernel()
    assert isinstance(kernel, library.Kernel)
    return kernel


@pytest.fixture(scope="module")
def made(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(compiler, tmp_path_factory.mktemp("block"), RAGGED)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    own = library.cached
    yield
    library.cached = own
    library._loaded.cache_clear()


@pytest.fixture
def block(made: Path) -> library.Kernel:
    return put_in_place(made)


def answers(
    block: library.Kernel,
    shape: Shape,
    horizons: tuple[tuple[float, float], ...] = ((0.1, 1.0), (0.2, 0.5)),
    **options: Any,
) -> list[amaml.MetaGradient]:
    """One answer for each order of the threads, each compared with the batched path's."""
    problem = regression(shape.widths, shape.activation, points=shape.points, batch=1)
    rates = {name: torch.full_like(value, 0.7) for name, value in problem["params"].items()}
    found = []
    for order in ORDERS:
        block.library.amaml_order(order)
        by_block, batched = both(
            **problem, rates=rates, proximal=0.3, proximal_in_query=True, horizons=horizons,
            wrt=["length", "rates", "proximal"], **options,
        )  # fmt: skip
        assert distance(by_block, batched, ("length", "rates", "proximal")) < 1e-12
        found.append(by_block)
    return found


def same(one: amaml.MetaGradient, other: amaml.MetaGradient) -> bool:
    pairs = ((one.per_task, other.per_task), (one.adapted, other.adapted), (one.rates, other.rates))
    return all(torch.equal(flat(left), flat(right)) for left, right in pairs)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "checkpoints"), [("heun", None), ("dopri5", 3), ("interpolated", None)])
def test_whatever_the_order_of_threads_the_answer_is_the_batched_paths(
    block: library.Kernel, name: str, checkpoints: int | None
) -> None:
    kind = amaml.Interpolated if name == "interpolated" else amaml.Discrete
    solver = SOLVERS.get(name, SOLVERS["bosh3"])
    first, *others = answers(block, RAGGED, solver=solver, adjoint=kind(checkpoints=checkpoints))
    assert all(same(first, other) for other in others)


@pytest.mark.parametrize("every", [2, 3, 7])
def test_a_missing_barrier_changes_the_answer(block: library.Kernel, every: int) -> None:
    """This shows that the test above can fail."""
    problem = regression(RAGGED.widths, RAGGED.activation, points=RAGGED.points, batch=1)
    right = amaml.meta_gradient(**problem, length=0.2, solver=SOLVERS["euler"])
    block.library.amaml_leave_out(every)
    try:
        found = []
        for order in ORDERS:
            block.library.amaml_order(order)
            answer = amaml.meta_gradient(**problem, length=0.2, solver=SOLVERS["euler"])
            found.append(flat(answer.per_task, 1))
    except SolveError:
        return
    finally:
        block.library.amaml_leave_out(0)
        block.library.amaml_order(0)
    assert not all(torch.equal(flat(right.per_task, 1), one) for one in found)


def test_a_failure_is_the_same_as_on_the_other_paths(block: library.Kernel) -> None:
    problem = regression(RAGGED.widths, RAGGED.activation, points=RAGGED.points, batch=2)
    said = []
    for path in (nullcontext(), library.disabled()):
        with path, pytest.raises(SolveError) as caught:
            amaml.meta_gradient(**problem, length=1e3, solver=amaml.Euler(1e3))
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "task 0" in said[0]


def test_a_task_that_needs_more_room_for_steps_is_solved_again(
    block: library.Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = regression(RAGGED.widths, RAGGED.activation, points=RAGGED.points, batch=2)
    options: dict[str, Any] = {"length": 1.0, "solver": amaml.Dopri5(1e-6), "adjoint": amaml.Interpolated()}
    whole = amaml.meta_gradient(**problem, **options)
    assert int(whole.stats.steps.max()) > 2
    monkeypatch.setattr(solve, "_ROOM", 1)
    assert torch.equal(flat(amaml.meta_gradient(**problem, **options).per_task, 1), flat(whole.per_task, 1))


def test_single_precision(block: library.Kernel) -> None:
    double = regression(RAGGED.widths, RAGGED.activation, points=RAGGED.points, batch=2)
    single = regression(RAGGED.widths, RAGGED.activation, torch.float32, points=RAGGED.points, batch=2)
    exact = flat(amaml.meta_gradient(**double, length=0.5, solver=SOLVERS["rk4"]).per_task, 1)
    assert apart(flat(amaml.meta_gradient(**single, length=0.5, solver=SOLVERS["rk4"]).per_task, 1), exact) < 1e-5


def test_python_computes_a_blocks_shared_memory(block: library.Kernel) -> None:
    assert 4 * cuda.numbers_in_shared_memory(RAGGED.widths, 65) == block.library.amaml_shared_bytes_float32()


@pytest.mark.nightly
@pytest.mark.parametrize("name", OTHERS)
def test_every_solver_and_activation(compiler: str, tmp_path: Path, name: str) -> None:
    block = put_in_place(compiled(compiler, tmp_path, OTHERS[name]))
    adjoints: list[Any] = [amaml.Discrete(), amaml.Discrete(checkpoints=3)]
    if not SOLVERS[name].fixed:
        adjoints += [amaml.Interpolated(), amaml.Interpolated(checkpoints=3)]
    for adjoint in adjoints:
        first, *others = answers(block, OTHERS[name], solver=SOLVERS[name], adjoint=adjoint)
        assert all(same(first, other) for other in others)
