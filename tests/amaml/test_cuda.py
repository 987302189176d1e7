"""A GPU gives the same results as the CPU: every solver and adjoint in float64, memory, and training that resumes to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import amaml
from amaml.kernel import backend
from amaml.kernel.library import disabled
from amaml.models.conv4.module import Conv4
from amaml.models.losses import classification_losses
from amaml.run.learned_model import load
from amaml.run.training import OutOfMemory, Training, train
from amaml.spec import JobSpec
from tests.amaml.jobs import bits, sha256, small
from tests.amaml.kernel_problems import regression
from tests.amaml.problems import Tensors, apart, cosines, flat, network, start
from tests.amaml.quadratics import quadratic, quadratic_query, quadratic_support

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]

CUDA = torch.device("cuda", 0)


def moved(tensors: Tensors, to: torch.device = CUDA) -> Tensors:
    return {name: tensor.to(to) for name, tensor in tensors.items()}


SOLVERS = [
    amaml.Euler(step=0.01),
    amaml.Heun(step=0.01),
    amaml.RK4(step=0.01),
    amaml.Bosh3(rtol=1e-7, atol=1e-7),
    amaml.Dopri5(rtol=1e-8, atol=1e-8),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("checkpoints", [None, 4])
def test_discrete_gradients_are_the_cpus(solver: Any, checkpoints: Any) -> None:
    net = network([16, 16])
    tasks, theta = cosines(5, 20), start(net)
    losses = amaml.regression_losses(net)
    adjoint = amaml.Discrete(checkpoints=checkpoints)
    here = amaml.meta_gradient(theta, *losses, tasks, length=0.5, solver=solver, adjoint=adjoint)
    there = amaml.meta_gradient(moved(theta), *losses, moved(tasks), length=0.5, solver=solver, adjoint=adjoint)
    assert all(tensor.is_cuda for tensor in (*there.grad.values(), *there.per_task.values(), there.loss))
    # With adaptive steps, rounding may change the steps: then both are as close as the tolerance.
    bound = 1e-5 if hasattr(solver, "rtol") else 1e-10
    assert apart(flat(moved(there.per_task, torch.device("cpu")), 1), flat(here.per_task, 1)) < bound
    assert apart(there.loss.cpu(), here.loss) < bound


@pytest.mark.parametrize(
    "adjoint",
    [amaml.Interpolated("adaptive"), amaml.Interpolated("heun"), amaml.Interpolated("euler"), amaml.Backsolve()],
    ids=["adaptive", "heun", "euler", "backsolve"],
)
def test_other_adjoints_are_the_cpus(adjoint: Any) -> None:
    net = network([8])
    tasks, theta = cosines(3, 10), start(net)
    losses = amaml.regression_losses(net)
    solver = amaml.Dopri5(rtol=1e-8, atol=1e-8)
    here = amaml.meta_gradient(theta, *losses, tasks, length=0.2, solver=solver, adjoint=adjoint)
    there = amaml.meta_gradient(moved(theta), *losses, moved(tasks), length=0.2, solver=solver, adjoint=adjoint)
    assert apart(flat(moved(there.per_task, torch.device("cpu")), 1), flat(here.per_task, 1)) < 1e-5


SHAPES: dict[str, tuple[Any, Any, list[int], tuple[int, int]]] = {
    "euler": (SOLVERS[0], "tanh", [1, 32, 32, 1], (100, 30)),
    "heun": (SOLVERS[1], "sigmoid", [3, 5, 2], (1, 1)),
    "rk4": (SOLVERS[2], "relu", [2, 17, 4, 9, 3], (16, 17)),
    "bosh3": (amaml.Bosh3(1e-4), "softplus", [20, 16, 100, 17], (300, 19)),
    "dopri5": (amaml.Dopri5(1e-4), "tanh", [5, 33, 1], (30, 128)),
}


@pytest.mark.parametrize("checkpoints", [None, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernel_gives_the_cpus_numbers(name: str, checkpoints: int | None) -> None:
    solver, activation, widths, points = SHAPES[name]
    assert backend(CUDA).startswith("cuda kernel")
    problem = regression(widths, activation, points=points)
    rates = {key: torch.full_like(value, 0.7) for key, value in problem["params"].items()}
    options: dict[str, Any] = {
        "solver": solver, "proximal": 0.3, "proximal_in_query": True, "horizons": [(0.2, 1.0), (0.5, 0.5)],
        "wrt": ["length", "rates", "proximal"],
    }  # fmt: skip
    adjoints: list[Any] = [amaml.Discrete(checkpoints=checkpoints)]
    if not solver.fixed:
        adjoints.append(amaml.Interpolated(checkpoints=checkpoints))
    for adjoint in adjoints:
        here = amaml.meta_gradient(**problem, rates=rates, adjoint=adjoint, **options)
        on_device = {**problem, "params": moved(problem["params"]), "tasks": moved(problem["tasks"])}
        there = amaml.meta_gradient(**on_device, rates=moved(rates), adjoint=adjoint, **options)
        pairs = [(there.per_task, here.per_task), (there.adapted, here.adapted), (there.rates, here.rates)]
        for one, other in pairs:
            assert apart(flat(moved(one, torch.device("cpu"))), flat(other)) < 1e-12  # type: ignore[arg-type]
        for left, right in ((there.length, here.length), (there.proximal, here.proximal), (there.loss, here.loss)):
            torch.testing.assert_close(left.cpu(), right, rtol=1e-11, atol=1e-13)  # type: ignore[union-attr]


@pytest.mark.parametrize("solver", [amaml.Euler(0.01), amaml.Dopri5(rtol=1e-5)], ids=["euler", "dopri5"])
def test_a_tasks_bits_depend_on_no_other_task(solver: Any) -> None:
    net = network([32, 32], dtype=torch.float32)
    theta, tasks = moved(start(net)), moved(cosines(264, 100, dtype=torch.float32))
    losses = amaml.regression_losses(net)

    def solved(rows: Any) -> torch.Tensor:
        chosen = {name: tensor[rows] for name, tensor in tasks.items()}
        return flat(amaml.meta_gradient(theta, *losses, chosen, length=0.5, solver=solver).per_task, 1)

    whole, order = solved(slice(None)), torch.randperm(264, generator=torch.Generator().manual_seed(0))
    assert torch.equal(solved(slice(0, 1)), whole[:1])
    assert torch.equal(solved(slice(0, 16)), whole[:16])
    assert torch.equal(solved(order), whole[order.to(CUDA)])
    assert torch.equal(solved(slice(None)), whole)


def test_without_the_kernel_the_batched_path_gives_the_same_numbers() -> None:
    net = network([16, 16])
    tasks, theta = moved(cosines(5, 20)), moved(start(net))
    losses = amaml.regression_losses(net)
    found = amaml.meta_gradient(theta, *losses, tasks, length=0.5, solver=amaml.RK4(0.02))
    with disabled():
        assert backend(CUDA) == "batched"
        batched = amaml.meta_gradient(theta, *losses, tasks, length=0.5, solver=amaml.RK4(0.02))
    assert apart(flat(found.per_task, 1), flat(batched.per_task, 1)) < 1e-12


def test_any_loss_with_sensitivities_and_a_certificate() -> None:
    tasks = quadratic(4, 6, condition=10.0)
    theta = torch.linspace(-1, 1, 6, dtype=torch.float64)
    options: dict[str, Any] = {"length": 0.5, "solver": amaml.RK4(step=0.01), "proximal": 0.3, "certify": True}
    here = amaml.meta_gradient(theta, quadratic_support, quadratic_query, tasks, **options)
    there = amaml.meta_gradient(theta.to(CUDA), quadratic_support, quadratic_query, moved(tasks), **options)
    for name in ("grad", "per_task", "length", "rates", "proximal"):
        a, b = getattr(there, name), getattr(here, name)
        assert a.is_cuda, name
        torch.testing.assert_close(a.cpu(), b, rtol=1e-10, atol=1e-12)
    assert there.certificate is not None
    assert float(there.certificate.error.max()) < 1e-8


def test_float32_is_certified() -> None:
    net = network([32, 32], dtype=torch.float32)
    tasks = cosines(8, 50, dtype=torch.float32)
    found = amaml.meta_gradient(
        moved(start(net)), *amaml.regression_losses(net), moved(tasks), length=1.0, certify=True
    )
    assert found.certificate is not None
    assert float(found.certificate.error.max()) < 1e-2


def test_a_convolutional_network() -> None:
    torch.manual_seed(0)
    net = Conv4((1, 8, 8), 16, 3).double()
    generator = torch.Generator().manual_seed(1)
    classes = torch.eye(3, dtype=torch.float64).repeat(2, 1)
    tasks = {
        f"{rows}_{what}": torch.randn(2, 6, 64, generator=generator, dtype=torch.float64)
        if what == "x"
        else classes.expand(2, 6, 3).clone()
        for rows in ("support", "query")
        for what in ("x", "y")
    }
    options: dict[str, Any] = {"length": 0.05, "solver": amaml.Euler(step=0.01)}
    here = amaml.meta_gradient(start(net), *classification_losses(net), tasks, **options)
    there = amaml.meta_gradient(moved(start(net)), *classification_losses(net), moved(tasks), **options)
    assert apart(flat(moved(there.grad, torch.device("cpu"))), flat(here.grad)) < 1e-9


def test_memory_grows_with_the_root_of_the_steps_or_not_at_all() -> None:
    """The peak of allocated bytes above those before: √N checkpoints against a fixed number of them."""
    net = network([32, 32], dtype=torch.float32)
    tasks, theta = moved(cosines(16, 100, dtype=torch.float32)), moved(start(net))

    def peak(steps: int, checkpoints: int | None) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        amaml.meta_gradient(
            theta, *amaml.regression_losses(net), tasks, length=steps * 1e-3,
            solver=amaml.Euler(step=1e-3), adjoint=amaml.Discrete(checkpoints=checkpoints),
        )  # fmt: skip
        return torch.cuda.max_memory_allocated() - before

    peak(20, None)  # cuBLAS allocates its workspace once
    assert peak(1600, None) < 1.2 * 4 * peak(100, None)
    assert peak(1600, 8) < 1.1 * peak(100, 8)


def on_cuda(**changes: Any) -> JobSpec:
    return small(runtime={"device": "cuda", **changes.pop("runtime", {})}, **changes)


@pytest.mark.parametrize("kind", ["amaml", "comln", "maml", "maml1", "fomaml", "reptile", "imaml"])
def test_every_method_trains_to_the_same_bits_twice(kind: str) -> None:
    spec = on_cuda(method={"kind": kind})
    first, second = train(spec), train(spec)
    assert first.metrics["meta_loss"] == second.metrics["meta_loss"]
    for name, tensor in first.initialization.items():
        assert torch.equal(tensor, second.initialization[name])


def test_it_resumes_to_the_bit(tmp_path: Path) -> None:
    spec = on_cuda(solver={"kind": "dopri5", "step": None})
    whole = Training.start(spec)
    reports = list(whole)
    whole.save_initialization(tmp_path / "whole")
    broken = Training.start(spec)
    seen = []
    for report in broken:
        seen.append(report)
        if report.iteration == 7:
            broken.save_checkpoint(tmp_path / "checkpoint")
            break
    again = Training.resume(spec, tmp_path / "checkpoint")
    seen += list(again)
    again.save_initialization(tmp_path / "again")
    assert bits(seen) == bits(reports)
    assert sha256(tmp_path / "again") == sha256(tmp_path / "whole")
    assert not any(parameter.is_cuda for parameter in load(tmp_path / "whole").parameters()), "it loads without a GPU"


def test_the_cpu_agrees_after_a_training(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"meta": {"iterations": 10}, "runtime": {"dtype": "float64"}}
    there = train(on_cuda(**changes))
    here = train(small(**changes))
    for name, tensor in there.initialization.items():
        torch.testing.assert_close(tensor.cpu(), here.initialization[name], rtol=1e-7, atol=1e-9)


def bounded_to(size: int) -> None:
    """Limits this process to `size` additional bytes of the GPU's memory."""
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_reserved() + size) / torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(share)


@pytest.fixture
def freed() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


LARGE: dict[str, Any] = {
    "family": {"shots": 5000, "queries": 5000},
    "model": {"hidden": [256, 256]},
    "meta": {"iterations": 4, "tasks_per_batch": 32},
    "evaluation": {"every": 1000, "tasks": 4, "epochs": 2},
}


@pytest.mark.usefixtures("freed")
def test_a_batch_that_does_not_fit_is_split_and_resumes_to_the_bit(tmp_path: Path) -> None:
    with disabled():  # the kernel itself limits the tasks at once to the memory
        train(on_cuda(meta={"iterations": 1}))  # cuBLAS allocates its workspace once
    bounded_to(600 << 20)
    whole, reported = Training.start(on_cuda(**LARGE)), []
    with disabled():
        for report in whole:
            reported += [(name, value) for name, value in report.metrics.items() if "micro_batch" in name]
            if report.iteration == 2 and "meta_loss" in report.metrics:
                whole.save_checkpoint(tmp_path / "checkpoint")
    whole.save_initialization(tmp_path / "whole")
    (size,) = [value for name, value in reported if name == "micro_batch"]
    assert 1 <= size < 32
    torch.cuda.set_per_process_memory_fraction(1.0)
    with disabled():
        again = Training.resume(on_cuda(**LARGE), tmp_path / "checkpoint")
        list(again)
    again.save_initialization(tmp_path / "again")
    assert sha256(tmp_path / "again") == sha256(tmp_path / "whole")


@pytest.mark.usefixtures("freed")
def test_one_task_that_does_not_fit_names_what_was_asked_for_and_the_gpu() -> None:
    with disabled():
        train(on_cuda(meta={"iterations": 1}))
    bounded_to(100 << 20)
    family, model = {**LARGE["family"], "shots": 10_000}, {"hidden": [512, 512]}
    with disabled(), pytest.raises(OutOfMemory) as raised:
        train(on_cuda(**{**LARGE, "family": family, "model": model}))
    assert torch.cuda.get_device_name() in str(raised.value)
    assert "MiB was asked for last: lower family.shots" in str(raised.value)


def test_the_driver_names_the_gpu_as_torch_does_without_using_its_memory() -> None:
    asked = subprocess.run(
        [sys.executable, "-c", "from worker.processes.gpu import gpu; print(gpu().model_dump_json())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(asked.stdout)
    properties = torch.cuda.get_device_properties(0)
    assert (found["name"], found["memory_bytes"]) == (torch.cuda.get_device_name(), properties.total_memory)
    assert found["uuid"].endswith(str(properties.uuid))
