"""Families and models that an installed package offers by entry points: taken whole, or refused when they are registered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from amaml.spec import FamilySpec, ModelSpec
from amaml.spec.entry_points import EntryPointRefused, with_entry_points

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


def install(folder: Path, name: str, module: str, entry_points: str) -> None:
    """Makes the folder one of installed packages, with that one in it."""
    (folder / f"{name}.py").write_text(module)
    told = folder / f"{name}-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text(entry_points)


def asked(what: str, installed: Path) -> subprocess.CompletedProcess[str]:
    """Python, where that folder's packages are installed."""
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", what], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "first",
    ["", "import plugin_of_a_test\n", "import amaml.families.ratings.spec\n", "import amaml.models.mlp.module\n"],
)
def test_a_spec_names_a_package_s_family_and_model_whatever_is_imported_first(tmp_path: Path, first: str) -> None:
    install(tmp_path, "plugin_of_a_test", PLUGIN, ENTRY_POINTS)
    done = asked(first + ASKS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"DampedSpec WideSpec True True {'module' in first}"


def offered(monkeypatch: pytest.MonkeyPatch, folder: Path, **parts: str) -> tuple[type[FamilySpec], ...]:
    """The families that there are where a package offers one with these parts (as source) besides, or instead of, whole ones."""
    whole = {
        "implementation: ClassVar[str]": '"json:dumps"',
        "summary: ClassVar[str]": '"A family."',
        'kind: Literal["own"]': '"own"',
    }
    # Each in a module of its own: a process imports one of a name once.
    name = f"plugin_{abs(hash(folder))}"
    given = {next((line for line in whole if line.startswith(part)), part): value for part, value in parts.items()}
    body = "".join(f"    {line} = {value}\n" for line, value in {**whole, **given}.items() if value)
    module = (
        f"from typing import ClassVar, Literal\nfrom amaml.spec import FamilySpec\nclass OwnSpec(FamilySpec):\n{body}"
    )
    install(folder, name, module, f"[amaml.families]\nown = {name}:OwnSpec\n")
    monkeypatch.syspath_prepend(str(folder))
    return with_entry_points("amaml.families", FamilySpec, ())


def test_one_without_data_needs_no_more_than_a_kind_a_summary_and_an_implementation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    [own] = offered(monkeypatch, tmp_path)
    spec = own.model_validate({"kind": "own"})
    assert (spec.cost(), spec.reader, spec.objective, spec.without_validation()) == (None, None, None, None)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"implementation": '"json.dumps"'}, "implementation: 'json.dumps' names no function: write implementation"),
        ({"implementation": '"json:"'}, "implementation: 'json:' names no function"),
        ({"implementation": "None"}, "implementation: None names no function"),
        ({"implementation": ""}, "implementation: None names no function"),
        ({"implementation": '"nowhere.family:build"'}, "implementation: there is no module nowhere.family: install it"),
        ({"objective": '"nowhere:objective"'}, "objective: there is no module nowhere"),
        ({"objective": '"json"'}, "objective: 'json' names no function"),
        ({"reader": '"nowhere"'}, "reader: 'nowhere' can't be imported .ModuleNotFoundError"),
        ({"reader": '"json:nothing"'}, "reader: 'json:nothing' can't be imported .AttributeError"),
        ({"reader": '"json"', "dataset: str": '""'}, "reader: json lacks FORMATS, accepts, validate: give it what"),
        ({"reader": '"json:JSONDecoder"', "dataset: str": '""'}, "reader: json:JSONDecoder lacks FORMATS, accepts, validate"),
        ({"summary": ""}, "summary: there is none: write a sentence"),
        ({"kind": ""}, "kind: it is not fixed: write kind: Literal"),
        ({"kind: str": '"own"', "kind": ""}, "kind: it is not fixed: write kind: Literal"),
        ({"reader": '"amaml.families.table.reader"'}, "reader: the spec has no field dataset: add one"),
    ],
)  # fmt: skip
def test_one_that_is_not_whole_is_refused_with_entry_point_part_and_remedy(
    parts: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(EntryPointRefused, match=f"entry point 'own' of amaml.families, {sentence}"):
        offered(monkeypatch, tmp_path, **parts)


def test_one_whose_spec_imports_torch_is_refused(tmp_path: Path) -> None:
    install(tmp_path, "plugin_of_a_test", "import torch\n" + PLUGIN, ENTRY_POINTS)
    done = asked("import amaml.spec.kinds", tmp_path)
    assert "entry point 'damped' of amaml.families, class: its module imports torch: leave that to" in done.stderr


def test_a_kind_that_is_there_already_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (own,) = offered(monkeypatch, tmp_path)
    with pytest.raises(EntryPointRefused, match="kind: 'own' is offered already: choose another"):
        with_entry_points("amaml.families", FamilySpec, (own,))


def test_what_is_no_spec_or_can_not_be_imported_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path, "plugin_without", "import nowhere\n", "[amaml.models]\nown = plugin_without:OwnSpec\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        EntryPointRefused, match=r"plugin_without:OwnSpec can't be imported .*nowhere.*: repair or uninstall"
    ):
        with_entry_points("amaml.models", ModelSpec, ())
    (tmp_path / "plugin_without.py").write_text("OwnSpec = dict\n")
    with pytest.raises(EntryPointRefused, match=r"class: .* name a subclass of amaml.spec.ModelSpec"):
        with_entry_points("amaml.models", ModelSpec, ())
