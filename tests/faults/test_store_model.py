"""The store's functions in any order against the table of legal steps: a model of what each must do, and of who may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from amaml.spec import JobSpec
from service.core import blobs
from service.core.database import transaction
from service.core.refusals import WrongState
from service.core.tables import Base
from service.jobs import attempts, claims, progress
from service.jobs import store as jobs
from service.jobs.claims import Claim, Claimant, StaleFence
from service.jobs.tables import Job
from service.jobs.transitions import FINAL, LEASED, TRANSITIONS, State
from tests.support.audit import violations
from tests.support.jobs import spec, submit
from worker.maintenance.reconciler import end_one_lapsed_lease

LEASE = timedelta(minutes=5)
MAX_ATTEMPTS = 2
ITERATIONS = 2

pick = st.integers(0, 2)


@dataclass
class Model:
    """What a job must be."""

    state: State = "queued"
    attempt: int = 0
    lapsed: bool = False
    iterations: int = ITERATIONS
    crashed: list[int] = field(default_factory=list)
    checkpoints: dict[int, int] = field(default_factory=dict)
    """Step → attempt."""
    succeeded_at: int = 0

    @property
    def step(self) -> int:
        return max(self.checkpoints, default=0)


def has_claims(store: Store) -> bool:
    return bool(store.claims)


class Store(RuleBasedStateMachine):
    taken: set[tuple[State, State]]

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[UUID, Model] = {}
        self.claims: list[Claim] = []
        with transaction() as session:
            session.execute(text(f"TRUNCATE {', '.join(table.name for table in Base.metadata.sorted_tables)}"))

    def become(self, job: Model, target: State) -> None:
        assert (job.state, target) in TRANSITIONS
        self.taken.add((job.state, target))
        job.state = target
        job.lapsed &= target in LEASED

    # Users

    @precondition(lambda self: sum(job.state not in FINAL for job in self.jobs.values()) < 2)
    @rule()
    def submit(self) -> None:
        self.jobs[submit(spec(ITERATIONS, max_attempts=MAX_ATTEMPTS), wake=False)] = Model()

    @precondition(lambda self: self.jobs)
    @rule(which=pick, what=st.sampled_from(["cancel", "pause", "pause", "resume"]))
    def ask(self, which: int, what: str) -> None:
        job_id, job = list(self.jobs.items())[-1 - which % len(self.jobs)]
        targets: dict[str, dict[State, State]] = {
            "cancel": {
                "queued": "cancelled", "paused": "cancelled", "running": "cancelling", "pausing": "cancelling",
                "cancelling": "cancelling", "cancelled": "cancelled",
            },
            "pause": {"queued": "paused", "running": "pausing", "pausing": "pausing", "paused": "paused"},
            "resume": {"paused": "queued", "queued": "queued", "running": "running"},
        }  # fmt: skip
        target = targets[what].get(job.state)
        with transaction() as session:
            workspace = session.scalars(select(Job.workspace_id).where(Job.id == job_id)).one()
            if target is None:
                with pytest.raises(WrongState):
                    getattr(jobs, what)(session, workspace, job_id)
            else:
                assert getattr(jobs, what)(session, workspace, job_id)
        if target is not None and target != job.state:
            self.become(job, target)

    @precondition(lambda self: any(job.state == "succeeded" for job in self.jobs.values()))
    @rule(which=pick)
    def extend(self, which: int) -> None:
        ended = [(job_id, job) for job_id, job in self.jobs.items() if job.state == "succeeded"]
        job_id, job = ended[which % len(ended)]
        with transaction() as session:
            row = session.get_one(Job, job_id)
            longer = JobSpec.model_validate(row.spec).extended(job.iterations + 2)
            assert jobs.extend(session, row.workspace_id, job_id, longer)
        job.checkpoints = {step: attempt for step, attempt in job.checkpoints.items() if step < job.iterations}
        job.iterations += 2
        self.become(job, "queued")

    # Workers

    @precondition(lambda self: any(job.state == "queued" for job in self.jobs.values()))
    @rule()
    def claim(self) -> None:
        worker = Claimant(id=uuid4(), host="here", devices=["cpu"], threads=1, versions={}, trainer_pid=1)
        with transaction() as session:
            session.execute(update(Job).values(queued_at=func.least(Job.queued_at, func.now())))  # back-off has passed
        with transaction() as session:
            claim = claims.take_next(session, worker, LEASE)
        assert claim is not None
        job = self.jobs[claim.id]
        job.attempt += 1
        assert claim.attempt == job.attempt
        assert claim.checkpoint is None or claim.checkpoint[0] == job.step
        self.become(job, "running")
        self.claims.append(claim)

    def write(self, which: int, work: Callable[[Session, Job], Any]) -> Model | None:
        """Does the work under one of all claims there ever were; the job, if the claim is live, else None."""
        claim = self.claims[-1 - which % len(self.claims)]
        job = self.jobs[claim.id]

        def write() -> None:
            with transaction() as session:
                row = claims.hold(session, claim)
                claims.QUEUE.extend(row, LEASE)
                work(session, row)

        if job.state in LEASED and claim.attempt == job.attempt:
            write()
            job.lapsed = False
            return job
        with pytest.raises(StaleFence):
            write()
        return None

    @precondition(has_claims)
    @rule(which=pick)
    def renew(self, which: int) -> None:
        self.write(which, lambda *_: None)

    @precondition(has_claims)
    @rule(which=pick)
    def checkpoint(self, which: int) -> None:
        def add(session: Session, row: Job) -> None:
            assert progress.add_checkpoint(session, row, self.jobs[row.id].step + 1, blob_id)

        blob_id = blobs.write([b"weights"]).blob_id
        job = self.write(which, add)
        if job is not None:
            job.checkpoints[job.step + 1] = job.attempt

    @precondition(has_claims)
    @rule(which=pick)
    def succeed(self, which: int) -> None:
        def succeed(session: Session, row: Job) -> None:
            progress.add_metrics(session, row, {"meta_loss": [(step + 1, 0.5) for step in range(row.iterations)]})
            attempts.succeeded(session, row, blob_id, 7, iteration=row.iterations)

        blob_id = blobs.write([b"weights"]).blob_id
        job = self.write(which, succeed)
        if job is not None:
            self.become(job, "succeeded")
            job.succeeded_at = job.attempt

    @precondition(has_claims)
    @rule(which=pick)
    def fail(self, which: int) -> None:
        job = self.write(which, lambda session, row: attempts.failed(session, row, "diverged", "It diverged."))
        if job is not None:
            self.become(job, "failed")

    @precondition(has_claims)
    @rule(which=pick)
    def stop(self, which: int) -> None:
        job = self.write(which, attempts.stopped)
        if job is not None:
            asked: dict[State, State] = {"pausing": "paused", "cancelling": "cancelled"}
            self.become(job, asked.get(job.state, "queued"))

    @precondition(has_claims)
    @rule(which=pick)
    def crash(self, which: int) -> None:
        job = self.write(which, lambda session, row: attempts.crashed(session, row, "killed", "It was killed"))
        if job is not None:
            self.has_crashed(job)

    # Accidents

    @precondition(lambda self: any(job.state in LEASED for job in self.jobs.values()))
    @rule(which=pick)
    def lapse(self, which: int) -> None:
        leased = [(job_id, job) for job_id, job in self.jobs.items() if job.state in LEASED]
        job_id, job = leased[which % len(leased)]
        with transaction() as session:
            lapsed_at = func.now() - timedelta(seconds=1 + which)
            session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=lapsed_at))
        job.lapsed = True

    @precondition(lambda self: any(job.lapsed for job in self.jobs.values()))
    @rule()
    def reconcile(self) -> None:
        while end_one_lapsed_lease("job"):
            pass
        for job in self.jobs.values():
            if job.lapsed:
                self.has_crashed(job)

    def has_crashed(self, job: Model) -> None:
        job.crashed.append(job.attempt)
        since = max(job.checkpoints.get(job.step, 0), job.succeeded_at + 1)
        crashes = sum(attempt >= since for attempt in job.crashed)
        asked: dict[State, State] = {"pausing": "paused", "cancelling": "cancelled"}
        self.become(job, asked.get(job.state, "failed" if crashes >= MAX_ATTEMPTS else "queued"))

    # What holds at any time

    @invariant()
    def the_rows_are_as_the_model_says(self) -> None:
        with transaction() as session:
            rows = {row.id: (row.state, row.attempt) for row in session.execute(select(Job.id, Job.state, Job.attempt))}
        assert rows == {job_id: (job.state, job.attempt) for job_id, job in self.jobs.items()}

    def teardown(self) -> None:
        with transaction() as session:
            assert violations(session) == []


@pytest.mark.usefixtures("store")
def test_the_store_does_what_the_model_says() -> None:
    Store.taken = set()
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Store,
        settings=settings(
            max_examples=20, stateful_step_count=40, deadline=None, derandomize=True, database=None,
            phases=[Phase.generate],  # shrinking a failure takes minutes: rows are slower than numbers
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    assert len(Store.taken) > len(TRANSITIONS) / 2, "the model went nowhere"
    assert ("succeeded", "queued") in Store.taken
