"""Every call of the API, as docs/api.md lists them at its end, out of the OpenAPI document.

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
    """`page` with its part between the marks made anew; raises ValueError for a page without them."""
    text, found = _BLOCK.subn(lambda _: f"<!-- reference -->\n{reference(document)}<!-- end -->", page)
    if found != 1:
        raise ValueError(f"the page needs one <!-- reference --> … <!-- end -->, it has {found}")
    return text


def reference(document: dict[str, Any]) -> str:
    """A section a tag, a call a row: what it does, what it takes, what it answers, what a key needs."""
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
    """Its status; with the codes of its problems, or the name of what it holds."""
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
    from service.main import app  # noqa: PLC0415 - what reads a document needs no application

    PAGE.write_text(written(PAGE.read_text(), app.openapi()))


if __name__ == "__main__":
    main()
