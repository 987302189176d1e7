"""Checkpoints, metrics and events that an attempt writes, on a real store and without processes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select

from service.core import blobs
from service.core.database import transaction
from service.jobs import progress
from service.jobs.tables import Checkpoint, Metric
from tests.support.jobs import ask, events_of, fenced, job_of, spec, submit, taken

pytestmark = pytest.mark.usefixtures("store")


def test_old_checkpoints_go_with_their_bytes() -> None:
    submit(spec())
    claim = taken()
    for step in range(1, progress.KEPT_CHECKPOINTS + 3):
        blob = blobs.write([b"checkpoint"]).blob_id
        assert fenced(claim, lambda session, job, at=step, id_=blob: progress.add_checkpoint(session, job, at, id_))
    with transaction() as session:
        steps = list(session.scalars(select(Checkpoint.step).order_by(Checkpoint.step)))
        kept = session.scalars(select(func.count()).select_from(blobs.Blob)).one()
    assert steps == list(range(3, progress.KEPT_CHECKPOINTS + 3))
    assert kept == progress.KEPT_CHECKPOINTS


def test_a_checkpoint_from_which_a_job_is_to_start_is_kept_until_that_has_ended() -> None:
    source = submit(spec())
    claim = taken()

    def commit(step: int) -> None:
        blob = blobs.write([b"checkpoint"]).blob_id
        fenced(claim, lambda session, job: progress.add_checkpoint(session, job, step, blob))

    def steps() -> list[int]:
        with transaction() as session:
            return list(session.scalars(select(Checkpoint.step).order_by(Checkpoint.step)))

    commit(1)
    fork = submit(spec(meta={"init_from": {"job": str(source), "step": 1}}))
    for step in range(2, progress.KEPT_CHECKPOINTS + 3):
        commit(step)
    assert steps() == [1, *range(3, progress.KEPT_CHECKPOINTS + 3)]
    ask(fork, "cancel")
    commit(progress.KEPT_CHECKPOINTS + 3)
    assert steps() == list(range(4, progress.KEPT_CHECKPOINTS + 4))


def test_a_checkpoint_whose_commit_was_not_heard_of_is_committed_once() -> None:
    submit(spec())
    claim = taken()
    blob, other = blobs.write([b"checkpoint"]).blob_id, blobs.write([b"another"]).blob_id
    assert fenced(claim, lambda session, job: progress.add_checkpoint(session, job, 1, blob))
    assert fenced(claim, lambda session, job: progress.add_checkpoint(session, job, 1, blob))
    assert not fenced(claim, lambda session, job: progress.add_checkpoint(session, job, 1, other))
    with transaction() as session:
        assert session.scalars(select(Checkpoint.blob_id)).all() == [blob]


def test_what_was_told_while_the_database_was_away_is_written_at_once() -> None:
    submit(spec())
    claim = taken()
    points = {name: [(step, 0.5) for step in range(10_000)] for name in ("meta_loss", "grad_norm")}
    fenced(claim, lambda session, job: progress.add_metrics(session, job, points))
    with transaction() as session:
        assert session.scalars(select(func.count()).select_from(Metric)).one() == 20_000


def test_a_metric_has_one_value_a_step_and_may_be_infinite() -> None:
    job_id = submit(spec())
    claim = taken()
    fenced(claim, lambda session, job: progress.add_metrics(session, job, {"meta_loss": [(1, 0.5), (2, 0.4)]}))
    fenced(
        claim, lambda session, job: progress.add_metrics(session, job, {"meta_loss": [(2, 0.25), (3, float("inf"))]})
    )
    with transaction() as session:
        points = [(one.step, one.value) for one in session.scalars(select(Metric).order_by(Metric.step))]
    assert points == [(1, 0.5), (2, 0.25), (3, float("inf"))]
    assert job_of(job_id).metrics == {"meta_loss": None}


def test_events_are_numbered_without_gaps_when_writers_meet() -> None:
    job_id = submit(spec())
    claim = taken()

    def tell(_: int) -> None:
        fenced(claim, progress.write_event)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(tell, range(24)))
    assert [one.seq for one in events_of(job_id)] == list(range(1, 27))
