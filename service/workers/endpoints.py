"""/v1/workers: the worker processes that run jobs."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from service.core.database import transaction
from service.http.pages import Page
from service.http.replies import documented, json_reply
from service.keys.authentication import Caller, needs
from service.workers import store as workers

router = APIRouter(prefix="/v1", tags=["workers"])


class GpuDocument(BaseModel):
    model_config = ConfigDict(title="GPU", use_attribute_docstrings=True)

    name: str = Field(examples=["NVIDIA H100 80GB HBM3"])
    """The model."""
    memory_bytes: int = Field(examples=[84_987_740_160])
    uuid: str = Field(examples=["GPU-8f3c2a1e-6b4d-4f0a-9c77-2d1e5b6a7c80"])
    """The driver's identifier, as `nvidia-smi -L` shows it."""


class WorkerDocument(BaseModel):
    model_config = ConfigDict(title="Worker", use_attribute_docstrings=True)

    id: UUID
    host: str = Field(examples=["gpu-3"])
    devices: list[str] = Field(examples=[["cpu", "cuda"]])
    """Devices on which it can run jobs."""
    gpu: GpuDocument | None
    """The GPU on which its jobs for cuda run; null if it has none."""
    lives: bool
    """Whether it has reported within the last ten seconds."""
    started_at: datetime
    seen_at: datetime


@router.get(
    "/workers",
    dependencies=[needs("workers:read")],
    response_model=Page[WorkerDocument],
    summary="List workers",
    responses=documented(description="The oldest first, all on one page."),
)
def listed(_: Caller) -> Response:
    """The worker processes of this installation, which serve all workspaces."""
    with transaction() as session:
        found = workers.every(session)
    return json_reply(
        Page(
            data=[
                WorkerDocument(
                    id=worker.id, host=worker.host, devices=worker.devices, lives=lives,
                    gpu=None if worker.gpu is None else GpuDocument.model_validate(worker.gpu),
                    started_at=worker.started_at, seen_at=worker.seen_at,
                )
                for worker, lives in found
            ]
        )
    )  # fmt: skip
