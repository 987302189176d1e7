"""JSON bodies: bounded in size, depth and time before they are parsed, then validated by a pydantic model."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Generic, Protocol, TypeVar, runtime_checkable

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ValidationError

from service.http import validation
from service.http.examples import example
from service.http.problems import Problem, invalid

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 64
MAX_SECONDS: Final = 30.0
MAX_ERRORS: Final = 100
_SMALL_BYTES: Final = 16 * 1024
# Possessive, and the closing quote may be missing: so matching takes time linear in the body's length, whatever it holds.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_MAYBE_INFINITE: Final = re.compile(rb"[eE]\+?\d{3}|\d{200}")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))

ModelT = TypeVar("ModelT", bound=BaseModel)


@runtime_checkable
class DescribedBody(Protocol):
    """A dependency that reads the request's body itself, and says what the reference shows of it.

    A body that FastAPI reads is read before the route's dependencies run: before it is known whether the key is good.
    """

    def described(self) -> dict[str, Any]:
        """OpenAPI's Request Body Object."""

    def models(self) -> tuple[type[BaseModel], ...]:
        """Models whose schemas it refers to."""


@dataclass(frozen=True, eq=False)
class JsonBody(Generic[ModelT]):
    """A dependency that reads the request's body, of at most `max_bytes`, as `model`: `Depends(JsonBody(NewStudy))`."""

    model: type[ModelT]
    max_bytes: int = MAX_BYTES
    example: Mapping[str, Any] | None = None
    """The model's own unless given."""

    async def __call__(self, request: Request) -> ModelT:
        raw = await read_bounded(request, self.max_bytes)
        # A large body takes long to parse, during which the event loop must go on serving others.
        return self._validated(raw) if len(raw) <= _SMALL_BYTES else await run_in_threadpool(self._validated, raw)

    def _validated(self, raw: bytes) -> ModelT:
        body = parse(raw)
        try:
            return self.model.model_validate(body)
        except ValidationError as error:
            errors = error.errors(include_url=False)[:MAX_ERRORS]
            raise invalid(validation.body_errors(errors, body)) from None

    def described(self) -> dict[str, Any]:
        shown = example(self.model) if self.example is None else self.example
        schema = {"$ref": f"#/components/schemas/{self.model.__name__}"}
        return {"required": True, "content": {"application/json": {"schema": schema, "example": shown}}}

    def models(self) -> tuple[type[BaseModel], ...]:
        return (self.model,)


async def read_bounded(request: Request, max_bytes: int = MAX_BYTES) -> bytes:
    """The body's bytes; raises Problem if its media type isn't JSON, or if it is too large or too slow."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise Problem(
            "wrong_media_type",
            f"The body is announced as {media_type or 'nothing'}: send JSON with Content-Type: application/json.",
        )
    refuse_encoded(request)
    refuse_announced_above(request, max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(MAX_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large(max_bytes)
    except TimeoutError:
        raise Problem("slow_body", f"The body didn't arrive within {MAX_SECONDS:g} s: send it again.") from None
    return bytes(body)


def refuse_encoded(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise Problem("wrong_media_type", f"Content-Encoding {encoding} is not supported: send the bytes as they are.")


def refuse_announced_above(request: Request, limit: int) -> None:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large(limit)


def too_large(limit: int) -> Problem:
    return Problem("too_large", f"The body has more than {limit} bytes, which is the most that is accepted here.")


def parse(body: bytes) -> Any:
    """The JSON value in `body`; raises Problem for other text, and for strings and numbers that the database can't store."""
    if _too_deep(body):
        raise Problem("broken_json", f"The body is nested more than {MAX_DEPTH} levels deep: no request needs so many.")
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_such_number, object_pairs_hook=_without_doubles)
    except UnicodeDecodeError as error:
        raise Problem("broken_json", f"Byte {error.start} of the body is not UTF-8: send JSON as UTF-8.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Problem("broken_json", f"The body is not JSON: {error.msg} at {where}.") from None
    except ValueError as error:
        raise Problem("broken_json", f"The body is not JSON: {str(error).partition(';')[0]}.") from None
    if b"\\u" in body or b"\x00" in body or _MAYBE_INFINITE.search(body):
        errors = list(islice(_unstorable(value, ()), MAX_ERRORS))
        if errors:
            raise invalid(errors)
    return value


def _too_deep(body: bytes) -> bool:
    """Whether brackets are left after MAX_DEPTH rounds of removing the innermost pairs."""
    brackets = _STRING.sub(b"", body).translate(None, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        inner = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(inner) == len(brackets):
            break
        brackets = inner
    # A few brackets that don't match are left to the parser, which names their place.
    return len(brackets) > MAX_DEPTH


def _no_such_number(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number: leave the field out, or give a finite number")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        doubled = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the field {doubled[:80]!r} is given twice in one object: keep one of them")
    return found


def _unstorable(value: Any, path: tuple[str | int, ...]) -> Iterator[dict[str, str]]:
    """The places of infinite numbers, and of strings with a NUL or a lone surrogate, which Postgres or UTF-8 can't represent."""
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
            where = validation.pointer(path).encode("utf-8", "replace").decode().replace("\x00", "?")
            yield {"pointer": where, "detail": "text must not hold NUL characters or lone surrogates: remove them"}
    elif isinstance(value, float) and math.isinf(value):
        detail = "a number must be finite, and this one is larger than any float (1.8e308): give a smaller one"
        yield {"pointer": validation.pointer(path), "detail": detail}
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unstorable(item, (*path, index))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _unstorable(name, path)
            yield from _unstorable(item, (*path, name))
