"""Tables in Markdown, cells of several seeds, and the sentence on the machine whose numbers they show."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def circumstances(content: dict[str, Any]) -> str:
    machine, versions = content["machine"], content["versions"]
    return (
        f"`{content['command']}` on {machine['cores']} cores of {machine['cpu']} ({machine['simd']}), "
        f"{machine['memory_gb']} GB, PyTorch {versions['torch']}; {machine['kernel'].split()[0]} built; "
        f"load before {machine['load_before']:.1f}."
    )


def over_seeds(values: list[float]) -> str:
    """Their mean, and each of them."""
    return f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"
