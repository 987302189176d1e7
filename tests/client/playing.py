"""Plays a worker beside the API: what becomes of jobs, data sets and adaptations is what a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from service.adaptations import store as adaptations
from service.core import blobs
from service.core.database import transaction
from tests.support import jobs
from worker.datasets.checks import DatasetChecks
from worker.processes.periodic_task import PeriodicTask
from worker.settings import WorkerSettings

SPEC: dict[str, Any] = {"family": {"kind": "sinusoid"}, "meta": {"iterations": 10}}
NOBODY = "0199a0a0-0000-7000-8000-000000000000"
"""No job, data set or other thing has this id."""


def finish(
    job_id: str, initialization: bytes = b"theta", metrics: Mapping[str, Sequence[tuple[int, float]]] | None = None
) -> None:
    """The job runs and succeeds."""
    jobs.claim(job_id)
    jobs.succeed(job_id, initialization, metrics)


def diverge(job_id: str) -> None:
    """The job runs and fails."""
    jobs.claim(job_id)
    jobs.fail(job_id, "diverged", "lower meta.optimizer.lr")


@contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Does it in a thread while the block runs; what it raises is raised here."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(action)
        try:
            yield
        finally:
            done.result()


@contextmanager
def checking(home: Path) -> Iterator[None]:
    """A worker's checks of data sets, as long as the block runs."""
    stopping = threading.Event()
    checks = DatasetChecks(WorkerSettings(broker_url="redis://none"), home, stopping)
    with _running(checks.step, stopping):
        yield


@contextmanager
def adapting(weights: bytes | None = None, **failure: str) -> Iterator[list[dict[str, Any]]]:
    """A worker that answers each adaptation with 0.5 at every query row, or that failure; what it was asked."""
    asked: list[dict[str, Any]] = []

    def step() -> None:
        with transaction() as session:
            taken = adaptations.take_next(session, timedelta(minutes=5))
        if taken is None:
            return
        asked.append(taken.request)
        query = (taken.request["query"] or {"x": []})["x"]
        curve = {"over": "t", "at": [0.0, 2.0], "support": [1.0, 0.25], "query": None}
        result = {"outputs": ["y"], "predictions": [[0.5] for _ in query], "curve": curve}
        written = None if weights is None else blobs.write([weights])
        with transaction() as session:
            if failure:
                adaptations.fail(session, taken, **failure)
            else:
                adaptations.succeed(session, taken, result, written and written.blob_id)

    with _running(step, threading.Event()):
        yield asked


@contextmanager
def _running(step: Callable[[], None], stopping: threading.Event) -> Iterator[None]:
    task = PeriodicTask("played by a test", step, 0.02, stopping)
    task.start()
    try:
        yield
    finally:
        stopping.set()
        task.join()
