"""What Celery and its broker are known to do wrong now and then: deliver twice, lose, fall silent, end amid a write."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from threading import Event

import pytest
import redis
from celery import Celery

from launcher import valkey
from launcher.children import Child
from launcher.log import Log
from service.core.database import transaction
from tests.support.audit import violations
from tests.support.jobs import ask, attempts_of, bits_of, spec, submit, undisturbed, wait_for, wait_for_iteration
from tests.support.waiting import wait_until
from tests.support.workers import STUB, WorkerProcess, Workers
from worker.maintenance.outbox import TASK
from worker.processes import failpoint

pytestmark = pytest.mark.processes

ITERATIONS = 400
QUEUE = "amaml"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Child, str]]:
    """A broker of its own, which the tests stop and go on with."""
    folder = tmp_path_factory.mktemp("valkey")
    with (folder / "log").open("w") as stream:
        server, url = valkey.start(folder / "data", "hazards", Log(stream), Event())
        yield server, url
        os.kill(server.pid, signal.SIGCONT)
        server.stop()


@pytest.fixture(scope="module")
def crew(shared_store: str, broker: tuple[Child, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with Workers(shared_store, broker[1], tmp_path_factory.mktemp("home"), STUB) as workers:
        yield workers
        os.kill(broker[0].pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def worker(crew: Workers) -> WorkerProcess:
    return crew.start_ready()


@pytest.fixture(scope="module")
def expected(worker: WorkerProcess) -> str:
    return bits_of(undisturbed(spec(ITERATIONS, checkpoint_every=40)))


def check_rows() -> None:
    with transaction() as session:
        assert violations(session) == []


def test_no_message_is_unacknowledged_while_a_job_runs(worker: WorkerProcess, broker: tuple[Child, str]) -> None:
    """What isn't there can't be delivered again because the job runs for longer than the broker's patience."""
    job_id = submit(spec(100_000))
    wait_for_iteration(job_id, 1)
    with redis.Redis.from_url(broker[1]) as client:
        assert client.hlen("unacked") == 0
    ask(job_id, "cancel")
    wait_for(job_id, "cancelled")


def test_a_message_delivered_many_times_starts_no_job_twice(worker: WorkerProcess, broker: tuple[Child, str]) -> None:
    ids = [submit(spec(5, seed=seed)) for seed in range(4)]
    app = Celery(broker=broker[1])
    for _ in range(30):
        app.send_task(TASK, task_id="the same each time", queue=QUEUE)
    for job_id in ids:
        wait_for(job_id, "succeeded")
    with redis.Redis.from_url(broker[1]) as client:
        wait_until(lambda: client.llen(QUEUE) == 0)
    assert [len(attempts_of(job_id)) for job_id in ids] == [1] * 4
    check_rows()


def test_a_worker_hears_again_after_its_connections_were_cut(worker: WorkerProcess, broker: tuple[Child, str]) -> None:
    for _ in range(3):
        with redis.Redis.from_url(broker[1]) as client:
            cut = [each["id"] for each in client.client_list() if each["id"] != str(client.client_id())]
            for number in cut:
                client.client_kill_filter(_id=number)
        assert cut
        job_id = submit(spec(2))
        wait_for(job_id, "succeeded")
    _check_that_messages_are_taken(broker[1])


def test_jobs_run_while_the_broker_is_silent(worker: WorkerProcess, broker: tuple[Child, str]) -> None:
    """It takes connections and never answers: worse than one that is away."""
    os.kill(broker[0].pid, signal.SIGSTOP)
    try:
        for seed in range(2):
            job_id = submit(spec(2, seed=seed))
            wait_for(job_id, "succeeded")
            assert len(attempts_of(job_id)) == 1
    finally:
        os.kill(broker[0].pid, signal.SIGCONT)
    _check_that_messages_are_taken(broker[1])


def test_a_worker_told_to_end_while_the_broker_is_silent_gives_its_job_back(
    worker: WorkerProcess, crew: Workers, broker: tuple[Child, str], expected: str
) -> None:
    other = crew.start_ready(**{failpoint.VARIABLE: "trainer.reported=sleep:0.1@*"})
    with crew.only(other):
        job_id = submit(spec(ITERATIONS, checkpoint_every=1_000_000))
        wait_for_iteration(job_id, 5)
        os.kill(broker[0].pid, signal.SIGSTOP)
        other.signal(signal.SIGTERM)
        wait_until(lambda: attempts_of(job_id)[0].reason == "worker_shutdown")
    try:
        wait_for(job_id, "succeeded")
    finally:
        os.kill(broker[0].pid, signal.SIGCONT)
    assert other.wait() == 0
    assert bits_of(job_id) == expected
    check_rows()


@pytest.mark.parametrize("place", ["claim.before_commit", "checkpoint.before_commit", "finish.before_commit"])
def test_a_worker_told_to_end_amid_a_commit_ends_after_it(
    place: str, worker: WorkerProcess, crew: Workers, expected: str
) -> None:
    other = crew.start_ready()
    other.arm(f"{place}=sleep:1")
    with crew.only(other):
        job_id = submit(spec(ITERATIONS, checkpoint_every=40))
        wait_until(lambda: other.accident_happened)
        assert other.stop() == 0
    wait_for(job_id, "succeeded")
    assert bits_of(job_id) == expected
    reasons = [attempt.reason for attempt in attempts_of(job_id)]
    assert reasons == (["succeeded"] if place == "finish.before_commit" else ["worker_shutdown", "succeeded"])
    check_rows()


def _check_that_messages_are_taken(url: str) -> None:
    """A worker empties the queue, into which one was put. What it misses while it connects anew is the reconciler's matter."""
    Celery(broker=url).send_task(TASK, queue=QUEUE)
    with redis.Redis.from_url(url) as client:
        wait_until(lambda: client.llen(QUEUE) == 0)
