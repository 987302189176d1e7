"""The tables of docs/numerics.md: seconds, memory, errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from benchmarks.markdown import table


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
    return table(["", "ms", "error", *(f"÷ {name.removeprefix('amaml ')}" for name in mine)], rows)


def exact_maml(content: dict[str, Any]) -> str:
    parts = content["results"]["exact_maml"]
    return "\n\n".join(f"{start.capitalize()} θ:\n\n{_compared(part)}" for start, part in parts.items())


def flow(content: dict[str, Any]) -> str:
    parts = content["results"]["flow"]
    return "\n\n".join(f"{where.capitalize()}:\n\n{_compared(part)}" for where, part in parts.items())


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
        [f"{row['case']}, {row['solver']}, {row['tasks']} task{'s' * (row['tasks'] > 1)} in flight",
         str(row["checkpoints"] or "√N"),
         *(f"{size:.2f}" for size in row["megabytes"]), *[""] * (len(lengths) - len(row["megabytes"])),
         f"{row['longest_over_shortest']:.1f}×"]
        for row in rows
    ]  # fmt: skip
    lines[-1][1] = "a graph"
    return table(["", "kept", *(f"T = {steps / 100:,g}, MB" for steps in lengths), "longest over shortest"], lines)


def adjoints(content: dict[str, Any]) -> str:
    def size(value: float | None) -> str:
        return "not finite" if value is None else f"{value:,.1f}" if value < 1e4 else f"{value:.0e}"

    by_key = {
        (line["length"], line["dtype"], line["tol"], line["case"]): line for line in content["results"]["summary"]
    }
    rows = []
    for key in dict.fromkeys(key[:3] for key in by_key):
        own, guarded, bare = (by_key[*key, case] for case in ("interpolated", "discrete, guard", "discrete, no guard"))
        ratio = own["time_over_guarded"]
        rows.append(
            [f"T = {key[0]:g}, {key[1]}, {key[2]:g}", size(own["mean_over_tol"]), size(own["worst_task_over_tol"]),
             f"{own['within_bounds']} of {own['solves']}", "" if ratio is None else f"{ratio:.2f}×",
             size(guarded["mean_over_tol"]), f"{guarded['within_bounds']} of {guarded['solves']}",
             size(bare["mean_over_tol"]), f"{bare['within_bounds']} of {bare['solves']}"]
        )  # fmt: skip
    head = ["", "interpolated: mean / tol", "worst task / tol", "within bounds", "time ÷ guarded discrete",
            "discrete, guard: mean / tol", "within bounds", "discrete, no guard: mean / tol", "within bounds"]  # fmt: skip
    apart = content["results"]["reference_from_ten_times_its_tolerance"]
    return (
        f"{table(head, rows)}\n\nThe references lie within {apart['mean']:.0e} (mean) and {apart['worst_task']:.0e} (any task) "
        "of solves at ten times their tolerance."
    )


def scaling(content: dict[str, Any]) -> str:
    rows = [
        [name, f"{1e3 * fit['slope']:.2f}", f"{1e3 * fit['start']:.2f}", f"{100 * fit['largest_residual']:.0f}%",
         f"{fit['exponent_of_upper_half']:.2f}"]
        for name, fit in content["results"]["linearity"].items()
    ]  # fmt: skip
    return table(["", "ms a unit", "ms at zero", "largest residual", "exponent, upper half"], rows)


def figure(content: dict[str, Any]) -> str:
    points = {(point["method"], point["steps"]): point for point in content["results"]["figure"]}
    steps = (10, 50, 200, 500)
    rows = [
        [name, *(_ms(points[name, count]["seconds"]) for count in steps), f"{points[name, steps[-1]]['megabytes']:.1f}"]
        for name in dict.fromkeys(name for name, _ in points)
    ]
    return table(["", *(f"{count} steps, ms" for count in steps), f"{steps[-1]} steps, MB"], rows)


def backsolve(content: dict[str, Any]) -> str:
    rows = [row for row in content["results"]["rows"] if row["adjoint"] in ("backsolve", "its own")]
    return table(
        ["", "T", "tolerance", "error", "what it said"],
        [[row["solver"], f"{row['length']:g}", f"{row['setting']:g}", _error(row.get("error", "")),
          _sentence(row.get("failure", ""))] for row in rows],
    )  # fmt: skip


def _sentence(failure: str) -> str:
    """What happened, without the remedy and without tensors."""
    return re.split(r": (?=shorten|check|tensor)", " ".join(failure.split()))[0]


def stress(content: dict[str, Any]) -> str:
    results = content["results"]
    totals = [["all", str(sum(results["outcomes"].values())), *_came_out(results["outcomes"]), "", ""]]
    rows = [
        [line["kind"], str(sum(line["outcomes"].values())), *_came_out(line["outcomes"]), str(line["certified"]),
         "" if line["median_certificate_over_rtol"] is None else f"{line['median_certificate_over_rtol']:.2g}"]
        for line in results["kinds"]
    ]  # fmt: skip
    head = ["kind", "problems", "within its certificate", "certificate unknown", "refused", "no reference", "silently wrong",
            "λ controlled", "its median certificate / rtol"]  # fmt: skip
    return table(head, rows + totals)


def _came_out(outcomes: dict[str, int]) -> list[str]:
    known = ("within its certificate", "certificate unknown", "no reference", "silently wrong")
    refused = sum(count for name, count in outcomes.items() if name not in known)
    return (
        [str(outcomes.get(name, 0)) for name in known[:2]]
        + [str(refused)]
        + [str(outcomes.get(name, 0)) for name in known[2:]]
    )


NUMERICS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "exact_maml": ("speed", exact_maml),
    "flow": ("speed", flow),
    "threads": ("speed", threads),
    "memory": ("memory", memory),
    "adjoints": ("adjoints", adjoints),
    "scaling": ("scaling", scaling),
    "figure": ("scaling", figure),
    "backsolve": ("work_precision", backsolve),
    "stress": ("stress", stress),
}
