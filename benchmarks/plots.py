"""The figures of docs/numerics.md, from the JSON files alone: `python -m benchmarks.plots` writes docs/figures/*.svg."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter

from benchmarks.record import RESULTS

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
STYLES = {"euler": "tab:red", "heun": "tab:orange", "rk4": "tab:olive", "bosh3": "tab:green", "dopri5": "tab:blue",
          "dopri5, no guard": "tab:cyan", "bosh3, no guard": "yellowgreen"}  # fmt: skip
MARKERS = {"discrete": "o", "interpolated adaptive": "s", "interpolated heun": "^", "interpolated euler": "v",
           "backsolve": "x", "its own": "D"}  # fmt: skip


def results(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())["results"]


def work_precision(folder: Path, figures: Path) -> None:
    """Error against evaluations: both lengths, every pair a line."""
    rows = [row for row in results(folder, "work_precision")["rows"] if isinstance(row.get("error"), float)]
    lengths = sorted({row["length"] for row in rows})
    figure, panels = plt.subplots(1, len(lengths), figsize=(11, 5.2), sharey=True, squeeze=False)
    for panel, length in zip(panels[0], lengths, strict=True):
        for solver, adjoint in dict.fromkeys((row["solver"], row["adjoint"]) for row in rows):
            points = [
                row for row in rows if (row["length"], row["solver"], row["adjoint"]) == (length, solver, adjoint)
            ]
            points = [row for row in points if "hvps" in row]
            if not points:
                continue
            panel.plot([row["gradients"] + row["hvps"] for row in points], [row["error"] for row in points],
                       marker=MARKERS[adjoint], ms=4, lw=0.9, color=STYLES[solver], label=f"{solver} · {adjoint}",
                       linestyle=":" if "no guard" in solver else "-")  # fmt: skip
        panel.set(xscale="log", yscale="log", ylim=(1e-9, 1e3), title=f"T = {length:g}",
                  xlabel="gradients + Hessian-vector products, a task")  # fmt: skip
        panel.xaxis.set_minor_formatter(NullFormatter())  # over so short an axis they would overlap
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("relative error of the flow's gradient")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    _save(figure, figures, "work_precision")


def against_length(folder: Path, figures: Path) -> None:
    """The paper's figure: seconds and memory of a meta-update."""
    points = results(folder, "scaling")["figure"]
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6))
    for name in dict.fromkeys(point["method"] for point in points):
        own = [point for point in points if point["method"] == name]
        ours = name.endswith((", kernel", ", batched"))
        style = {"marker": "o" if ours else "s", "ms": 4, "lw": 1.6 if ours else 0.9}
        panels[0].plot([p["steps"] for p in own], [p["seconds"] for p in own], label=name, **style)
        panels[1].plot([p["steps"] for p in own], [max(p["megabytes"], 0.05) for p in own], label=name, **style)
    for panel, what in zip(panels, ("seconds a meta-update, 16 tasks", "memory growth, MB"), strict=True):
        panel.set(xscale="log", yscale="log", xlabel="steps of .01", ylabel=what)
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    _save(figure, figures, "time_and_memory")


COLORS = {"interpolated": "tab:green", "discrete, guard": "tab:blue", "discrete, no guard": "tab:red"}


def adjoints(folder: Path, figures: Path) -> None:
    """Errors over the tolerance, one dot for each solve; solves without a finite result are at the top."""
    data = results(folder, "adjoints")
    ceiling = 1e12
    lengths = sorted({row["length"] for row in data["rows"]})
    figure, panels = plt.subplots(1, len(lengths), figsize=(11, 4.2), sharey=True, squeeze=False)
    for panel, length in zip(panels[0], lengths, strict=True):
        for (case, color), shift in zip(COLORS.items(), (0.8, 1.0, 1.25), strict=True):
            for dtype, marker in (("float32", "o"), ("float64", "x")):
                own = [
                    row for row in data["rows"] if (row["length"], row["case"], row["dtype"]) == (length, case, dtype)
                ]
                errors = [
                    ceiling if row["mean_over_tol"] is None else min(row["mean_over_tol"], ceiling) for row in own
                ]
                panel.plot([row["tol"] * shift for row in own], errors, marker, color=color, ms=4, lw=0, alpha=0.6,
                           label=f"{case}, {dtype}")  # fmt: skip
        panel.axhline(data["bounds"]["mean"], color="gray", lw=0.8)
        panel.set(xscale="log", yscale="log", xlabel="tolerance", title=f"T = {length:g}")
        panel.invert_xaxis()
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("error of the mean gradient / tolerance")
    panels[0][-1].legend(fontsize=7, loc="upper right")
    _save(figure, figures, "adjoints")


def _save(figure: Any, figures: Path, name: str) -> None:
    figures.mkdir(parents=True, exist_ok=True)
    figure.savefig(figures / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
    print(f"wrote {figures / name}.svg")


def main(folder: Path = RESULTS, figures: Path = FIGURES) -> None:
    mpl.use("agg")
    plt.rcParams.update({"svg.hashsalt": "amaml", "figure.constrained_layout.use": True, "font.size": 9})
    work_precision(folder, figures)
    against_length(folder, figures)
    adjoints(folder, figures)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
