"""Lists of packages, and whether code does with what they bring."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ONLY = """
import importlib.metadata, re, sys

installed = set(sys.argv[1].split())
owners = importlib.metadata.packages_distributions()


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        names = {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners.get(name.partition(".")[0], [])}
        if names and not names & installed:
            raise ModuleNotFoundError(f"{name} isn't on the list", name=name)


sys.meta_path.insert(0, NotInstalled())
"""


def named(file: Path) -> list[Requirement]:
    """The packages that a file of requirements lists."""
    lines = file.read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def with_dependencies(requirements: list[Requirement]) -> set[str]:
    """Names of the distributions that pip would install for these."""
    found: set[tuple[str, str]] = set()
    waiting = [(requirement, extra) for requirement in requirements for extra in {"", *requirement.extras}]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for text in requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(needed, more) for more in {"", *needed.extras}]
    return {name for name, _ in found}


def run_with_only(installed: set[str], code: str, cwd: Path | str) -> None:
    """The code runs as if no other distributions were installed."""
    command = [sys.executable, "-c", ONLY + code, " ".join(installed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
