"""pydantic's errors as the API shows them: a JSON Pointer to the field, and a sentence with value, bound and remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from amaml.spec import RuleBroken

Location = Sequence[str | int]


def body_errors(errors: Sequence[Mapping[str, Any]], body: Any) -> list[dict[str, str]]:
    """{pointer, detail} of each field of `body` that has errors; those from several members of a union are joined."""
    details: dict[str, list[str]] = {}
    for error in errors:
        details.setdefault(pointer(_path(error, body)), []).append(_detail(error))
    return [{"pointer": at, "detail": "; or ".join(found)} for at, found in details.items()]


def parameter_errors(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """{parameter, detail} of each of FastAPI's errors about query parameters and headers."""
    return [
        {"parameter": str(error["loc"][1]) if len(error["loc"]) > 1 else "", "detail": _detail(error)}
        for error in errors
    ]


def pointer(path: Location) -> str:
    """The JSON Pointer (RFC 6901) of a path."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _path(error: Mapping[str, Any], body: Any) -> list[str | int]:
    """The error's path in the body: pydantic's location without the parts that name members of unions or dictionary keys."""
    location = list(error["loc"])
    if location and location[-1] == "[key]":
        location.pop()
    broken = error.get("ctx", {}).get("error")
    # The location of a broken rule is the part of the spec that has the rule, so a union member's name may be its last part.
    end = len(location) if isinstance(broken, RuleBroken) else len(location) - 1
    path: list[str | int] = []
    value = body
    for index, part in enumerate(location):
        # A part names a member of a union if it is the body's `kind`, or, if that is left to its default, no field of the body.
        is_mark = isinstance(value, dict) and (part == value.get("kind") or part not in value)
        if is_mark and 0 < index < end:
            continue
        if index and not isinstance(value, dict | list):
            break  # a number or string has no fields: the rest of the location names the union's members that were tried
        path.append(part)
        value = _child(value, part)
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append("kind")
    if isinstance(broken, RuleBroken):
        path += broken.field
    return path


def _child(value: Any, part: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(part)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def _detail(error: Mapping[str, Any]) -> str:
    shown = _shown(error.get("input"))
    sentence = _SENTENCES.get(error["type"])
    if sentence is not None:
        return sentence(shown, error.get("ctx", {}))
    message = str(error["msg"]).removeprefix("Input ").rstrip(".")
    return f"{shown} is not valid: it {message}" if message.startswith("should") else f"{message} (got {shown})"


def _shown(value: Any) -> str:
    """The value as in JSON, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"an array of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# pydantic's type of error → the sentence for a shown value and the error's context
_SENTENCES: Final[dict[str, Callable[[str, Mapping[str, Any]], str]]] = {
    "greater_than": lambda shown, context: f"{shown} is too small: it must be greater than {context['gt']}",
    "greater_than_equal": lambda shown, context: f"{shown} is too small: it must be at least {context['ge']}",
    "less_than": lambda shown, context: f"{shown} is too large: it must be less than {context['lt']}",
    "less_than_equal": lambda shown, context: f"{shown} is too large: it must be at most {context['le']}",
    "too_long": lambda shown, context: f"{shown} is too long: at most {context['max_length']} are allowed",
    "too_short": lambda shown, context: f"{shown} is too short: at least {context['min_length']} are needed",
    "string_too_long": lambda shown, context: f"{shown} has more than {context['max_length']} characters: shorten it",
    "string_too_short": lambda shown, context: f"{shown} has fewer than {context['min_length']} characters",
    "missing": lambda _shown, _context: "this field is required: add it",
    "extra_forbidden": lambda _shown, _context: "there is no such field: remove it, or correct its spelling",
    "union_tag_invalid": lambda _shown, context: (
        f"{context['tag']!r} is none that this server knows: choose one of {context['expected_tags']}"
    ),
    "union_tag_not_found": lambda _shown, _context: "this field is required: it says which kind is meant",
    "literal_error": lambda shown, context: f"{shown} is not allowed: choose {context['expected']}",
    "value_error": lambda _shown, context: str(context["error"]),
}
