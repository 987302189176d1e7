"""A GPU compared with the CPU of its machine: the CUDA tests, equal numbers, equal bits, seconds and memory, in one table.

`python -m benchmarks.gpu` needs a CUDA device and takes a few minutes; `make gpu-bundle` packs it for a machine without a
network. `--device cpu` tries the command without a GPU, by comparing the CPU with itself; `--sanitize` adds NVIDIA's
compute-sanitizer. Each line of the table has the measured value, its bound if it has one, and whether it is within the bound. The
exit status is 1 where a GPU is outside a bound.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import amaml
from amaml import kernel
from benchmarks.gpu_cases import Case, cases, regression
from benchmarks.record import Run, Timing, in_turn, parser, threads
from benchmarks.workload import STEP, TASKS, error

ROOT = Path(__file__).parents[1]
OLDEST_TORCH = (2, 11)
CPU = torch.device("cpu")
REPEATS = 5
BUDGET = 3.0
"""Seconds for each case. A case is run once before it is measured, and a run that has begun is finished."""
TESTS_SECONDS = 400
SANITIZER_SECONDS = 250

EXACT = 1e-12
"""The relative distance allowed in float64 with fixed steps; with adaptive steps rounding may change the steps, and then the
tolerance is allowed."""
ROUNDING = 2.0
"""The allowed error in float32, as a multiple of the CPU's."""
FASTER = {"exact MAML, 16 tasks": 10.0, "exact MAML, 264 tasks": 80.0, "conv4, 16 tasks": 20.0}
"""How many times as fast as two threads of the CPU a case has to be."""
LONG, SHORT = 1600, 100
GROWTH = {None: 1.2 * math.sqrt(LONG / SHORT), 8: 1.1}
"""The allowed ratio of the long solve's peak memory to the short one's, by the number of checkpoints; None keeps √N of them."""


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    part: str
    what: str
    measured: str
    bound: str = ""
    kept: bool | None = None
    """None where there is no bound."""
    value: float | None = None


def path(device: torch.device) -> str:
    """The backend of an MLP's solves on the device."""
    return kernel.backend(device)


def card(device: torch.device) -> dict[str, Any]:
    """The device, its driver and the library versions."""
    if device.type == "cpu":
        return {"name": "the CPU"}
    properties = torch.cuda.get_device_properties(device)
    smi = shutil.which("nvidia-smi")
    asked = [smi or "", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split() if smi else []
    try:
        bindings = version("cuda-bindings")
    except PackageNotFoundError:
        bindings = "not installed"
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 2**30, 1),
        "driver": said[0] if said else "unknown",
        "cuda": torch.version.cuda,
        "cuda_bindings": bindings,
    }


def cuda_tests(device: torch.device) -> Iterator[Line]:
    """Runs the tests with the mark `cuda` in a separate process; each that fails has a line. Other installed plugins of pytest
    aren't loaded."""
    candidates = sorted((ROOT / "tests").rglob("test_*.py"))
    files = [str(file) for file in candidates if "pytest.mark.cuda" in file.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-o", "addopts=", "-m", "cuda"]
    plugins = ["--disable-plugin-autoload", "-p", "pytest_timeout", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *plugins, *files], cwd=ROOT, capture_output=True, text=True, check=False, timeout=TESTS_SECONDS
    )
    lines = done.stdout.splitlines()
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", lines[-1] if lines else "")
    shown = ", ".join(f"{count} {name}" for count, name in counts) or f"pytest ended with status {done.returncode}"
    if device.type == "cpu" and done.returncode == 0:
        yield Line("tests", "with the mark cuda", shown)
    else:
        kept = done.returncode == 0 and "passed" in {name for _, name in counts}
        yield Line("tests", "with the mark cuda", shown, "none fails", kept)
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            yield Line("tests", line.partition(" - ")[0], line.partition(" - ")[2], "", False)
    if done.returncode and not counts:
        print(done.stdout[-4000:], done.stderr[-4000:], flush=True)


def accuracy(case: Case, device: torch.device) -> Iterator[Line]:
    """In float64 the same numbers as on the CPU; in float32 an error that isn't much larger than the CPU's. With adaptive steps,
    the reference is a solve at a ten-thousandth of the tolerance."""
    double = case.to(torch.float64)
    here = double.per_task()
    apart = error(double.to(device).per_task(), here)
    bound = case.tolerance or EXACT
    yield Line("accuracy", f"{case.name}, float64: from the CPU", f"{apart:.1e}", f"≤ {bound:g}", apart <= bound, apart)
    exact = here
    if case.tolerance is not None:
        exact = replace(double, solver=amaml.Dopri5(1e-4 * case.tolerance, 1e-4 * case.tolerance)).per_task()
    cpu, other = error(case.per_task(), exact), error(case.to(device).per_task(), exact)
    kept = other <= ROUNDING * cpu
    shown = f"{other:.1e}, the CPU {cpu:.1e}"
    yield Line("accuracy", f"{case.name}, float32: error", shown, f"≤ {ROUNDING:g}× the CPU's", kept, other)


def bits(case: Case, device: torch.device) -> Iterator[Line]:
    """A task's gradient must not depend on the other tasks of the batch."""
    whole = case.to(device)
    tasks = len(case.tasks["support_x"])
    some = min(TASKS, tasks - 1)
    found = whole.per_task()
    order = torch.randperm(tasks, generator=torch.Generator().manual_seed(2))
    compared = {
        "the same again": (whole.per_task(), found),
        f"{some} tasks of {tasks}": (whole.only(slice(some)).per_task(), found[:some]),
        f"1 task of {tasks}": (whole.only(slice(1)).per_task(), found[:1]),
        "tasks in another order": (whole.only(order.to(device)).per_task(), found[order]),
    }
    for what, (one, other) in compared.items():
        same = torch.equal(one, other)
        shown = "equal" if same else f"{error(one, other.double()):.1e} apart"
        yield Line("bits", f"{case.name}: {what}", shown, "equal", same)


def seconds(case: Case, device: torch.device, quick: bool, timings: dict[str, Any]) -> Iterator[Line]:
    """Median times on the device, on the device without the kernel, and on the CPU, in turn; raw times are put into `timings`."""

    def solved(on: Case, how: Callable[[], AbstractContextManager[None]]) -> None:
        with how():
            on.solve()
        if device.type == "cuda":
            torch.cuda.synchronize()

    there = case.to(device)
    ways: dict[str, Callable[[], None]] = {
        "device": partial(solved, there, nullcontext),
        "device, kernel off": partial(solved, there, kernel.disabled),
    }
    for count in sorted({2, os.cpu_count() or 2}):
        ways[f"CPU, {count} threads"] = partial(solved, case, partial(threads, count))
    once = {"repeats": 1, "warm": False, "turn": 0.0}
    found: dict[str, Timing] = in_turn(ways, budget=BUDGET, **(once if quick else {"repeats": REPEATS}))
    timings[case.name] = {name: timing.summary() for name, timing in found.items()}
    medians = {name: 1e3 * timing.median for name, timing in found.items()}
    for name, median in medians.items():
        yield Line("seconds", f"{case.name}: {name}", f"{median:,.2f} ms", value=median / 1e3)
    ratio = medians["CPU, 2 threads"] / medians["device"]
    bound = None if quick or device.type == "cpu" else FASTER.get(case.name)
    shown = "" if bound is None else f"≥ {bound:g}×"
    kept = None if bound is None else ratio >= bound
    yield Line("seconds", f"{case.name}: as fast as 2 threads", f"{ratio:.1f}×", shown, kept, ratio)


def memory(device: torch.device, quick: bool) -> Iterator[Line]:
    """The peak of PyTorch's allocated memory above that before, for a short and a long solve."""
    tasks = 2 if quick else TASKS
    for checkpoints, bound in GROWTH.items():
        name = "√N checkpoints" if checkpoints is None else f"{checkpoints} checkpoints"
        if device.type == "cpu":
            yield Line("memory", f"exact MAML, {tasks} tasks, {name}", "only on a GPU")
            continue
        peaks = {}
        for steps in (20, SHORT, LONG):  # the first is for the one-time allocations of libraries
            case = regression("", tasks, steps * STEP, amaml.Euler(STEP)).to(device)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            case.solve(amaml.Discrete(checkpoints=checkpoints))
            torch.cuda.synchronize()
            peaks[steps] = torch.cuda.max_memory_allocated() - before
        for steps in (SHORT, LONG):
            size = peaks[steps] / 2**20
            yield Line("memory", f"exact MAML, {tasks} tasks, {steps} steps, {name}", f"{size:.2f} MiB", value=size)
        growth = peaks[LONG] / max(peaks[SHORT], 1)
        what = f"exact MAML, {tasks} tasks, {LONG} steps over {SHORT}, {name}"
        yield Line("memory", what, f"{growth:.2f}×", f"≤ {bound:.1f}×", growth <= bound, growth)


def sanitized() -> Iterator[Line]:
    """What compute-sanitizer finds in a few short solves: accesses outside of memory, races in shared memory."""
    sanitizer = shutil.which("compute-sanitizer")
    for tool, summary in (("memcheck", r"ERROR SUMMARY: (\d+) error"), ("racecheck", r"\((\d+) errors?, ")):
        if sanitizer is None:
            yield Line("sanitizer", tool, "compute-sanitizer isn't on the PATH")
            continue
        # PyTorch itself reports errors that CUDA's functions return; its memory cache would hide accesses outside of an
        # allocation.
        command = [sanitizer, "--tool", tool, "--report-api-errors", "no", sys.executable, "-m", "benchmarks.gpu"]
        done = subprocess.run(
            [*command, "--few-solves"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=SANITIZER_SECONDS,
            env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )  # fmt: skip
        found = re.findall(summary, done.stdout)
        clean = done.returncode == 0 and bool(found) and not any(map(int, found))
        if not clean:
            print(done.stdout[-4000:], done.stderr[-2000:], flush=True)
        shown = f"{sum(map(int, found))} errors" if found else f"it ended with status {done.returncode}"
        yield Line("sanitizer", tool, "clean" if clean else shown, "clean", clean)


def few_solves(device: torch.device) -> None:
    """Short solves with every kind of step, for the sanitizer."""
    for solver in (amaml.Euler(STEP), amaml.RK4(STEP), amaml.Dopri5(1e-4, 1e-4)):
        for dtype in (torch.float32, torch.float64):
            regression("", 3, 0.05, solver).to(dtype, device).solve()
    torch.cuda.synchronize()


def table(lines: list[Line]) -> str:
    """Plain columns."""
    verdict = {None: "", True: "yes", False: "NO"}
    rows = [("", "", "measured", "bound", "kept")]
    rows += [(line.part, line.what, line.measured, line.bound, verdict[line.kept]) for line in lines]
    sizes = [min(max(len(row[column]) for row in rows), 70) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip() for row in rows
    )


def measured(parts: dict[str, Callable[[], Iterator[Line]]]) -> list[Line]:
    """All lines; a part that fails has a line with its error, and the others are still measured."""
    lines: list[Line] = []
    begin = time.perf_counter()
    for name, part in parts.items():
        print(f"{time.perf_counter() - begin:5.0f} s  {name}", flush=True)
        try:
            lines += part()
        except Exception as failure:  # noqa: BLE001 - the table reports any error
            shown = " ".join(f"{type(failure).__name__}: {failure}".split())
            lines.append(Line(name.partition(":")[0], name.partition(": ")[2], shown[:300], "", False))
    return lines


def main(run: Run, device: torch.device, sanitize: bool) -> int:
    """Measures, writes the results and prints the table; returns the exit status."""
    begin = time.perf_counter()
    about = card(device)
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    timings: dict[str, Any] = {}
    all_cases = cases(run.quick)
    exact, many, flow, _, pictures = all_cases
    parts: dict[str, Callable[[], Iterator[Line]]] = {"tests": partial(cuda_tests, device)}
    for case in (exact, flow, pictures):
        parts[f"accuracy: {case.name}"] = partial(accuracy, case, device)
    for solver, name in ((many.solver, "exact MAML"), (flow.solver, "dopri5 1e-5")):
        parts[f"bits: {name}"] = partial(bits, replace(many, name=name, solver=solver), device)
    parts["bits: kernel off"] = partial(_without_kernel, replace(many, name="exact MAML, kernel off"), device)
    for case in all_cases:
        parts[f"seconds: {case.name}"] = partial(seconds, case, device, run.quick, timings)
    parts["memory"] = partial(memory, device, run.quick)
    if sanitize:
        parts["sanitizer"] = sanitized
    lines = measured(parts)
    run.write({
        "card": about, "paths": {"device": path(device), "CPU": path(CPU)},
        "lines": [asdict(line) | {"value": _finite(line.value)} for line in lines], "timings": timings,
        "seconds_altogether": time.perf_counter() - begin,
    })  # fmt: skip
    print(f"\n{about['name']}: {path(device)}; CPU: {path(CPU)}\n\n{table(lines)}\n")
    counts = Counter(line.kept for line in lines)
    print(f"{counts[True]} of {counts[True] + counts[False]} bounds kept, in {time.perf_counter() - begin:.0f} s")
    return 1 if counts[False] and device.type == "cuda" else 0


def _without_kernel(case: Case, device: torch.device) -> Iterator[Line]:
    """The lines without bounds, since there are none for the batched path."""
    with kernel.disabled():
        for line in bits(case, device):
            yield replace(line, bound="", kept=None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _device(name: str) -> torch.device:
    """The device asked for; ends the program with a message if it can't be used."""
    oldest = ".".join(map(str, OLDEST_TORCH))
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        sys.exit(f"PyTorch {oldest} or newer is needed, this is {torch.__version__}")
    if name == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"PyTorch {torch.__version__} finds no CUDA device here; --device cpu compares the CPU with itself instead"
        )
    return torch.device(name)


if __name__ == "__main__":
    options = parser("gpu")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: compare the CPU with itself")
    options.add_argument("--sanitize", action="store_true", help="compute-sanitizer over a few short solves, too")
    options.add_argument("--few-solves", action="store_true", help="those solves alone, without a table")
    given = options.parse_args()
    chosen = _device(given.device)
    if given.few_solves:
        few_solves(chosen)
        sys.exit()
    own = [*["--device=cpu"] * (given.device == "cpu"), *["--sanitize"] * given.sanitize]
    sys.exit(main(Run("gpu", given.quick, given.output, tuple(own)), chosen, given.sanitize))
