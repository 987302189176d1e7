"""What must be true of every job in a store, whatever happened: read from its rows alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from sqlalchemy import select
from sqlalchemy.orm import Session

from amaml.spec import JobSpec
from service.core.tables import Blob
from service.jobs.tables import Attempt, Checkpoint, Event, Job, Metric
from service.jobs.transitions import FINAL, LEASED, TRANSITIONS


def violations(session: Session) -> list[str]:
    """A sentence for each promise that a job's rows break; empty if all is well."""
    found = []
    for job in session.scalars(select(Job)):
        events = list(session.scalars(select(Event).where(Event.job_id == job.id).order_by(Event.seq)))
        attempts = list(session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.number)))
        checks = (
            _ends(job, events),
            _events(job, events),
            _attempts(session, job, events, attempts),
            _result(session, job, events),
        )
        found += [f"job {job.id} ({job.state}): {sentence}" for check in checks for sentence in check]
    return found


def _ends(job: Job, events: list[Event]) -> Iterator[str]:
    ends = [event.data["state"] for event in events if event.kind == "state" and event.data["state"] in FINAL]
    extended = ends[: len(ends) - (job.state in FINAL)]  # of shorter runs, which it went on from
    if ends[len(extended) :] != ([job.state] if job.state in FINAL else []) or {*extended} - {"succeeded"}:
        yield f"it ended as {ends or 'nothing'}"
    if (job.ended_at is not None) != (job.state in FINAL):
        yield f"its time of ending is {job.ended_at}"


def _events(job: Job, events: list[Event]) -> Iterator[str]:
    if [event.seq for event in events] != list(range(1, job.last_seq + 1)):
        yield f"its events are numbered {[event.seq for event in events]}, and the last is {job.last_seq}"
    states = [event.data["state"] for event in events if event.kind == "state"]
    illegal = [step for step in pairwise(states) if step not in TRANSITIONS]
    if illegal or states[0] != "queued" or states[-1] != job.state:
        yield f"it went through {states}"
    state = None
    for event in events:
        state = event.data["state"] if event.kind == "state" else state
        if event.kind != "state" and state not in LEASED:
            yield f"event {event.seq} was written by an attempt that was over: the job was {state}"


def _attempts(session: Session, job: Job, events: list[Event], attempts: list[Attempt]) -> Iterator[str]:
    if [attempt.number for attempt in attempts] != list(range(1, job.attempt + 1)):
        yield f"its attempts are {[attempt.number for attempt in attempts]}, and its fence is {job.attempt}"
    claims = sum(event.kind == "state" and event.data["state"] == "running" for event in events)
    if claims != job.attempt:
        yield f"it was claimed {claims} times, and its fence is {job.attempt}"
    unended = [attempt.number for attempt in attempts if attempt.ended_at is None]
    if unended != ([job.attempt] if job.state in LEASED else []):
        yield f"attempts {unended} have not ended"
    good = [attempt.number for attempt in attempts if attempt.reason == "succeeded"]
    if len(good) != _successes(events) or (job.state == "succeeded" and good[-1:] != [job.attempt]):
        yield f"attempts {good} succeeded"
    ends = {attempt.number: attempt.ended_at for attempt in attempts}
    for checkpoint in session.scalars(select(Checkpoint).where(Checkpoint.job_id == job.id)):
        end = ends.get(checkpoint.attempt)
        if end is not None and checkpoint.created_at > end:
            yield f"checkpoint {checkpoint.step} was taken from attempt {checkpoint.attempt} after that had ended"


def _successes(events: list[Event]) -> int:
    return sum(event.kind == "state" and event.data["state"] == "succeeded" for event in events)


def _result(session: Session, job: Job, events: list[Event]) -> Iterator[str]:
    if (job.initialization_blob_id is not None) != (_successes(events) > 0):
        yield f"its initialization is {job.initialization_blob_id}"
    if job.state != "succeeded":
        return
    if session.scalar(select(Blob.sha256).where(Blob.id == job.initialization_blob_id)) is None:
        yield "its initialization is unfinished"
    losses = select(Metric.step).where(Metric.job_id == job.id, Metric.name == "meta_loss").order_by(Metric.step)
    steps = list(session.scalars(losses))
    source = JobSpec.from_document(job.spec).meta.init_from
    begun = source.step or 0 if source is not None and source.state == "full" else 0
    if steps != list(range(begun + 1, job.iterations + 1)):
        yield f"it has {len(steps)} losses for iterations {begun + 1} to {job.iterations}: {steps}"
