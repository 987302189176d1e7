"""The tables of docs/numerics.md, from the JSON files alone: `python -m benchmarks.tables` rewrites what stands between
`<!-- NAME -->` and `<!-- end -->` there."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

DOCUMENT = Path(__file__).parents[1] / "docs" / "numerics.md"


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


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.1f}"


def _error(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.1e}"


def _compared(part: dict[str, Any]) -> str:
    mine = [name for name in part["rows"] if name.startswith("amaml")]
    rows = [
        [f"**{name}**" if name in mine else name, _ms(row["seconds"]), _error(row["error"]),
         *("" if name in mine else f"{part['ratios'][own][name]:.1f}×" for own in mine)]
        for name, row in part["rows"].items()
    ]  # fmt: skip
    return table(["", "ms", "error", *(f"beside {name}" for name in mine)], rows)


def exact_maml(content: dict[str, Any]) -> str:
    parts = content["results"]["exact_maml"]
    return "\n\n".join(f"{start.capitalize()} θ:\n\n{_compared(part)}" for start, part in parts.items())


def flow(content: dict[str, Any]) -> str:
    parts = content["results"]["flow"]
    return "\n\n".join(
        f"{where.capitalize()}, ours at tolerance {part['tolerance']:g}:\n\n{_compared(part)}"
        for where, part in parts.items()
    )


def threads(content: dict[str, Any]) -> str:
    part = content["results"]["threads"]
    rows = [
        [
            name,
            _ms(part["rows"][f"{name}, 1"]["seconds"]),
            _ms(part["rows"][f"{name}, 2"]["seconds"]),
            f"{speedup:.2f}×",
        ]
        for name, speedup in part["speedup"].items()
    ]
    return table(["", "1 thread, ms", "2 threads, ms", "speedup"], rows)


def memory(content: dict[str, Any]) -> str:
    rows = content["results"]["rows"]
    lengths = rows[0]["steps"]
    lines = [
        [f"{row['case']}, {row['tasks']} task{'s' * (row['tasks'] > 1)} in flight", str(row["checkpoints"] or "√N"),
         *(f"{size:.2f}" for size in row["megabytes"]), *[""] * (len(lengths) - len(row["megabytes"])),
         f"{row['longest_over_shortest']:.1f}×"]
        for row in rows
    ]  # fmt: skip
    lines[-1][1] = "a graph"
    return table(["", "kept", *(f"{steps:,} steps, MB" for steps in lengths), "longest over shortest"], lines)


def guard(content: dict[str, Any]) -> str:
    def size(value: float | None) -> str:
        return "not finite" if value is None else f"{value:,.0f}" if value < 1e6 else f"{value:.0e}"

    lines = content["results"]["summary"]
    by_key = {(line["start"], line["dtype"], line["tol"], line["guard"]): line for line in lines}
    rows = []
    for start, dtype, tol in dict.fromkeys(key[:3] for key in by_key):
        on, off = by_key[start, dtype, tol, True], by_key[start, dtype, tol, False]
        rows.append([f"{start} θ, {dtype}, {tol:g}", size(on["mean_over_tol"]), size(on["worst_task_over_tol"]),
                     f"{on['within_bounds']} of {on['seeds']}", size(off["mean_over_tol"]),
                     f"{off['within_bounds']} of {off['seeds']}"])  # fmt: skip
    head = ["", "guard: mean / tol", "worst task / tol", "within bounds", "no guard: mean / tol", "within bounds"]
    return table(head, rows)


def scaling(content: dict[str, Any]) -> str:
    rows = [
        [name, f"{1e3 * fit['slope']:.2f}", f"{1e3 * fit['start']:.2f}", f"{100 * fit['largest_residual']:.0f}%",
         f"{fit['exponent_of_upper_half']:.2f}"]
        for name, fit in content["results"]["linearity"].items()
    ]  # fmt: skip
    return table(["", "ms a unit", "ms at zero", "largest residual", "exponent, upper half"], rows)


def backsolve(content: dict[str, Any]) -> str:
    rows = [row for row in content["results"]["rows"] if row["adjoint"] in ("backsolve", "its own")]
    return table(
        ["", "T", "tolerance", "error", "what it said"],
        [[row["solver"], f"{row['length']:g}", f"{row['setting']:g}", _error(row.get("error", "")),
          row.get("failure", "").partition(":")[2].strip()[:80] or row.get("failure", "")[:80]] for row in rows],
    )  # fmt: skip


BLOCKS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "exact_maml": ("speed", exact_maml),
    "flow": ("speed", flow),
    "threads": ("speed", threads),
    "memory": ("memory", memory),
    "guard": ("guard", guard),
    "scaling": ("scaling", scaling),
    "backsolve": ("work_precision", backsolve),
}


def main(folder: Path = RESULTS, document: Path = DOCUMENT) -> None:
    text = document.read_text()
    for name, (benchmark, block) in BLOCKS.items():
        content = json.loads((folder / f"{benchmark}.json").read_text())
        filled = f"<!-- {name} -->\n{circumstances(content)}\n\n{block(content)}\n<!-- end -->"
        text, found = re.subn(
            rf"<!-- {name} -->.*?<!-- end -->", lambda _, filled=filled: filled, text, flags=re.DOTALL
        )
        if found != 1:
            raise SystemExit(f"{document} needs one block <!-- {name} --> … <!-- end -->, it has {found}")
    document.write_text(text)
    print(f"wrote {document}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
