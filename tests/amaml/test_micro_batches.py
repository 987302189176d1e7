"""Batches that don't fit into memory: micro-batches give the same results as the whole batch, and a run halves them until they
fit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import amaml
from amaml import memory
from amaml.flow.result import SolveError
from amaml.kernel.library import disabled
from amaml.methods.amaml.gradient import MetaGradient
from amaml.methods.estimate import GradientEstimate
from amaml.registry import build_estimator
from amaml.run.micro_batches import in_micro_batches
from amaml.run.training import Training
from tests.amaml.jobs import METHODS, name_of, sha256, small
from tests.amaml.problems import Tensors, cosines, done, network, start


def tensors_of(found: GradientEstimate) -> Tensors:
    own = {f"grad {name}": tensor for name, tensor in found.grad.items()}
    own |= {f"per task {name}": tensor for name, tensor in found.per_task.items()}
    own |= {f"adapted {name}": tensor for name, tensor in found.adapted.items()}
    counts = {name: getattr(found.stats, name) for name in ("steps", "rejected", "gradients", "hvps", "lambda_max")}
    return own | counts | {"loss": found.loss}


ESTIMATES: list[dict[str, Any]] = [{"kind": "amaml"}, *METHODS]


@pytest.mark.parametrize("method", ESTIMATES, ids=name_of)
@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "batched"])
def test_a_batch_in_parts_gives_what_it_gives_whole(method: dict[str, Any], compiled: bool) -> None:
    spec, net, tasks = small(method=method), network([16, 16]), cosines(5, 20)
    estimator = build_estimator(spec.method)
    assert estimator is not None
    estimate = partial(
        estimator, start(net), *amaml.regression_losses(net), length=0.5, horizons=None, solver=amaml.Euler(0.1)
    )
    if compiled:
        whole, (parts, times) = estimate(tasks), done(in_micro_batches(estimate, tasks, 2))
    else:
        with disabled():
            whole, (parts, times) = estimate(tasks), done(in_micro_batches(estimate, tasks, 2))
    assert times == 3
    assert type(parts) is type(whole)
    expected = tensors_of(whole)
    for name, tensor in tensors_of(parts).items():
        if compiled and amaml.kernel.backend() != "batched" and method["kind"] != "imaml":
            assert torch.equal(tensor.nan_to_num(-1), expected[name].nan_to_num(-1)), name
        else:
            torch.testing.assert_close(tensor, expected[name], rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("when", ["in the same solve", "afterwards"])
def test_derivatives_by_the_flow_and_certificates_come_in_parts_too(when: str) -> None:
    net, tasks = network([8]), cosines(3, 10)
    wrt = ["length", "rates", "proximal"] if when == "in the same solve" else []
    options: dict[str, Any] = {"length": 0.5, "solver": amaml.RK4(0.05), "proximal": 0.1, "wrt": wrt}
    estimate = partial(amaml.meta_gradient, start(net), *amaml.regression_losses(net), **options)
    whole, (parts, _) = estimate(tasks), done(in_micro_batches(estimate, tasks, 2))
    assert isinstance(parts, MetaGradient)
    torch.testing.assert_close(parts.length, whole.length)
    torch.testing.assert_close(parts.proximal, whole.proximal)
    for name, tensor in whole.rates.items():
        torch.testing.assert_close(parts.rates[name], tensor)
    for found in (parts, whole):
        assert len(list(found.certify())) == 3
    assert parts.certificate is not None
    assert whole.certificate is not None
    torch.testing.assert_close(parts.certificate.error, whole.certificate.error, rtol=1e-3, atol=1e-9)


def test_tasks_that_fail_are_named_by_their_places_in_the_batch() -> None:
    net, tasks = network([8]), cosines(5, 10)
    tasks["support_y"][1] = tasks["support_y"][4] = float("inf")
    estimate = partial(
        amaml.meta_gradient, start(net), *amaml.regression_losses(net), length=0.5, solver=amaml.Euler(0.1)
    )
    with pytest.raises(SolveError) as raised:
        done(in_micro_batches(estimate, tasks, 2))
    assert [failure.task for failure in raised.value.failures] == [1, 4]


def test_what_says_that_memory_was_refused() -> None:
    with pytest.raises(RuntimeError) as by_torch:
        torch.empty(1 << 55)
    with pytest.raises(MemoryError) as by_numpy:
        np.empty(1 << 55)
    assert memory.asked_for(by_torch.value) == "134217728.0 GiB"
    assert memory.asked_for(by_numpy.value) == "256. PiB"
    on_cuda = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 79 GiB"
    )
    assert memory.asked_for(on_cuda) == "20.50 GiB"
    wrapped = ValueError("the support loss can't be evaluated")
    wrapped.__cause__ = by_torch.value
    assert all(map(memory.is_out_of_memory, (by_torch.value, by_numpy.value, on_cuda, wrapped)))
    assert not memory.is_out_of_memory(ValueError("another"))


# A whole run in a process with a limited address space, where an allocation really fails.

WITH_LITTLE_MEMORY = """
import json, re, resource, sys
from pathlib import Path
import torch
from amaml.run.training import Training, train
from amaml.spec import JobSpec

spec, megabytes, folder = JobSpec.model_validate_json(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
parts = spec.model_dump(mode="json")
parts["meta"] |= {"iterations": 1, "tasks_per_batch": 1}
parts["evaluation"]["tasks"] = 1
train(parts)  # so that libraries have made their one-time allocations
held = int(re.search(r"VmSize:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (held + (megabytes << 20), resource.RLIM_INFINITY))
reported, training = [], Training.start(spec)
try:
    for report in training:
        reported += [(report.iteration, name, value) for name, value in report.metrics.items() if "micro_batch" in name]
        if report.iteration == 2 and "meta_loss" in report.metrics:
            training.save_checkpoint(folder / "checkpoint")
    training.save_initialization(folder / "initialization")
    print(json.dumps({"reported": reported}))
except Exception as error:
    print(json.dumps({"reported": reported, "error": type(error).__name__, "sentence": str(error)}))
"""

LARGE: dict[str, Any] = {
    "family": {"shots": 2000, "queries": 2000, "test_tasks": 16},
    "model": {"hidden": [64, 64]},
    "trajectory": {"length": 0.3},
    "meta": {"iterations": 4, "tasks_per_batch": 16},
    "evaluation": {"every": 1000, "tasks": 16, "epochs": 2},
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds an address space reliably")


def with_little_memory(megabytes: int, folder: Path, **changes: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", WITH_LITTLE_MEMORY, small(**{**LARGE, **changes}).model_dump_json(), str(megabytes), str(folder)],
        # Freed memory is returned to the system at once, so that the process holds only what it uses.
        env={"AMAML_KERNEL": "off", "PYTHONPATH": str(Path(__file__).parents[2]), "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_a_run_halves_its_batches_until_they_fit_says_so_once_and_resumes_to_the_bit(tmp_path: Path) -> None:
    found = with_little_memory(24, tmp_path)
    assert "error" not in found, found
    reported = {name: (iteration, value) for iteration, name, value in found["reported"]}
    assert len(found["reported"]) == 2, "each once"
    assert reported["micro_batch"][0] == 1
    assert reported["evaluation_micro_batch"][0] == 0
    assert all(1 <= value < 16 for _, value in reported.values())
    with disabled():
        again = Training.resume(small(**LARGE), tmp_path / "checkpoint")
        assert again.state.progress.micro_batch == reported["micro_batch"][1]
        reports = list(again)
        again.save_initialization(tmp_path / "again")
    assert not any("micro_batch" in name for report in reports for name in report.metrics)
    assert sha256(tmp_path / "again") == sha256(tmp_path / "initialization")


def test_one_task_that_does_not_fit_fails_the_run_with_what_to_do(tmp_path: Path) -> None:
    family = {"shots": 10_000, "queries": 10_000, "train_tasks": 4, "test_tasks": 16}
    found = with_little_memory(32, tmp_path, family=family, model={"hidden": [128, 128]}, runtime={"dtype": "float64"})
    assert found["error"] == "OutOfMemory", found
    assert re.match(
        r"an? (meta-gradient|evaluation) of a single task doesn't fit into the \d+\.\d GiB of memory that the "
        r"process may have, \d+\.\d MiB "
        r"was asked for last: lower family\.shots, .*set runtime\.dtype to float32, set method\.adjoint\.checkpoints",
        found["sentence"],
    )
