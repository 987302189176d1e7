"""What the API says about a data set."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from amaml.dataset_report import DatasetReport
from service.datasets.tables import Dataset

State = Literal["pending", "ready", "invalid"]


class DatasetLinks(BaseModel):
    self: str
    content: str


class DatasetDocument(BaseModel):
    model_config = ConfigDict(title="Dataset", use_attribute_docstrings=True)

    id: UUID
    name: str
    version: int
    """1, 2, … of the data sets of this name; data sets never change."""
    format: str
    families: list[str]
    """Those that can read it."""
    sha256: str
    bytes: int
    rows: int | None
    """Ratings, rows or images; null until it is ready."""
    tasks: int | None
    """Users of ratings, classes of images; null until it is ready, and for tables, where the spec names the task column."""
    state: State
    """`pending` until a worker has checked it, then `ready` or `invalid`."""
    status_detail: str | None
    """Of an invalid one: a sentence that says what is wrong."""
    created_at: datetime
    checked_at: datetime | None
    links: DatasetLinks


class DatasetWithReport(DatasetDocument):
    model_config = ConfigDict(title="DatasetWithReport")

    report: DatasetReport | None
    """What the check found; null until then, and where the check came to no report."""


def dataset_document(dataset: Dataset) -> DatasetDocument:
    return DatasetDocument.model_validate(_fields(dataset, DatasetDocument))


def with_report(dataset: Dataset) -> DatasetWithReport:
    return DatasetWithReport.model_validate(_fields(dataset, DatasetWithReport))


def _fields(dataset: Dataset, document: type[DatasetDocument]) -> dict[str, object]:
    path = f"/v1/datasets/{dataset.id}"
    links = {"self": path, "content": f"{path}/content"}
    return {name: getattr(dataset, name) for name in document.model_fields if name != "links"} | {"links": links}
