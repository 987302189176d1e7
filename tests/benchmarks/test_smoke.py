"""Every benchmark's quick mode runs and writes what the figures and the documentation read; peers agree with us."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import amaml
from amaml.methods.fomaml.gradient import fomaml
from benchmarks import peers
from benchmarks.workload import NET, error, flat, independent_gradient, network_loss, trained_start, work

ROOT = Path(__file__).parents[2]
SUMMARY = {"seconds", "runs", "best"}


def quick(name: str, folder: Path) -> Any:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--output", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, timeout=1000)
    content = json.loads((folder / f"{name}.json").read_text())
    assert content["command"] == f"python -m benchmarks.{name} --quick"
    assert {"cpu", "cores", "memory_gb", "kernel"} <= content["machine"].keys()
    assert content["versions"]["torch"] == torch.__version__
    return content["results"]


@pytest.mark.nightly
def test_speed(tmp_path: Path) -> None:
    results = quick("speed", tmp_path)
    rows = results["exact_maml"]["trained"]["rows"]
    assert {"amaml batched", "create_graph", "vmapped", "authors"} <= rows.keys()
    assert all(row.keys() == {*SUMMARY, "error"} for row in rows.values())
    assert all(rows[name]["error"] < 1e-5 for name in ("amaml batched", "create_graph", "vmapped"))
    assert rows["authors"]["error"] > 1e-3, "another target, by another number of steps"
    flow = results["flow"]["trained, T=2"]
    mine = [row["error"] for name, row in flow["rows"].items() if name.startswith("amaml batched")]
    assert len(mine) == 2
    assert max(mine) < 1e-3 < flow["rows"]["create_graph"]["error"]
    assert results["threads"]["speedup"]


@pytest.mark.nightly
def test_memory(tmp_path: Path) -> None:
    rows = {(row["case"], row["solver"]): row for row in quick("memory", tmp_path)["rows"]}
    short, long = rows["create_graph", "euler"]["megabytes"]
    assert long > 1.5 * short, "a graph grows with the trajectory"
    assert rows["batched", "euler"]["megabytes"][1] < long


@pytest.mark.nightly
def test_adjoints(tmp_path: Path) -> None:
    results = quick("adjoints", tmp_path)
    assert len(results["rows"]) == 2 * 10 * 3
    assert all(
        line["within_bounds"] == line["solves"] == 2 for line in results["summary"] if line["case"] == "interpolated"
    )
    assert results["reference_from_ten_times_its_tolerance"]["worst_task"] < 1e-9


@pytest.mark.nightly
def test_tails(tmp_path: Path) -> None:
    results = quick("tails", tmp_path)
    assert results["tasks"] == 100
    assert 0 < results["median"] < results["percentile_99"] <= results["largest"]
    assert 0 < results["share_of_the_second_moment_of_the_top_percent"] < 1


@pytest.mark.nightly
def test_conv4(tmp_path: Path) -> None:
    (case,) = quick("conv4", tmp_path).values()
    assert "1 threads" in case
    assert all(timed["written out"].keys() == timed["traced"].keys() == SUMMARY for timed in case.values())
    assert all(timed["difference"] < 1e-4 for timed in case.values())


@pytest.mark.nightly
def test_work_precision(tmp_path: Path) -> None:
    rows = quick("work_precision", tmp_path)["rows"]
    assert {row["solver"] for row in rows} == {
        "euler",
        "heun",
        "rk4",
        "bosh3",
        "dopri5",
        "bosh3, no guard",
        "dopri5, no guard",
    }
    assert all(row["error"] < 0.3 and row["hvps"] > 0 for row in rows)
    assert all(
        row["error"] < 1e-3 for row in rows if row["solver"] in ("rk4", "dopri5") and row["adjoint"] == "discrete"
    )


@pytest.mark.nightly
def test_no_random_problem_is_silently_wrong(tmp_path: Path) -> None:
    results = quick("stress", tmp_path)
    assert sum(results["outcomes"].values()) == len(results["rows"]) == 12
    assert "silently wrong" not in results["outcomes"]
    assert len({row["kind"] for row in results["rows"]}) == 12
    assert results["outcomes"]["within its certificate"] >= 6


@pytest.mark.nightly
def test_scaling(tmp_path: Path) -> None:
    results = quick("scaling", tmp_path)
    assert {point["steps"] for point in results["figure"]} == {1, 5}
    assert all(point.keys() == {*SUMMARY, "method", "steps", "megabytes"} for point in results["figure"])
    assert all(fit["slope"] > 0 for fit in results["linearity"].values() if len(fit["x"]) > 3)


@pytest.mark.nightly
@pytest.mark.processes
@pytest.mark.timeout(1100)
def test_latency(tmp_path: Path) -> None:
    results = quick("latency", tmp_path)
    assert results["bars"].keys() == results["bounds"].keys()
    for name in ("submit_to_first_iteration", "bare_celery_send_to_start", "cancel_to_trainer_gone"):
        assert 0 < results[name]["best"] <= results[name]["p95"] < 60
    assert results["queue"]["queued"].keys() == {"20", "200"}
    assert results["resume_elsewhere"]["beyond_lease"].keys() == {"killed", "stopped"}


@pytest.mark.parametrize("peer", [peers.create_graph, peers.vmapped])
def test_graph_based_peers_equal_euler_discrete(peer: Callable[[peers.Work], torch.Tensor]) -> None:
    job = work("trained", 0.2, tasks=2, dtype=torch.float64)
    assert error(flat(job.solve(amaml.Euler(0.01)).grad), peer(job)) < 1e-12


def test_the_first_order_peer_equals_ours() -> None:
    job = work("trained", 0.2, tasks=2, dtype=torch.float64)
    ours = fomaml(job.params, *job.losses, job.tasks, length=job.length, solver=amaml.Euler(0.01))
    assert error(flat(ours.grad), peers.first_order(job)) < 1e-12


def test_the_authors_loop_takes_a_step_too_many() -> None:
    """Its error against the flow is of first order in the step, and larger than that of the loop done right."""
    job = work("trained", 0.2, tasks=2, dtype=torch.float64)
    exact = job.to(torch.float64).solve(amaml.Dopri5(1e-10, 1e-10)).grad
    right = job.solve(amaml.RK4(0.01), amaml.Interpolated("euler")).grad
    theirs = error(peers.authors(job), flat(exact))
    assert error(flat(right), flat(exact)) < theirs < 0.1


def test_references_agree_with_an_independent_solver() -> None:
    job = work("trained", 0.2, tasks=1, dtype=torch.float64)
    ours = flat(job.solve(amaml.Dopri5(1e-12, 1e-12)).per_task, axes=1)[0]
    task = {name: value[0] for name, value in job.tasks.items()}
    assert error(ours, independent_gradient(network_loss(NET, job.params, task), flat(job.params), 0.2)) < 1e-9


def test_the_trained_start_is_stiff() -> None:
    """Its Hessians are those that the documentation speaks of."""
    job = work("trained", 0.5, dtype=torch.float64)
    assert job.params.keys() == trained_start().keys()
    assert float(job.solve(amaml.Dopri5(), amaml.Discrete()).stats.lambda_max.max()) > 20
