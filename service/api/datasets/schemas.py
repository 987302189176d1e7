"""What the API says about a data set."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class DatasetDocument(BaseModel):
    model_config = ConfigDict(title="Dataset", use_attribute_docstrings=True, from_attributes=True)

    id: UUID
    name: str
    format: str
    sha256: str
    bytes: int
    rows: int
    """Ratings."""
    tasks: int
    """Users with at least one rating."""
    state: str
    """`ready`."""
    created_at: datetime
