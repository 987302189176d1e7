"""A minimal service of this kind, the floor of benchmarks/api.py: FastAPI, SQLAlchemy and psycopg; a key looked up by its hash, a
job row and an outbox row in one transaction, and the row read back. No checks, no events, no ETags."""

from __future__ import annotations

import hashlib
import os
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import FastAPI, Header, HTTPException
from sqlalchemy import DateTime, ForeignKey, LargeBinary, create_engine, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Key(Base):
    __tablename__ = "keys"
    sha256: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    workspace_id: Mapped[UUID]


class Job(Base):
    __tablename__ = "jobs"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    workspace_id: Mapped[UUID]
    state: Mapped[str] = mapped_column(default="queued")
    spec: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class Outbox(Base):
    __tablename__ = "outbox"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"))


engine = create_engine(os.environ["AMAML_DATABASE_URL"], pool_size=10, max_overflow=35)
app = FastAPI()
Authorization = Annotated[str, Header()]


def prepare() -> None:
    """Tables and one key."""
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Key(sha256=hashlib.sha256(os.environ["FLOOR_KEY"].encode()).digest(), workspace_id=uuid4()))


def _workspace(session: Session, authorization: str) -> UUID:
    digest = hashlib.sha256(authorization.removeprefix("Bearer ").encode()).digest()
    found = session.scalar(select(Key.workspace_id).where(Key.sha256 == digest))
    if found is None:
        raise HTTPException(401)
    return found


def _document(job: Job) -> dict[str, Any]:
    return {"id": str(job.id), "state": job.state, "spec": job.spec, "created_at": job.created_at.isoformat()}


@app.get("/healthz")
def healthz() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/v1/jobs", status_code=201)
def submit(spec: dict[str, Any], authorization: Authorization) -> dict[str, Any]:
    with Session(engine) as session, session.begin():
        job = Job(workspace_id=_workspace(session, authorization), spec=spec)
        session.add(job)
        session.flush()
        session.add(Outbox(job_id=job.id))
        return _document(job)


@app.get("/v1/jobs/{job_id}")
def look(job_id: UUID, authorization: Authorization) -> dict[str, Any]:
    with Session(engine) as session, session.begin():
        workspace_id = _workspace(session, authorization)
        job = session.scalar(select(Job).where(Job.id == job_id, Job.workspace_id == workspace_id))
        if job is None:
            raise HTTPException(404)
        return _document(job)


if __name__ == "__main__":
    prepare()
