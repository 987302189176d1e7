"""The report of a data set's check: its contents and its errors. Imports neither torch nor numpy."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

MAX_ERRORS: Final = 20
"""The most errors in a report; they are the first ones of the file."""

Count = Annotated[int, Field(ge=0, le=2**53)]


class _Piece(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LineError(_Piece):
    line: Count
    """The line, counted from 1, or the number of an image; 0: the file as a whole."""
    detail: str = Field(max_length=1000)


class ColumnReport(_Piece):
    name: str = Field(max_length=1000)
    type: str = Field(max_length=40, examples=["number"])
    """`integer`, `number`, `boolean`, `text`, `empty` (no value at all) or `other`, which families can't use."""
    missing: Count
    """Rows without a value."""


class ImagesReport(_Piece):
    channels: Count
    height: Count
    width: Count
    dtype: str = Field(max_length=20, examples=["U8"])
    classes: Count
    smallest_class: Count
    """Images in it."""
    largest_class: Count


class DatasetReport(_Piece):
    """`rows` and all else are meaningless where there are errors."""

    rows: Count
    """Ratings, rows of a table, or images."""
    tasks: Count | None = None
    """Users of ratings, classes of images; null for tables, whose tasks depend on the column that a spec names."""
    columns: list[ColumnReport] = Field(default=[], max_length=2000)
    images: ImagesReport | None = None
    errors: list[LineError] = Field(default=[], max_length=MAX_ERRORS)
    """The first of them; none in a good file."""
