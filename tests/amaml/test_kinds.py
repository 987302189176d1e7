"""Families and models that an installed package offers by entry points."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PLUGIN = """
from typing import ClassVar, Literal
from amaml.spec import FamilySpec, MLPSpec, ModelSpec, Part, RuleBroken, SinusoidSpec, SyntheticFamilySpec

class DampedSpec(SyntheticFamilySpec):
    implementation: ClassVar[str] = "plugin_of_a_test:build"
    summary: ClassVar[str] = "Damped oscillations."
    kind: Literal["damped"] = "damped"

class WideSpec(ModelSpec):
    implementation: ClassVar[str] = "plugin_of_a_test:build"
    summary: ClassVar[str] = "Wide."
    kind: Literal["wide"] = "wide"
"""
ENTRY_POINTS = """[amaml.families]
damped = plugin_of_a_test:DampedSpec
[amaml.models]
wide = plugin_of_a_test:WideSpec
"""
ASKS = """
import sys
from amaml.spec import JobSpec, families, models
spec = JobSpec.model_validate({"family": {"kind": "damped"}, "model": {"kind": "wide"}})
print(type(spec.family).__name__, type(spec.model).__name__, "damped" in families(), "wide" in models(), "torch" in sys.modules)
"""


def test_a_spec_names_a_package_s_family_and_model(tmp_path: Path) -> None:
    (tmp_path / "plugin_of_a_test.py").write_text(PLUGIN)
    told = tmp_path / "plugin_of_a_test-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-a-test\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text(ENTRY_POINTS)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-c", ASKS],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "DampedSpec WideSpec True True False"
