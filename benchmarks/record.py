"""Shared by all benchmarks: the command line, timing in turn, and the JSON with results, machine and versions."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from amaml import kernel

RESULTS = Path(__file__).parent / "results"
REST = 0.05
"""Seconds: threads of OpenMP spin for some 10 ms after their work, and so would take a core from the case that follows."""
TURN = 0.5
"""Seconds: a short case is run again until they are over, as in training, where one meta-gradient follows another. A single run
after a rest would measure how processors and threads wake up, too."""
PACKAGES = ("torch", "numpy", "torchdiffeq", "higher", "torchopt", "torchode")


@dataclass(frozen=True)
class Run:
    """The call of a benchmark."""

    name: str
    quick: bool
    output: Path
    options: tuple[str, ...] = ()
    """The options of this benchmark, as they were given."""

    def write(self, results: Any) -> None:
        """Writes `results` with the machine, the versions and the command."""
        path = self.output / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        command = ["python", "-m", f"benchmarks.{self.name}", *["--quick"] * self.quick, *self.options]
        content = {"benchmark": self.name, "command": " ".join(command),
                   "machine": machine(), "versions": versions(), "results": results}  # fmt: skip
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        print(f"wrote {path}")


def parser(name: str) -> argparse.ArgumentParser:
    """--quick: the smallest work that runs every line; --output: the folder of the JSON."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    options.add_argument("--quick", action="store_true", help="the smallest work that runs every line")
    options.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    return options


def arguments(name: str) -> Run:
    """The call of a benchmark without options of its own."""
    given = parser(name).parse_args()
    return Run(name, given.quick, given.output)


def machine() -> dict[str, Any]:
    facts = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    names = [line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 2**30, 1),
        "system": platform.platform(),
        "load_before": os.getloadavg()[0],
        "simd": torch.backends.cpu.get_cpu_capability(),
        "kernel": kernel.backend(),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def backends() -> dict[str, Callable[[], Any]]:
    """Our backends by name: the compiled kernel, if it is built, and the batched path."""
    if kernel.backend() == "batched":
        return {"batched": nullcontext}
    return {"kernel": nullcontext, "batched": kernel.disabled}


@dataclass
class Timing:
    """The seconds of every run, and the result of the last one."""

    seconds: list[float] = field(default_factory=list)
    value: Any = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def summary(self) -> dict[str, Any]:
        return {"seconds": self.median, "runs": len(self.seconds), "best": min(self.seconds)}


def in_turn(
    cases: Mapping[str, Callable[[], Any]], *, repeats: int, budget: float, warm: bool = True, turn: float = TURN
) -> dict[str, Timing]:
    """Runs every case once unmeasured, then all of them in turn, each after a rest, round after round, until each has had
    `repeats` turns of `turn` seconds (0: of one run) or has used up its `budget` of seconds."""
    timings = {name: Timing() for name in cases}
    if warm:
        for case in cases.values():
            case()
    for _ in range(repeats):
        for name, case in cases.items():
            if sum(timings[name].seconds) <= budget:
                time.sleep(REST)
                _turn(case, timings[name], turn)
    return timings


def _turn(case: Callable[[], Any], timing: Timing, seconds: float) -> None:
    """Adds the seconds of one turn's runs."""
    begin = end = time.perf_counter()
    while end - begin <= seconds:
        before = end
        timing.value = case()
        end = time.perf_counter()
        timing.seconds.append(end - before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Intra-op threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
