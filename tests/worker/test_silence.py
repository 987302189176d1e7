"""A worker that hears no wake-up, since its broker is refused for its whole life, still runs jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.ports import free_port
from tests.support.jobs import attempts_of, spec, submit, wait_for, wait_for_iteration
from tests.support.workers import STUB, Workers

pytestmark = pytest.mark.processes


def test_a_lone_worker_without_a_broker_runs_jobs_and_ends_in_good_order(shared_store: str, tmp_path: Path) -> None:
    workers = Workers(shared_store, f"redis://127.0.0.1:{free_port()}/0", tmp_path, STUB)
    worker = workers.start_ready()
    ids = [submit(spec(5, seed=seed)) for seed in range(3)]
    for job_id in ids:
        wait_for(job_id, "succeeded")
        assert len(attempts_of(job_id)) == 1
    unended = submit(spec(100_000))
    wait_for_iteration(unended, 1)
    assert worker.stop() == 0
    assert attempts_of(unended)[0].reason == "worker_shutdown"
    assert not list((tmp_path / "attempts").iterdir())
