"""The trainer: the process that runs attempts of jobs, one after another.

    python -m worker.trainer

It imports the mathematics, says that it is ready, and waits on its stdin for a `Run`; `worker.processes.protocol` is all that it
shares with its supervisor. It ends itself when the deadline passes that each renewal of the lease extends, or when its supervisor
is gone: a supervisor that is stopped (SIGSTOP) couldn't end it.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, Thread
from typing import TYPE_CHECKING, Literal

from amaml.metrics import MEMORY_BYTES
from worker.processes.failpoint import failpoint
from worker.processes.gpu import gpu
from worker.processes.memory import PeakMemory
from worker.processes.protocol import (
    EXIT_NOT_TRUSTED,
    EXIT_OUT_OF_MEMORY,
    Accident,
    Checkpoint,
    Evaluated,
    Failed,
    FailureReason,
    Lease,
    ProgressReport,
    Ready,
    Run,
    Stop,
    Stopped,
    Succeeded,
    ToTrainer,
    to_trainer,
)
from worker.processes.scores import evaluated
from worker.processes.wire import Wire, die_with_the_worker, last_word, sentence, versions

if TYPE_CHECKING:
    from amaml.run.training import Report, Training

SECONDS_BETWEEN_MESSAGES = 0.1


class Orders:
    """The supervisor's messages. One thread reads them; another ends the process when the deadline passes."""

    def __init__(self, descriptor: int) -> None:
        self._runs: SimpleQueue[Run] = SimpleQueue()
        self._runs_one = False
        self._stop: Stop | None = None
        self._deadline = float("inf")
        self._changed = Condition()
        Thread(target=self._read, args=(descriptor,), daemon=True).start()
        Thread(target=self._watch, daemon=True).start()

    def run(self) -> Run:
        """Waits for the next job."""
        return self._runs.get()

    def done(self) -> None:
        """Ends the job: messages that come late for it are ignored, and without a job there is no deadline."""
        with self._changed:
            self._runs_one = False
            self._deadline = float("inf")

    @property
    def stop(self) -> Stop | None:
        """The supervisor's order to end the job early; None until it has come."""
        return self._stop

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as lines:
            for line in lines:
                self._take(to_trainer(line))
        os._exit(EXIT_NOT_TRUSTED)

    def _take(self, order: ToTrainer) -> None:
        with self._changed:
            match order:
                case Run():
                    self._runs_one, self._stop, self._deadline = True, None, order.deadline
                    self._runs.put(order)
                case Lease() if self._runs_one:
                    self._deadline = order.deadline
                case Stop() if self._runs_one:
                    self._stop = order
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while (left := self._deadline - time.monotonic()) > 0:
                self._changed.wait(None if left == float("inf") else left)
        os._exit(EXIT_NOT_TRUSTED)


class Telling:
    """Gathers what the run reports into progress messages, at most about ten a second, and estimates the time left."""

    def __init__(self, wire: Wire, training: Training, memory: PeakMemory) -> None:
        self._wire, self._training, self._memory = wire, training, memory
        self._most_memory = -1
        self._began, self._began_at = time.monotonic(), training.iteration
        self._untold: Report | None = None
        self._phase: str | None = None
        self._sent_at = float("-inf")
        self._points: dict[str, list[tuple[int, float]]] = {}
        self._evaluations: list[Evaluated] = []

    def add(self, report: Report) -> None:
        for name, value in report.metrics.items():
            self._points.setdefault(name, []).append((report.iteration, value))
        if report.evaluation is not None:
            self._evaluations.append(evaluated(report.iteration, report.evaluation))
        self._untold = report
        is_due = report.phase != self._phase or time.monotonic() - self._sent_at > SECONDS_BETWEEN_MESSAGES
        if report.evaluation is not None:
            self._memory.reset()  # evaluations take all test tasks at once, and the peak that is reported is that of meta-updates
        elif is_due and report.phase == "training":
            self._add_memory(report.iteration)
        if is_due:
            self.flush()

    def _add_memory(self, iteration: int) -> None:
        """Adds a point of the peak of memory whenever meta-updates have used more of it than before."""
        peak = self._memory.read()
        if peak is not None and peak > self._most_memory:
            self._most_memory = peak
            self._points.setdefault(MEMORY_BYTES, []).append((iteration, float(peak)))

    def flush(self) -> None:
        if self._untold is None:
            return
        self._wire.send(
            ProgressReport(
                phase=self._untold.phase,
                iteration=self._untold.iteration,
                iterations=self._training.iterations,
                eta_seconds=self._eta(self._untold.iteration),
                metrics=self._points,
                evaluations=self._evaluations,
            )
        )
        self._phase, self._sent_at = self._untold.phase, time.monotonic()
        self._untold, self._points, self._evaluations = None, {}, []

    def _eta(self, iteration: int) -> float | None:
        done = iteration - self._began_at
        if done <= 0:
            return None
        return (time.monotonic() - self._began) / done * (self._training.iterations - iteration)


def main() -> None:
    faulthandler.enable()
    die_with_the_worker()
    wire = Wire()
    orders = Orders(os.dup(0))
    _warm_up()
    from amaml.memory import is_out_of_memory  # noqa: PLC0415 - after the warm-up, which says what takes its time

    devices = _devices()
    ready = Ready(versions=versions(), devices=devices, gpu=gpu() if "cuda" in devices else None)
    while True:
        wire.send(ready)
        run = orders.run()
        last: Succeeded | Stopped | Failed | Accident
        try:
            last = _train(run, orders, wire)
        except Exception as error:  # noqa: BLE001 - whatever it was becomes the job's reason
            if is_out_of_memory(error):
                traceback.print_exc()
                _exit(EXIT_OUT_OF_MEMORY)
            last = last_word(error, "trainer", _failure)
        orders.done()
        wire.send(last)
        failpoint("trainer.told_the_end")


def _warm_up() -> None:
    """Imports all that a job needs, by running a tiny one: torch imports much of itself only when it is first used."""
    from amaml.run.training import train  # noqa: PLC0415
    from amaml.spec import EvaluationSpec, JobSpec, MetaSpec, MLPSpec, OptimizerSpec, SinusoidSpec  # noqa: PLC0415

    tiny = JobSpec(
        family=SinusoidSpec(shots=2, queries=2, test_tasks=1),
        model=MLPSpec(hidden=[2]),
        meta=MetaSpec(iterations=1, tasks_per_batch=1, optimizer=OptimizerSpec()),
        evaluation=EvaluationSpec(tasks=1, epochs=1),
    )
    train(tiny)


def _train(run: Run, orders: Orders, wire: Wire) -> Succeeded | Stopped:
    """Runs the job to its end, or until the supervisor stops it."""
    import torch  # noqa: PLC0415 - imported with amaml.run.training

    from amaml.run.training import Training  # noqa: PLC0415
    from amaml.spec import JobSpec  # noqa: PLC0415

    if run.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so that runtime.device auto means the CPU
    torch.set_num_threads(run.threads)
    spec = JobSpec.model_validate_json(run.spec)
    folder = Path(run.folder)
    datasets = {dataset: Path(path) for dataset, path in run.datasets.items()}
    if run.checkpoint is None:
        training = Training.start(spec, datasets, initialization=_path(run.initialization))
    else:
        training = Training.resume(spec, Path(run.checkpoint), datasets)
    failpoint("trainer.ready_to_run")
    telling = Telling(wire, training, PeakMemory(run.device))
    committed = training.iteration
    uncommitted: Path | None = None
    try:
        for report in training:
            telling.add(report)
            failpoint("trainer.reported")
            due = training.iteration // spec.runtime.checkpoint_every > committed // spec.runtime.checkpoint_every
            stop = orders.stop
            if due or (stop is not None and stop.checkpoint):
                _wait_until_gone(uncommitted)
                telling.flush()
                uncommitted = folder / f"checkpoint-{training.iteration}.safetensors"
                training.save_checkpoint(uncommitted)
                failpoint("trainer.checkpoint_written")
                committed = training.iteration
                wire.send(Checkpoint(step=committed, path=str(uncommitted)))
            if stop is not None:
                return Stopped(step=training.iteration)
    finally:  # a run that fails shows its last metrics too
        telling.flush()
    path = folder / "initialization.safetensors"
    training.save_initialization(path, {"job_id": run.job_id})
    failpoint("trainer.initialization_written")
    reason, detail = training.early_end or (None, None)
    return Succeeded(
        path=str(path), parameters=training.parameters, iteration=training.iteration, reason=reason, detail=detail
    )


def _failure(error: Exception) -> Failed:
    """The message for a run that failed by itself, with the sentence that the job shows."""
    from pydantic import ValidationError  # noqa: PLC0415

    from amaml.families.base import DataError  # noqa: PLC0415
    from amaml.flow.result import SolveError  # noqa: PLC0415
    from amaml.run.checkpoint import CheckpointError  # noqa: PLC0415
    from amaml.run.initialization import InitializationError  # noqa: PLC0415
    from amaml.run.training import CertificateFailed, Diverged, OutOfMemory, TimedOut  # noqa: PLC0415

    reasons: Mapping[type[Exception], FailureReason] = {
        SolveError: "solver_failed",
        Diverged: "diverged",
        CertificateFailed: "certificate_failed",
        DataError: "bad_data",
        InitializationError: "bad_data",
        CheckpointError: "checkpoint_refused",
        OutOfMemory: "out_of_memory",
        TimedOut: "timed_out",
        ValidationError: "bad_spec",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return Failed(reason=reason, detail=sentence(str(error)))
    traceback.print_exception(error)
    return Failed(reason="error", detail=sentence(f"The run raised {type(error).__name__}: {error}"))


def _wait_until_gone(uncommitted: Path | None) -> None:
    """Waits until the supervisor has committed the previous checkpoint: at most one waits, and none is left out."""
    while uncommitted is not None and uncommitted.exists():
        time.sleep(0.005)


def _devices() -> list[Literal["cpu", "cuda"]]:
    import torch  # noqa: PLC0415

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _exit(status: int) -> None:
    """Ends at once: tearing down torch takes time and has nothing to save."""
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
