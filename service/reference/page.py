"""The list of all calls at the end of docs/api.md, made from the OpenAPI document.

`python -m service.reference.page` writes it there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from service.http import problems

PAGE: Final = Path(__file__).parents[2] / "docs" / "api.md"
_EVERYWHERE: Final = {f"{problems.CODES[code][0]} `{code}`" for code in problems.ALWAYS}
_BLOCK: Final = re.compile(r"<!-- reference -->.*<!-- end -->", re.DOTALL)


def written(page: str, document: dict[str, Any]) -> str:
    """`page` with a new list between its marks; raises ValueError if it has no marks."""
    text, found = _BLOCK.subn(lambda _: f"<!-- reference -->\n{reference(document)}<!-- end -->", page)
    if found != 1:
        raise ValueError(f"the page needs one <!-- reference --> … <!-- end -->, it has {found}")
    return text


def reference(document: dict[str, Any]) -> str:
    """A section per tag with a row per call: summary, parameters and body, answers, scope."""
    tags: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tags.setdefault(operation["tags"][0], []).append(_row(method.upper(), path, operation))
    head = "| call | | takes | answers | scope |\n|---|---|---|---|---|\n"
    return "".join(f"### {tag[0].upper()}{tag[1:]}\n\n{head}{''.join(rows)}\n" for tag, rows in tags.items())


def _row(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = [one["name"] for one in operation.get("parameters", []) if one["in"] != "path"]
    takes = [f"`{name}`" for name in sorted(parameters, key=str.lower)]
    body = _body(operation)
    if body:
        takes.insert(0, body)
    scopes = [scope for one in operation.get("security", []) for scope in next(iter(one.values()))]
    answers = [_answer(status, answer) for status, answer in sorted(operation["responses"].items())]
    if scopes:
        answers = [answer for answer in answers if answer not in _EVERYWHERE]
    cells = [
        f"`{method} {path}`",
        operation["summary"],
        ", ".join(takes),
        ", ".join(answers),
        ", ".join(f"`{scope}`" for scope in scopes) or "no key",
    ]
    return f"| {' | '.join(cells)} |\n"


def _body(operation: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    if not content:
        return ""
    media_type, described = next(iter(content.items()))
    return _named(described["schema"]) or f"`{media_type}`"


def _answer(status: str, answer: dict[str, Any]) -> str:
    """The status, with the codes of its problems or the name of its document."""
    content = answer.get("content", {})
    if "application/problem+json" in content:
        codes = re.findall(r"`(\w+)`", answer["description"])
        return " ".join([status, *(f"`{code}`" for code in codes)])
    schema = content.get("application/json", {}).get("schema", {})
    return f"{status} {_named(schema)}".strip()


def _named(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2].removesuffix("Document").replace("Page_", "page of ").strip("_")
    return ""


def main() -> None:
    from service.main import app  # noqa: PLC0415 - other uses of this module need no application

    PAGE.write_text(written(PAGE.read_text(), app.openapi()))


if __name__ == "__main__":
    main()
