"""Pages of lists, and their cursors."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from pydantic import TypeAdapter, ValidationError

from service.http.pages import IdCursor, NumberCursor, page_of

IDS: TypeAdapter[UUID] = TypeAdapter(IdCursor)
NUMBERS: TypeAdapter[int] = TypeAdapter(NumberCursor)


def test_a_page_shows_no_more_than_its_limit_and_leads_to_the_next() -> None:
    page = page_of([5, 4, 3], 2, lambda row: row, str)
    assert page.data == ["5", "4"]
    assert NUMBERS.validate_python(page.next_cursor) == 4


@pytest.mark.parametrize("rows", [[], [5], [5, 4]])
def test_the_last_page_leads_nowhere(rows: list[int]) -> None:
    page = page_of(rows, 2, lambda row: row, str)
    assert (len(page.data), page.next_cursor) == (len(rows), None)


def test_a_cursor_stands_for_the_id_of_the_last_row() -> None:
    first, second = uuid4(), uuid4()
    page = page_of([first, second], 1, lambda row: row, str)
    assert IDS.validate_python(page.next_cursor) == first


@pytest.mark.parametrize("cursor", ["", "x", "ü", "a" * 500, "LTE", "MTIzNDU2Nzg5MDEyMzQ1Njc4OQ"])
def test_a_cursor_of_another_list_is_refused(cursor: str) -> None:
    for adapter in (IDS, NUMBERS):
        with pytest.raises(ValidationError, match="is no cursor of this list"):
            adapter.validate_python(cursor)
