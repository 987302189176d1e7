"""The tables of docs/numerics.md and docs/paper.md, from the JSON files alone: `python -m benchmarks.tables` rewrites the text
between `<!-- NAME -->` and `<!-- end -->` there."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.markdown import circumstances
from benchmarks.numerics_tables import NUMERICS
from benchmarks.paper_tables import PAPER, default
from benchmarks.recipe_tables import preset
from benchmarks.record import RESULTS

DOCS = Path(__file__).parents[1] / "docs"

DOCUMENTS: dict[str, dict[str, tuple[str, Callable[[dict[str, Any]], str]]]] = {
    "numerics.md": NUMERICS,
    "paper.md": PAPER,
    "decisions/the-default-preset.md": {"preset": ("recipe", preset), "default": ("default", default)},
}


def main(folder: Path = RESULTS, docs: Path = DOCS) -> None:
    for document, blocks in DOCUMENTS.items():
        path = docs / document
        text = path.read_text()
        for name, (benchmark, block) in blocks.items():
            content = json.loads((folder / f"{benchmark}.json").read_text())
            shown = f"{circumstances(content)}\n\n" if "machine" in content else ""
            filled = f"<!-- {name} -->\n{shown}{block(content)}\n<!-- end -->"
            text, found = re.subn(
                rf"<!-- {name} -->.*?<!-- end -->", lambda _, filled=filled: filled, text, flags=re.DOTALL
            )
            if found != 1:
                raise SystemExit(f"{path} needs one block <!-- {name} --> … <!-- end -->, it has {found}")
        path.write_text(text)
        print(f"wrote {path}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
