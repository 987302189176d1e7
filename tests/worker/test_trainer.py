"""The trainer's process by itself: what it says, when it ends, and that a resumed run has the same bits."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from amaml.spec import JobSpec
from tests.support.jobs import spec
from tests.support.waiting import CEILING_SECONDS, wait_until
from tests.support.workers import is_gone
from worker.processes import protocol
from worker.processes.parent import Gone, TrainerProcess

COMMAND = [sys.executable, "-m", "worker.trainer"]


@pytest.fixture(scope="module")
def warm() -> Iterator[TrainerProcess]:
    """One trainer for all tests that leave it alive."""
    trainer = TrainerProcess()
    ready = trainer.wait_until_ready(CEILING_SECONDS)
    assert ready is not None
    assert "cpu" in ready.devices
    yield trainer
    trainer.kill()


@pytest.fixture
def doomed() -> Iterator[subprocess.Popen[bytes]]:
    """A ready trainer whose pipes are the test's."""
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout is not None
        assert isinstance(protocol.from_trainer(trainer.stdout.readline()), protocol.Ready)
        yield trainer
        trainer.kill()


def tell(trainer: subprocess.Popen[bytes], message: protocol.ToTrainer) -> None:
    assert trainer.stdin is not None
    trainer.stdin.write(protocol.encode(message))
    trainer.stdin.flush()


def give(trainer: TrainerProcess, job: protocol.Run) -> None:
    """As soon as it waits for a job."""
    assert trainer.wait_until_ready(CEILING_SECONDS) is not None
    trainer.send(job)


def run(
    spec: JobSpec, folder: Path, *, checkpoint: str | None = None, seconds: float = 2 * CEILING_SECONDS
) -> protocol.Run:
    folder.mkdir(exist_ok=True)
    return protocol.Run(
        job_id="00000000-0000-7000-8000-000000000000",
        attempt=1,
        spec=spec.canonical(),
        datasets={},
        checkpoint=checkpoint,
        folder=str(folder),
        device="cpu",
        threads=1,
        deadline=time.monotonic() + seconds,
    )


def hear(trainer: TrainerProcess, last: type[protocol.FromTrainer] | type[Gone]) -> list[protocol.FromTrainer | Gone]:
    """All that it says up to the last message of this kind; removes checkpoints' files as their commit does."""
    heard: list[protocol.FromTrainer | Gone] = []
    while not heard or not isinstance(heard[-1], last | Gone):
        said = trainer.receive(CEILING_SECONDS)
        assert said is not None, "silence"
        heard.append(said)
        if isinstance(said, protocol.Checkpoint):
            path = Path(said.path)
            path.rename(path.with_suffix(".committed"))
    assert isinstance(heard[-1], last), heard[-1]
    return heard


def points(heard: list[protocol.FromTrainer | Gone], name: str) -> dict[int, float]:
    return {
        step: value
        for said in heard
        if isinstance(said, protocol.ProgressReport)
        for step, value in said.metrics.get(name, [])
    }


def tensors(path: Path) -> str:
    data = path.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return str(metadata["tensors_sha256"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows another process' environment")
def test_what_cuda_reads_at_its_start_is_set_whatever_the_worker_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    trainer = TrainerProcess()
    settings = Path(f"/proc/{trainer.pid}/environ").read_text().split("\0")
    trainer.kill()
    assert {"CUBLAS_WORKSPACE_CONFIG=:4096:8", "NVIDIA_TF32_OVERRIDE=0", "PYTHONHASHSEED=0"} <= set(settings)


def test_it_tells_every_metric_of_every_iteration_and_leaves_a_result(warm: TrainerProcess, tmp_path: Path) -> None:
    give(warm, run(spec(25), tmp_path))
    heard = hear(warm, protocol.Succeeded)
    succeeded = heard[-1]
    assert isinstance(succeeded, protocol.Succeeded)
    assert succeeded.parameters == 25
    assert Path(succeeded.path).is_file()
    assert list(points(heard, "meta_loss")) == list(range(1, 26))
    assert list(points(heard, "nrmse_tuned")) == [0, 25]
    assert [said.step for said in heard if isinstance(said, protocol.Checkpoint)] == [10, 20]


def test_a_run_that_ends_early_says_so(warm: TrainerProcess, tmp_path: Path) -> None:
    give(
        warm,
        run(spec(25, evaluation={"every": 5, "epochs": 5, "select": "validation"}, meta={"target": 1e6}), tmp_path),
    )
    succeeded = hear(warm, protocol.Succeeded)[-1]
    assert isinstance(succeeded, protocol.Succeeded)
    assert (succeeded.iteration, succeeded.reason) == (0, "target_reached")
    assert succeeded.detail is not None
    assert "after 0 of 25 meta-iterations" in succeeded.detail


def test_a_resumed_run_ends_in_the_same_bits(warm: TrainerProcess, tmp_path: Path) -> None:
    whole = spec(25, evaluation={"every": 10, "tasks": 2, "epochs": 5, "select": "validation"})
    give(warm, run(whole, tmp_path / "whole"))
    undisturbed = hear(warm, protocol.Succeeded)
    give(warm, run(whole, tmp_path / "again", checkpoint=str(tmp_path / "whole" / "checkpoint-10.committed")))
    resumed = hear(warm, protocol.Succeeded)
    results = [tensors(tmp_path / name / "initialization.safetensors") for name in ("whole", "again")]
    assert results[0] == results[1]
    for name, first_step in {"meta_loss": 11, "nrmse_flow": 10, "nrmse_validation": 10, "nrmse_random": 10}.items():
        before = {step: value for step, value in points(undisturbed, name).items() if step >= first_step}
        assert points(resumed, name) == before, name


def test_told_to_stop_it_leaves_a_checkpoint_and_takes_the_next_job(warm: TrainerProcess, tmp_path: Path) -> None:
    give(warm, run(spec(100_000), tmp_path / "first"))
    hear(warm, protocol.ProgressReport)
    warm.send(protocol.Stop(checkpoint=True))
    heard = hear(warm, protocol.Stopped)
    stopped, checkpoint = heard[-1], heard[-2]
    assert isinstance(stopped, protocol.Stopped)
    assert isinstance(checkpoint, protocol.Checkpoint)
    assert checkpoint.step == stopped.step < 100_000
    warm.send(protocol.Lease(deadline=time.monotonic()))  # comes late: must not end a trainer that has no job
    give(warm, run(spec(2), tmp_path / "second"))
    hear(warm, protocol.Succeeded)


def test_a_run_that_fails_says_why_and_leaves_the_trainer_whole(warm: TrainerProcess, tmp_path: Path) -> None:
    broken = run(spec(2), tmp_path)
    broken = broken.model_copy(update={"spec": json.dumps({**json.loads(broken.spec), "meta": {"iterations": -1}})})
    give(warm, broken)
    failed = hear(warm, protocol.Failed)[-1]
    assert isinstance(failed, protocol.Failed)
    assert failed.reason == "bad_spec"
    (tmp_path / "foreign").write_bytes(b"not a checkpoint")
    give(warm, run(spec(2), tmp_path, checkpoint=str(tmp_path / "foreign")))
    failed = hear(warm, protocol.Failed)[-1]
    assert isinstance(failed, protocol.Failed)
    assert failed.reason in ("checkpoint_refused", "bad_data")
    give(warm, run(spec(5, certify_every=1, certify_limit=1e-12), tmp_path))
    heard = hear(warm, protocol.Failed)
    failed = heard[-1]
    assert isinstance(failed, protocol.Failed)
    assert failed.reason == "certificate_failed"
    assert points(heard, "certificate_over_limit") == {1: 1.0, 2: 1.0, 3: 1.0}


def test_a_checkpoint_of_another_spec_is_refused(warm: TrainerProcess, tmp_path: Path) -> None:
    give(warm, run(spec(10), tmp_path / "first"))
    hear(warm, protocol.Succeeded)
    give(
        warm, run(spec(10, seed=1), tmp_path / "second", checkpoint=str(tmp_path / "first" / "checkpoint-10.committed"))
    )
    failed = hear(warm, protocol.Failed)[-1]
    assert isinstance(failed, protocol.Failed)
    assert failed.reason == "checkpoint_refused"
    assert "another spec" in failed.detail


def test_it_ends_itself_when_its_deadline_passes_and_nobody_reads(
    doomed: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """So it is when its supervisor is stopped: renewals end, and nobody kills it."""
    began = time.monotonic()
    tell(doomed, run(spec(100_000), tmp_path, seconds=1_000_000))
    tell(doomed, protocol.Lease(deadline=began + 2.0))
    assert doomed.wait(CEILING_SECONDS) == protocol.EXIT_NOT_TRUSTED
    assert time.monotonic() - began >= 2


def test_it_ends_when_the_pipe_closes(doomed: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert doomed.stdin is not None
    tell(doomed, run(spec(100_000), tmp_path))
    doomed.stdin.close()
    assert doomed.wait(CEILING_SECONDS) == protocol.EXIT_NOT_TRUSTED


def bounded(trainer: subprocess.Popen[bytes], megabytes: int) -> None:
    """From here on it may have so much more memory than it has."""
    status = Path(f"/proc/{trainer.pid}/status").read_text()
    held = int(next(line for line in status.splitlines() if line.startswith("VmSize")).split()[1]) << 10
    resource.prlimit(trainer.pid, resource.RLIMIT_AS, (held + (megabytes << 20), resource.RLIM_INFINITY))


def last_of(trainer: subprocess.Popen[bytes]) -> list[protocol.FromTrainer]:
    """All that it says until it has ended the job."""
    assert trainer.stdout is not None
    said: list[protocol.FromTrainer] = []
    while not said or not isinstance(said[-1], protocol.Succeeded | protocol.Failed):
        line = trainer.stdout.readline()
        assert line, "it ended"
        said.append(protocol.from_trainer(line))
        if isinstance(said[-1], protocol.Checkpoint):
            Path(said[-1].path).unlink()
    return said


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory of another process")
def test_a_batch_that_does_not_fit_is_split_and_one_task_that_does_not_fails_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AMAML_KERNEL", "off")  # it needs next to no memory
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed is given back at once
    large = spec(3, meta={"tasks_per_batch": 32}).model_dump(mode="json")
    large["family"] |= {"shots": 2000, "queries": 2000}
    large["model"]["hidden"] = [64, 64]
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout is not None
        assert isinstance(protocol.from_trainer(trainer.stdout.readline()), protocol.Ready)
        bounded(trainer, 100)
        tell(trainer, run(JobSpec.model_validate(large), tmp_path / "first"))
        heard = last_of(trainer)
        assert isinstance(heard[-1], protocol.Succeeded), heard[-1]
        assert [1 <= value < 32 for value in points(list(heard), "micro_batch").values()] == [True]

        assert isinstance(protocol.from_trainer(trainer.stdout.readline()), protocol.Ready)
        large["family"] |= {"shots": 10_000, "queries": 10_000}
        large["model"]["hidden"] = [512, 512]
        tell(trainer, run(JobSpec.model_validate(large), tmp_path / "second"))
        failed = last_of(trainer)[-1]
        trainer.kill()
    assert isinstance(failed, protocol.Failed)
    assert failed.reason == "out_of_memory"
    assert "a single task doesn't fit" in failed.detail


STARTER = """
import signal
from worker.processes.parent import TrainerProcess
trainer = TrainerProcess()
trainer.wait_until_ready(90)
print(trainer.pid, flush=True)
signal.pause()
"""


def test_a_stopped_trainer_dies_with_its_worker() -> None:
    """Stopped, it can neither see the pipe close nor watch its deadline: the kernel ends it."""
    with subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        worker.kill()
    wait_until(lambda: is_gone(pid))


PRINTER = """
from worker.processes.protocol import Stopped
from worker.trainer import Wire
wire = Wire()
print("hello")
wire.send(Stopped(step=1))
"""


def test_what_is_printed_never_gets_among_the_messages() -> None:
    """Libraries print; the messages go by a copy of stdout that only the trainer's wire has."""
    done = subprocess.run([sys.executable, "-c", PRINTER], capture_output=True, check=True)
    assert isinstance(protocol.from_trainer(done.stdout), protocol.Stopped)
    assert done.stderr == b"hello\n"
