"""The Python examples in the documentation run as they are, and its specs are valid."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import amaml
from amaml.spec import JobSpec
from amaml_client.specfile import read_spec

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    spec = {"family": {"kind": "sinusoid"}, "trajectory": {"length": 0.5}, "meta": {"iterations": 2}}
    run = amaml.train(JobSpec.model_validate(spec | {"evaluation": {"tasks": 2, "epochs": 1}}))
    run.save(tmp_path / "init.safetensors")
    snippets = blocks(ROOT / "README.md", "python")
    assert len(snippets) == 2
    for snippet in snippets:
        done = subprocess.run(
            [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "tensor" in done.stdout


SPECS = [
    pytest.param(block, id=f"{page.name} {number}")
    for page in PAGES
    for number, block in enumerate(blocks(page, "json"))
    if block.startswith('{"family"')
]


@pytest.mark.parametrize("block", SPECS)
def test_specs_in_the_documentation_are_valid(block: str) -> None:
    JobSpec.model_validate(json.loads(block))


def test_there_are_specs() -> None:
    assert len(SPECS) >= 3


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("*.json")) + sorted((ROOT / "examples").glob("*.yaml"))
)
def test_specs_among_the_examples_are_valid(path: Path) -> None:
    spec = read_spec(path).spec
    if spec["family"].get("dataset") == "DATASET":
        spec["family"]["dataset"] = "0199aa0f-1b2c-7e3d-9f40-51627384a5b6"
    JobSpec.model_validate(spec)
