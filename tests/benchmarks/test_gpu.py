"""The table of a GPU, tried on the CPU, and the folder that takes it to a machine without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from packaging.requirements import Requirement

import amaml
from benchmarks import gpu, gpu_cases, gpu_run
from tests.support.distributions import named, run_with_only, with_dependencies

ROOT = Path(__file__).parents[2]
LISTED = named(ROOT / "benchmarks" / "requirements-gpu.txt")


def test_every_line_runs_on_the_cpu_beside_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--device", "cpu", "--output", str(tmp_path)]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300)
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["command"] == "python -m benchmarks.gpu --quick --device=cpu"
    lines = content["results"]["lines"]
    assert {line["part"] for line in lines} == {"tests", "accuracy", "bits", "seconds", "memory"}
    assert all(line["kept"] is True for line in lines if line["part"] == "accuracy"), lines
    assert all(line["measured"] in done.stdout for line in lines)
    assert len(content["results"]["timings"]) == 5


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--output", str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, check=False, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 1
    assert "finds no CUDA device" in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_breaks_is_a_line_too() -> None:
    broken = gpu_cases.regression("a task too stiff", 2, 1e6, amaml.Euler(10.0))
    lines = gpu.measured({"bits: it": lambda: gpu.bits(broken, gpu.CPU), "memory": lambda: gpu.memory(gpu.CPU, True)})
    assert [line.part for line in lines] == ["bits", "memory", "memory"]
    assert lines[0].kept is False
    assert "SolveError" in lines[0].measured


def test_the_list_holds_all_that_is_imported_beyond_pytorch() -> None:
    installed = with_dependencies([Requirement("torch")]) | {requirement.name for requirement in LISTED}
    assert with_dependencies(LISTED) <= installed
    modules = "tests.conftest, tests.amaml.conftest, tests.amaml.test_cuda, benchmarks.gpu, amaml.run.training"
    run_with_only(installed | {"amaml-service"}, f"import {modules}, pytest_timeout, hypothesis", ROOT)


def test_the_folder_runs_what_it_brings_or_another_checkout(tmp_path: Path) -> None:
    """The packages are found, the kernel is built first, and options reach the command."""
    folder, content, elsewhere = tmp_path / "folder", tmp_path / "content", tmp_path / "elsewhere"
    for checkout in (content / "checkout", elsewhere):
        for name, code in {
            "amaml/kernel/build.py": "print('built')",
            "benchmarks/gpu.py": "import sys, brought; print(*sys.argv[1:], __file__)",
        }.items():
            (checkout / name).parent.mkdir(parents=True)
            (checkout / name).write_text(code)
    (content / "packages").mkdir()
    (content / "packages" / "brought.py").touch()
    folder.mkdir()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with tarfile.open(folder / f"python{version}.tar.xz", "w:xz") as archive:
        for part in content.iterdir():
            archive.add(part, part.name)
    (folder / "run.py").write_text(Path(gpu_run.__file__).read_text())

    def run(*options: str) -> list[str]:
        command = [sys.executable, folder / "run.py", *options]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        return done.stdout.split()

    built, *options, place = run("--quick")
    assert (built, options) == ("built", ["--output", str(tmp_path), "--quick"])
    assert not Path(place).exists(), "what was unpacked is gone"
    assert run("--checkout", str(elsewhere), "--output", "there")[1:] == [
        "--output", str(tmp_path / "there"), str(elsewhere / "benchmarks" / "gpu.py")
    ]  # fmt: skip


def test_another_python_or_one_without_pytorch_is_reported(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(Path(gpu_run.__file__).read_text())
    (tmp_path / "python3.1.tar.xz").touch()
    done = subprocess.run([sys.executable, tmp_path / "run.py"], check=False, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "for python3.1, and this is python3." in done.stderr
