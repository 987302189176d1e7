"""The API's documents of a data set."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from amaml.dataset_report import DatasetReport
from service.datasets.tables import Dataset
from service.http.examples import DATASET_ID, SHA256

State = Literal["pending", "ready", "invalid"]


_OWN: Final = f"/v1/datasets/{DATASET_ID}"


class DatasetLinks(BaseModel):
    self: str = Field(examples=[_OWN])
    content: str = Field(examples=[f"{_OWN}/content"])


class DatasetDocument(BaseModel):
    model_config = ConfigDict(title="Dataset", use_attribute_docstrings=True)

    id: UUID = Field(examples=[DATASET_ID])
    name: str = Field(examples=["MovieLens-100K"])
    version: int = Field(examples=[1])
    """The number of this data set among those of its name: 1, 2, …; data sets never change."""
    format: str = Field(examples=["movielens-100k"])
    families: list[str] = Field(examples=[["ratings"]])
    """Task families that can read it."""
    sha256: str = Field(examples=[SHA256])
    bytes: int = Field(examples=[1_979_173])
    rows: int | None = Field(examples=[100_000])
    """Ratings, rows or images; null until it is ready."""
    tasks: int | None = Field(examples=[943])
    """Users of ratings, classes of images; null until it is ready, and for tables, of which the spec names the task column."""
    state: State = Field(examples=["ready"])
    """`pending` until a worker has checked it, then `ready` or `invalid`."""
    status_detail: str | None
    """If it is invalid, a sentence that says why."""
    created_at: datetime
    checked_at: datetime | None = Field(examples=["2026-01-15T12:00:01.200000Z"])
    links: DatasetLinks


class DatasetWithReport(DatasetDocument):
    model_config = ConfigDict(title="DatasetWithReport")

    report: DatasetReport | None = Field(
        examples=[{"rows": 100_000, "tasks": 943, "columns": [], "images": None, "errors": []}]
    )
    """What the check has found; null before the check, and if the check ended without a report."""


def dataset_document(dataset: Dataset) -> DatasetDocument:
    return DatasetDocument.model_validate(_fields(dataset, DatasetDocument))


def with_report(dataset: Dataset) -> DatasetWithReport:
    return DatasetWithReport.model_validate(_fields(dataset, DatasetWithReport))


def _fields(dataset: Dataset, document: type[DatasetDocument]) -> dict[str, object]:
    path = f"/v1/datasets/{dataset.id}"
    links = {"self": path, "content": f"{path}/content"}
    return {name: getattr(dataset, name) for name in document.model_fields if name != "links"} | {"links": links}
