"""The tables of docs/numerics.md and docs/paper.md, from the JSON files alone: `python -m benchmarks.tables` rewrites the text
between `<!-- NAME -->` and `<!-- end -->` there."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.recipe import (
    ALONE,
    AMAMLS,
    CELLS,
    DATA,
    FOMAMLS,
    LEARNERS,
    PRESETS,
    RATED,
    REPTILES,
    SEARCH_SEED,
)  # fmt: skip
from benchmarks.recipe import PAPER as PAPER_CELLS
from benchmarks.record import RESULTS

DOCS = Path(__file__).parents[1] / "docs"


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


PAPER_COLUMNS = {
    "nrmse_flow": "after the flow to T",
    "nrmse_tuned": "after 1,000 epochs",
    "nrmse_tuned_best": "the curve's best epoch",
}


def paper(content: dict[str, Any]) -> str:
    rows = content["results"]
    parts = []
    for cell, updates in dict.fromkeys((row["cell"], row["updates"]) for row in rows):
        group = [row for row in rows if (row["cell"], row["updates"]) == (cell, updates)]
        lines = []
        for method in dict.fromkeys(row["method"] for row in group):
            mine = [row for row in group if row["method"] == method]
            lines.append([
                method,
                *(_over_seeds([row["metrics"][name] for row in mine]) for name in PAPER_COLUMNS),
                f"{statistics.median(row['seconds'] for row in mine):,.0f}",
            ])  # fmt: skip
        plain = ", ".join(_plain(group[0]["metrics"]))
        parts.append(f"**{cell}, {updates:,} updates** (without meta-learning: {plain})\n\n"
                     + table(["", *PAPER_COLUMNS.values(), "seconds of training"], lines))  # fmt: skip
    return "\n\n".join(parts)


def ratings(content: dict[str, Any]) -> str:
    """From the service's own report of the study, with `--score flow --format json`."""
    began, ended = (datetime.fromisoformat(content[name]) for name in ("created_at", "ended_at"))
    parts = [
        f"{sum(content['states'].values())} jobs in {(ended - began).total_seconds() / 60:.0f} minutes; ± over seeds."
    ]
    for block in content["blocks"]:
        family, rows = block["coordinates"]["/family"], block["rows"]
        plain = rows[0]["also"]
        names = [name for name in PLAIN if name in plain]
        lines = [
            [row["coordinates"]["/method/kind"], _mean(row["score"]),
             *(_mean(row["also"][name]) for name in ("tuned", "tuned_best")),
             "" if row["best"] else f"{row['difference']:+.4f} (p = {row['p_value']:.2g})", f"{1e3 * row['seconds']:.1f}"]
            for row in rows
        ]  # fmt: skip
        parts.append(
            f"**{family['shots']} / {family['queries']}** (without meta-learning: "
            + ", ".join(f"{name.replace('_', ' ')} {_mean(plain[name])}" for name in names)
            + ")\n\n"
            + table(["", *PAPER_COLUMNS.values(), "flow, less the best's, paired", "ms an update"], lines)
        )
    return "\n\n".join(parts)


def _mean(score: dict[str, float]) -> str:
    return f"{score['mean']:.3f} ± {score['error']:.3f}"


def recipe(content: dict[str, Any]) -> str:
    rows = [row for row in content["results"] if row["cell"] in PAPER_CELLS]
    searched = [row for row in rows if row["seed"] == SEARCH_SEED]
    found = [
        "The search, one seed, validation tasks, after the flow; *over the best*: the mean over the cells of the error over the "
        "cell's smallest.",
        _searched(searched, list(PAPER_CELLS)),
    ]
    trained = [row for row in rows if row["seed"] != SEARCH_SEED and "control" not in row]
    confirmed = [row for row in trained if row["candidate"] not in ALONE]
    found += [
        "The chosen two, trained again with other seeds, test tasks, after the flow:",
        _confirmed(confirmed, "kernel_ridge"),
        "The other methods for as many seconds, each with the clip at the median, Adam at 1e-2 with a cosine and all query "
        "points, and the chosen two, two seeds:",
        _by_method(trained),
    ]
    controls = [row for row in rows if "control" in row]
    if controls:
        found += [
            "Each θ with and without the rates that the second has learned, one seed, test tasks:",
            _controls(controls),
        ]
    return "\n\n".join(found)


def rated(content: dict[str, Any]) -> str:
    rows = [row for row in content["results"] if row["cell"] in RATED and row["candidate"] in (*FOMAMLS, *AMAMLS)]
    return "\n\n".join([
        "The search, one seed, validation users, after the flow:",
        _searched([row for row in rows if row["seed"] == SEARCH_SEED], RATED),
        "The chosen two, trained again with ten other seeds, test users, after the flow:",
        _confirmed([row for row in rows if row["seed"] != SEARCH_SEED], "user_item_effects"),
    ])  # fmt: skip


def ideas(content: dict[str, Any]) -> str:
    rows = content["results"]
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    by_idea: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        by_idea.setdefault(row["idea"], {}).setdefault(row["cell"], []).append(row)
    lines = []
    for idea, own in by_idea.items():
        found = {cell: [row["validation"] for row in own[cell] if "failed" not in row] for cell in cells}
        scores = [_over_seeds(values) if values else "diverged" for values in found.values()]
        seconds = statistics.mean(row["seconds"] for cell in cells for row in own[cell] if "failed" not in row)
        lines.append([idea, *scores, f"{seconds:.0f}"])
    return table(["", *cells, "seconds"], lines)


def preset(content: dict[str, Any]) -> str:
    searched = [row for row in content["results"] if row["seed"] == SEARCH_SEED]
    kept = [name for name in PRESETS if name in REPTILES or name in LEARNERS]
    synthetic = [name for name in CELLS if name not in DATA]
    return "\n\n".join([
        _searched([row for row in searched if row["candidate"] in kept], synthetic),
        _searched([row for row in searched if row["candidate"] in (*kept, *AMAMLS)], DATA),
    ])  # fmt: skip


def default(content: dict[str, Any]) -> str:
    lines = []
    for row in content["results"]:
        scores = dict(row["scores"])
        ours = scores.pop("flow")
        better = max if row["metric"] == "accuracy" else min
        for own in ("tuned", "tuned_best", "validation"):
            scores.pop(own, None)
        best = better(scores, key=scores.__getitem__)
        others = ", ".join(f"{name.replace('_', ' ')} {score:.3f}" for name, score in scores.items())
        ahead = "yes" if better(ours, scores[best]) == ours else f"no: {best.replace('_', ' ')}"
        counts = [f"{row['iterations']:,}", f"{row['seconds']:.0f}"]
        lines.append([row["cell"], row["metric"], f"{ours:.3f}", others, ahead, *counts])
    return table(
        ["family", "", "default", "without meta-learning", "ahead of all", "meta-iterations", "seconds"], lines
    )


def _searched(rows: list[dict[str, Any]], cells: list[str]) -> str:
    """A line a candidate."""
    searched = {(row["candidate"], row["cell"]): row for row in rows if row["cell"] in cells}
    least = {cell: min(row["validation"] for (_, of), row in searched.items() if of == cell) for cell in cells}
    lines = []
    for name in dict.fromkeys(name for name, _ in searched):
        mine = {cell: searched[name, cell] for cell in cells if (name, cell) in searched}
        ratio = statistics.mean(row["validation"] / least[cell] for cell, row in mine.items())
        seconds = statistics.mean(row["seconds"] for row in mine.values())
        errors = [f"{mine[cell]['validation']:.3f}" if cell in mine else "not run" for cell in cells]
        lines.append([name, *errors, f"{ratio:.2f}", f"{seconds:,.0f}"])
    return table(["", *cells, "over the best", "seconds"], lines)


def _confirmed(rows: list[dict[str, Any]], baseline: str) -> str:
    """The chosen two and a baseline that needs no meta-learning; what the second is ahead of either, seed by seed."""
    lines = []
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    for cell in dict.fromkeys(row["cell"] for row in rows):
        first, second = (
            {row["seed"]: row for row in rows if (row["cell"], row["candidate"]) == (cell, name)} for name in names
        )
        plain = {seed: row[baseline] for seed, row in first.items()}
        errors = [_over_seeds([row["flow"] for row in own.values()]) for own in (first, second)]
        apart = [[second[seed]["flow"] - first[seed]["flow"] for seed in first if seed in second],
                 [second[seed]["flow"] - plain[seed] for seed in first if seed in second]]  # fmt: skip
        shown = [f"{statistics.mean(own):+.3f} ± {_half_interval(own):.3f}" for own in apart]
        lines.append([cell, *errors, shown[0], f"{statistics.mean(plain.values()):.3f}", shown[1]])
    other = baseline.replace("_", " ")
    return table(["", *names, "difference, 95 %", other, f"difference to {other}, 95 %"], lines)


def _by_method(rows: list[dict[str, Any]]) -> str:
    """A line a candidate: those seeds' errors that all of them have."""
    cells, names = list(PAPER_CELLS), list(dict.fromkeys(row["candidate"] for row in rows))
    found = {(row["cell"], row["candidate"], row["seed"]): row["flow"] for row in rows}
    lines = []
    for name in names:
        shared = [
            [
                seed
                for _, one, seed in found
                if (_, one) == (cell, name) and all((cell, other, seed) in found for other in names)
            ]
            for cell in cells
        ]
        lines.append([name, *(_over_seeds([found[cell, name, seed] for seed in seeds])
                              for cell, seeds in zip(cells, shared, strict=True))])  # fmt: skip
    return table(["", *cells], lines)


def _half_interval(values: list[float]) -> float:
    """Of the mean, by Student's t, 95 %."""
    return float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def _controls(rows: list[dict[str, Any]]) -> str:
    with_rates = {"plain": "", "rates": ", with the rates"}
    return table(
        ["", "θ of", "after the flow to T", "after 1,000 epochs", "the curve's best epoch"],
        [[row["cell"], row["candidate"] + with_rates[row["control"]],
          *(f"{row[score]:.3f}" for score in ("flow", "tuned", "tuned_best"))] for row in rows],
    )  # fmt: skip


def _over_seeds(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


PLAIN = ("random", "zero", "population_mean", "user_mean", "item_mean", "user_item_effects", "kernel_ridge")
"""What needs no meta-learning."""


def _plain(metrics: dict[str, float]) -> list[str]:
    return [f"{name.replace('_', ' ')} {metrics[f'nrmse_{name}']:.3f}" for name in PLAIN if f"nrmse_{name}" in metrics]


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
PAPER: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "paper": ("paper", paper),
    "ratings": ("ratings", ratings),
    "recipe": ("recipe", recipe),
    "ideas": ("ideas", ideas),
    "rated": ("recipe", rated),
}
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
