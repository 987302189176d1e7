"""Answers: a pydantic model as JSON, and its description in OpenAPI."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from fastapi import Response
from pydantic import BaseModel

from service.http.problems import ALWAYS, declared, not_found


def json_reply(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(model.model_dump_json(by_alias=True), status, headers, "application/json")


def documented(
    *codes: str, status: int = 200, description: str = "Done.", example: Mapping[str, Any] | None = None
) -> dict[int | str, Any]:
    """An operation's `responses`: the good one, and the problems of these codes and of ALWAYS.

    The good one's example is made from the operation's response model unless it is given.
    """
    good: dict[str, Any] = {"description": description}
    if example is not None:
        good["content"] = {"application/json": {"example": example}}
    return {status: good, **declared(*ALWAYS, *codes)}


_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)


def path_id(text: str, what: str) -> UUID:
    """The id in a path; raises the 404 problem if it is no UUIDv7."""
    if not _UUID7.fullmatch(text):
        raise not_found(what)
    return UUID(text)
