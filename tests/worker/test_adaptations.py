"""Adaptations by real workers: the same numbers as in this process, and what happens when something dies amid one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2 as httpx
import pytest
import torch

from amaml.registry import build_family, build_model
from amaml.run.adaptation import adapt, loss_curve, predict
from amaml.run.initialization import metadata_of, write
from amaml.run.learned_model import LearnedModel, load
from amaml.spec import (
    Conv4Spec,
    FamilySpec,
    ImagesSpec,
    JobSpec,
    MLPSpec,
    ModelSpec,
    PoissonSpec,
    RatingsSpec,
    RuntimeSpec,
    SinusoidSpec,
    SolverSpec,
    TrajectorySpec,
)
from service.adaptations import store as adaptations
from service.adaptations.store import ENDED
from service.adaptations.tables import Adaptation
from service.core.database import transaction
from service.keys import store as keys
from tests.support.adaptations import answer, points, regression, written
from tests.support.api import serving
from tests.support.jobs import submit_claimed, succeed
from tests.support.waiting import CEILING_SECONDS, wait_until
from tests.support.workers import WorkerProcess, Workers, is_gone
from worker.processes.parent import AdapterProcess, Gone
from worker.processes.protocol import Adapted, NotAdapted

PATIENT = {"Prefer": "wait=60"}
HERE: dict[str, str] = {"AMAML_ADAPTERS": "1"}
STUCK = "adapter.begins=stop"
"""An adapter stops (SIGSTOP) amid its next adaptation."""


def classifier(path: Path) -> Path:
    spec = JobSpec(family=SinusoidSpec(test_tasks=1), model=MLPSpec(hidden=[8]))
    told = {"objective": "classification", "out_features": "3", "outputs": '["cat", "dog", "cow"]'}
    return written(path, spec, {**told, "scaling": _scaling(1, 3)})


def ratings(path: Path) -> Path:
    spec = JobSpec(family=RatingsSpec(dataset=uuid4(), items=3), model=MLPSpec(hidden=[8]))
    told = {"in_features": "3", "inputs": '["50", "7", "181"]', "outputs": '["rating"]', "scaling": _scaling(3, 1)}
    return written(path, spec, told)


def _scaling(inputs: int, outputs: int) -> str:
    ends = {"x": inputs, "y": outputs}
    return json.dumps(
        {f"{end}_{what}": [value] * ends[end] for end in ends for what, value in (("mean", 0), ("std", 1))}
    )


# The adapter by itself


def told(
    adapter: AdapterProcess, initialization: Path, folder: Path, request: dict[str, Any]
) -> Adapted | NotAdapted | Gone:
    said = answer(adapter, initialization, folder, request)
    assert isinstance(said, Adapted | NotAdapted | Gone)
    return said


def done(adapter: AdapterProcess, initialization: Path, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    said = told(adapter, initialization, folder, {"return": ["predictions", "curve", "weights"], **request})
    assert isinstance(said, Adapted), said
    result: dict[str, Any] = json.loads(Path(said.result).read_text())
    return result


def refused(adapter: AdapterProcess, initialization: Path, folder: Path, request: dict[str, Any]) -> NotAdapted:
    said = told(adapter, initialization, folder, request)
    assert isinstance(said, NotAdapted)
    assert said.detail[0].isupper()
    assert said.detail.endswith(".")
    return said


SOLVERS = [
    {"kind": "dopri5"}, {"kind": "euler", "step": 0.1}, {"kind": "rk4", "step": 0.3}, {"kind": "adaptive_heun", "rtol": 1e-3},
]  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver["kind"])
@pytest.mark.parametrize("how", [{}, {"length": 0.7}, {"by": "finetune", "epochs": 25, "lr": 0.01}], ids=str)
def test_the_adapter_gives_the_librarys_bits(
    adapter: AdapterProcess, tmp_path: Path, solver: dict[str, Any], how: dict[str, Any]
) -> None:
    path = regression(tmp_path / "init", solver=SolverSpec(**solver), trajectory=TrajectorySpec(length=1.0))
    support, query = points(10), points(4, seed=2)
    result = done(adapter, path, tmp_path / "out", {"support": support, "query": query, **how})
    learned = LearnedModel.read(path)
    model = learned.module
    adapted = adapt(model, support["x"], support["y"], units="raw", **how)
    assert result["predictions"] == predict(adapted, query["x"]).tolist()
    assert result["outputs"] == learned.outputs
    curve = result["curve"]
    own = loss_curve(model, support["x"], support["y"], query=(query["x"], query["y"]), units="raw", **how)
    assert (curve["at"], curve["support"], curve["query"]) == (own.at, own.support, own.query)
    assert curve["at"][0] == 0
    assert curve["support"][-1] < curve["support"][0]
    kept = load(tmp_path / "out" / "weights.safetensors")
    assert all(torch.equal(kept.state_dict()[name], tensor) for name, tensor in adapted.state_dict().items())
    assert predict(kept, query["x"]).tolist() == result["predictions"]


def test_classes_and_items(adapter: AdapterProcess, tmp_path: Path) -> None:
    rows = {"support": {"x": [[0.0], [1.0], [2.0]], "y": [0, 1, 2]}, "query": {"x": [0.0, 2.0]}, "length": 20.0}
    result = done(adapter, classifier(tmp_path / "classifier"), tmp_path / "out", rows)
    assert result["outputs"] == ["cat", "dog", "cow"]
    assert [max(range(3), key=row.__getitem__) for row in result["predictions"]] == [0, 2]
    assert [sum(row) for row in result["predictions"]] == pytest.approx([1, 1])
    path = ratings(tmp_path / "ratings")
    named = {"support": {"x": ["7", "50"], "y": [1.0, -1.0]}, "query": {"x": ["50", "7", "181"]}, "length": 5.0}
    one_hot = {name: [float(name == item) for item in ("50", "7", "181")] for name in ("50", "7", "181")}
    numbers: dict[str, Any] = {
        "support": {"x": [one_hot["7"], one_hot["50"]], "y": [1.0, -1.0]}, "query": {"x": list(one_hot.values())},
    }  # fmt: skip
    by_name = done(adapter, path, tmp_path / "out", named)
    assert by_name == done(adapter, path, tmp_path / "out", {**numbers, "length": 5.0})
    assert by_name["predictions"][0][0] < by_name["predictions"][1][0]


@pytest.mark.parametrize(
    ("family", "model"),
    [
        (ImagesSpec(dataset="digits", ways=3, shots=5), MLPSpec(hidden=[16])),
        (ImagesSpec(dataset="digits", ways=3, shots=2), Conv4Spec(filters=4)),
        (PoissonSpec(shots=8), MLPSpec(hidden=[8])),
    ],
    ids=["mlp sees images", "conv4 sees images", "poisson"],
)
def test_families_with_losses_and_pictures_of_their_own(
    adapter: AdapterProcess, tmp_path: Path, family: FamilySpec, model: ModelSpec
) -> None:
    solver = SolverSpec(kind="euler", step=0.005)
    spec = JobSpec(family=family, model=model, trajectory=TrajectorySpec(length=0.02), solver=solver)
    built = build_family(family, seed=0, dtype=torch.float32, device=torch.device("cpu"), datasets={})
    sizes = {"in_features": built.in_features, "out_features": built.out_features, "picture": built.picture}
    path = tmp_path / "init"
    write(path, dict(build_model(model, seed=0, **sizes).named_parameters()), metadata_of(spec, built, 3))
    task = {name: tensor[0] for name, tensor in built.evaluation_batch("test", 1).items()}
    scaling = built.scaling
    support, query = (
        {
            "x": (task[f"{rows}_x"] * torch.tensor(scaling.x_std) + torch.tensor(scaling.x_mean)).tolist(),
            "y": scaling.raw_y(task[f"{rows}_y"]).tolist(),
        }
        for rows in ("support", "query")
    )
    result = done(adapter, path, tmp_path / "out", {"support": support, "query": query})
    adapted = adapt(load(path), support["x"], support["y"], units="raw")
    # Convolutions add up in an order that the number of threads decides.
    torch.testing.assert_close(torch.tensor(result["predictions"]), predict(adapted, query["x"]), rtol=1e-5, atol=1e-6)
    assert result["curve"]["support"][-1] < result["curve"]["support"][0]
    assert len(result["curve"]["query"]) == len(result["curve"]["at"]) == 5


def test_what_can_not_be_adapted_is_told_with_its_remedy(adapter: AdapterProcess, tmp_path: Path) -> None:
    coarse = regression(
        tmp_path / "coarse", solver=SolverSpec(kind="euler", step=5.0), trajectory=TrajectorySpec(length=50.0)
    )
    ask = {"support": points(5), "query": points(5)}
    stiff = refused(adapter, coarse, tmp_path / "out", ask)
    assert stiff.reason == "solver_failed"
    assert "use a step below" in stiff.detail
    path = regression(tmp_path / "init")
    wild = refused(
        adapter, path, tmp_path / "out", {**ask, "by": "finetune", "lr": 1e2, "support": {"x": [1e15], "y": [1e29]}}
    )
    assert wild.reason in ("diverged", "bad_rows")
    unlearned = refused(adapter, path, tmp_path / "out", {**ask, "by": "finetune", "learned_rates": True})
    assert "model has learned no rates: leave learned_rates out" in unlearned.detail
    assert refused(adapter, path, tmp_path / "out", {**ask, "support": {"x": [[1, 2]], "y": [1]}}).reason == "bad_rows"
    (tmp_path / "damaged").write_bytes(b"\xff" * 100)
    assert refused(adapter, tmp_path / "damaged", tmp_path / "out", ask).reason == "bad_initialization"
    assert isinstance(told(adapter, path, tmp_path / "out", ask), Adapted)


def test_an_adapter_has_bounded_memory(tmp_path: Path) -> None:
    path = regression(tmp_path / "init", model=MLPSpec(hidden=[1024] * 8))
    adapter = AdapterProcess(64 << 20)
    assert adapter.wait_until_ready(CEILING_SECONDS) is not None
    said = told(adapter, path, tmp_path / "out", {"support": points(1000), "query": points(5)})
    assert isinstance(said, Gone) or (isinstance(said, NotAdapted) and said.reason == "out_of_memory"), said
    adapter.kill()


# Through workers


@pytest.fixture(scope="module")
def http(shared_store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The API on the workers' store, with a key for their workspace."""
    with transaction() as session:
        _, key = keys.add(session, keys.ensure_workspace(session, "default"), "test")
    with serving(shared_store, tmp_path_factory.mktemp("api") / "log") as api:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=api.url, headers=headers, timeout=70, verify=False) as client:
            yield client


@pytest.fixture(scope="module")
def learned(shared_store: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[UUID, Path]:
    """A job that has succeeded, and its initialization."""
    path = regression(tmp_path_factory.mktemp("learned") / "init", runtime=RuntimeSpec(dtype="float64"))
    spec = JobSpec.model_validate_json(LearnedModel.read(path).spec.canonical())
    job_id = submit_claimed(spec)
    succeed(job_id, path.read_bytes())
    return job_id, path


@pytest.fixture
def worker(stubbed_workers: Workers) -> WorkerProcess:
    """A worker with an adapter: one that lives, or a new one."""
    return (stubbed_workers.living or [stubbed_workers.start(**HERE)])[0]


def adapter_of(worker: WorkerProcess) -> int:
    """The process id of its adapter, once there is one."""
    return wait_until(lambda: worker.child("worker.adapter") or 0)


def begun(http: httpx.Client, document: dict[str, Any]) -> bool:
    """Whether an adapter has it."""
    return bool(http.get(document["links"]["self"]).json()["state"] == "running")


def attempt_of(document: dict[str, Any]) -> int:
    with transaction() as session:
        return session.get_one(Adaptation, UUID(document["id"])).attempt


def ask(
    http: httpx.Client, learned: tuple[UUID, Path], headers: dict[str, str] = PATIENT, **changes: Any
) -> dict[str, Any]:
    rows = {"support": points(10), "query": {"x": points(10, seed=2)["x"]}, **changes}
    answer = http.post(f"/v1/jobs/{learned[0]}/adaptations", json=rows, headers=headers)
    assert answer.status_code in (201, 202), answer.text
    document: dict[str, Any] = answer.json()
    assert (answer.status_code == 201) == (document["state"] in ENDED)
    return document


def stuck(http: httpx.Client, learned: tuple[UUID, Path], worker: WorkerProcess, seconds: int = 0) -> dict[str, Any]:
    """An adaptation that the worker's adapter has begun and stopped amid; its answer was waited for so long."""
    worker.arm(STUCK)
    document = ask(http, learned, {"Prefer": f"wait={seconds}"})
    wait_until(lambda: begun(http, document))
    return document


def ended(http: httpx.Client, document: dict[str, Any]) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = http.get(document["links"]["self"]).json()
        return found if found["state"] in ENDED else None

    return wait_until(look)  # type: ignore[return-value]


def expected(learned: tuple[UUID, Path], **how: Any) -> torch.Tensor:
    support = points(10)
    return predict(adapt(load(learned[1]), support["x"], support["y"], units="raw", **how), points(10, seed=2)["x"])


def check(document: dict[str, Any], wanted: torch.Tensor) -> None:
    assert document["state"] == "succeeded", document
    found = torch.tensor(document["result"]["predictions"], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.processes
def test_an_adaptation_over_http(
    http: httpx.Client, learned: tuple[UUID, Path], worker: WorkerProcess, tmp_path: Path
) -> None:
    document = ask(http, learned, **{"return": ["predictions", "curve", "weights"]})
    check(document, expected(learned))
    assert document["result"]["curve"]["query"] is None
    file = http.get(document["links"]["weights"])
    path = tmp_path / "weights.safetensors"
    path.write_bytes(file.content)
    assert file.headers["etag"] == f'"{document["weights"]["sha256"]}"'
    assert predict(load(path), points(10, seed=2)["x"]).tolist() == document["result"]["predictions"]
    check(ask(http, learned, by="finetune", epochs=30), expected(learned, by="finetune", epochs=30))
    check(ask(http, learned, length=0.5), expected(learned, length=0.5))


@pytest.mark.processes
def test_an_adapter_that_is_killed_is_replaced_and_the_adaptation_done(
    http: httpx.Client, learned: tuple[UUID, Path], worker: WorkerProcess
) -> None:
    document = stuck(http, learned, worker)
    killed = adapter_of(worker)
    os.kill(killed, signal.SIGKILL)
    check(ended(http, document), expected(learned))
    assert is_gone(killed)
    assert attempt_of(document) == 2


@pytest.mark.processes
def test_one_whose_files_can_not_be_kept_is_tried_again_and_ends_no_worker(
    http: httpx.Client, learned: tuple[UUID, Path], worker: WorkerProcess, stubbed_workers: Workers
) -> None:
    (folder,) = (stubbed_workers.home / "attempts").iterdir()
    away = folder.rename(stubbed_workers.home / "away")
    first, second = (ask(http, learned, {"Prefer": "wait=0"}) for _ in range(2))
    failed = ended(http, first)
    assert (failed["state"], failed["status_reason"]) == ("failed", "crashed")
    assert "can't keep its files (No such file or directory)" in failed["status_detail"]
    away.rename(folder)
    check(ended(http, ask(http, learned, {"Prefer": "wait=0"})), expected(learned))
    assert ended(http, second)["state"] in ENDED
    assert worker.is_alive


@pytest.mark.processes
def test_a_short_wait_answers_202_and_a_deleted_one_is_dropped(
    http: httpx.Client, learned: tuple[UUID, Path], worker: WorkerProcess
) -> None:
    document = stuck(http, learned, worker, seconds=1)
    assert http.delete(document["links"]["self"]).status_code == 204
    os.kill(adapter_of(worker), signal.SIGCONT)
    check(ask(http, learned), expected(learned))
    assert http.get(document["links"]["self"]).status_code == 404


@pytest.mark.processes
def test_two_workers_share_them(
    http: httpx.Client, learned: tuple[UUID, Path], stubbed_workers: Workers, worker: WorkerProcess
) -> None:
    """What waits is done by the other while one of them is at its first."""
    first = stuck(http, learned, worker)
    stubbed_workers.start(**HERE)
    asked = [ask(http, learned, {"Prefer": "wait=0"}) for _ in range(4)]
    wanted = expected(learned)
    for document in asked:
        check(ended(http, document), wanted)
    assert begun(http, first)
    os.kill(adapter_of(worker), signal.SIGCONT)
    check(ended(http, first), wanted)
    assert [attempt_of(document) for document in (first, *asked)] == [1] * 5, "each once"


@pytest.mark.processes
def test_a_worker_that_is_killed_loses_its_adaptation_to_another(
    http: httpx.Client, learned: tuple[UUID, Path], stubbed_workers: Workers, worker: WorkerProcess
) -> None:
    with stubbed_workers.only(worker):
        document = stuck(http, learned, worker)
        adapter = adapter_of(worker)
        worker.kill()
        wait_until(lambda: is_gone(adapter))
    if not stubbed_workers.living:
        stubbed_workers.start(**HERE)
    check(ended(http, document), expected(learned))


@pytest.mark.processes
def test_a_worker_that_ends_in_good_order_gives_back_what_it_has(
    http: httpx.Client, learned: tuple[UUID, Path], stubbed_workers: Workers, worker: WorkerProcess
) -> None:
    with stubbed_workers.only(worker):
        document = stuck(http, learned, worker)
        assert worker.stop() == 0
        with transaction() as session:
            left = session.get_one(Adaptation, UUID(document["id"]))
            assert (left.state, left.tries) == ("queued", 0)
            assert adaptations.remove(session, left.workspace_id, left.id)


@pytest.mark.processes
def test_one_that_takes_too_long_is_ended(
    http: httpx.Client, learned: tuple[UUID, Path], stubbed_workers: Workers
) -> None:
    hasty = stubbed_workers.start(**HERE, AMAML_ADAPTATION_SECONDS="0.3")
    hasty.arm(STUCK)
    with stubbed_workers.only(hasty):
        document = ended(http, ask(http, learned, {"Prefer": "wait=0"}))
    assert (document["state"], document["status_reason"]) == ("failed", "timed_out")
    assert "0.3 s" in document["status_detail"]
