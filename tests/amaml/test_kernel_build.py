"""Building the kernel, solving without it, and its memory accesses and use."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from amaml.kernel import build, cache, library

ROOT = Path(__file__).parents[2]
ACTIVATIONS = {
    "tanh": np.tanh,
    "sigmoid": lambda z: np.where(z < 0, np.exp(z) / (1 + np.exp(z)), 1 / (1 + np.exp(-np.abs(z)))),
    "softplus": lambda z: np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))),
    "relu": lambda z: np.maximum(z, 0),
}


def python(*arguments: str, **environment: str) -> str:
    """The output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "AMAML_KERNEL": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_are_right_to_a_few_units_in_the_last_place(
    kernel: library.Kernel, kind: str, dtype: type[np.floating]
) -> None:
    largest = 85 if dtype is np.float32 else 700
    sizes = np.concatenate([np.logspace(-30, 0, 3000), np.linspace(1e-3, 30, 20000), np.linspace(30, largest, 1000)])
    z = np.concatenate([sizes, -sizes, [0.0, 0.0]]).astype(dtype)
    z = np.concatenate([z, np.zeros(-len(z) % 64, dtype)])
    expected = ACTIVATIONS[kind](z.astype(np.longdouble))
    got = activate(kernel, kind, z)
    units = np.abs(got - expected) / np.spacing(np.abs(expected).astype(dtype))
    assert units.max() < 4, f"{units.max()} at {z[units.argmax()]}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activations_of_what_is_not_a_number(kernel: library.Kernel, dtype: type[np.floating]) -> None:
    z = np.zeros(64, dtype)
    z[:3] = np.nan, np.inf, -np.inf
    for kind, limits in {"tanh": (1, -1), "sigmoid": (1, 0), "softplus": (np.inf, 0), "relu": (np.inf, 0)}.items():
        got = activate(kernel, kind, z)
        assert np.isnan(got[0])
        assert got[1] == limits[0]
        assert abs(got[2] - limits[1]) < 1e-37


def activate(kernel: library.Kernel, kind: str, z: np.ndarray) -> np.ndarray:
    out = z.copy()
    vectors = out.nbytes // kernel.library.amaml_vector_bytes()
    function = getattr(kernel.library, f"amaml_activate_{out.dtype.name}")
    function.argtypes, function.restype = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64], None
    function(list(ACTIVATIONS).index(kind), out.ctypes.data, vectors)
    return out


def test_building_twice_compiles_once(compiler: str, kernel: library.Kernel) -> None:
    path = build.build(compiler)
    made = path.stat().st_mtime_ns
    assert build.build(compiler) == path == cache.cached()
    assert path.stat().st_mtime_ns == made
    assert python("-c", "from amaml.kernel import backend; print(backend())") == kernel.name == library.backend()


NARROW = {"x86_64": [("-mno-avx512f", "-mno-avx512vl"), ("-mno-avx",)]}


@pytest.mark.nightly
@pytest.mark.parametrize("flags", NARROW.get(os.uname().machine, []))
def test_narrower_vectors_give_the_same_answers(compiler: str, tmp_path: Path, flags: tuple[str, ...]) -> None:
    build.compile_to(tmp_path / "narrow.so", compiler, ["-O1", *flags])
    assert float(python("-m", "tests.amaml.kernel_problems", str(tmp_path / "narrow.so"))) < 1e-10


def library_of(compiler: str, name: str) -> str:
    """The path of a library that comes with the compiler; its name alone if there is none."""
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(compiler: str, tmp_path: Path, kind: str) -> None:
    name = {"address,undefined": "libasan.so", "thread": "libtsan.so"}[kind]
    # The C++ library is loaded first, too: the sanitizer looks for its exception functions at the start, and the interpreter has
    # none.
    runtimes = [library_of(compiler, one) for one in (name, "libstdc++.so.6")]
    if not Path(runtimes[0]).is_absolute():
        pytest.skip(f"this compiler has no {name}")
    library_path = tmp_path / "sanitized.so"
    build.compile_to(library_path, compiler, ["-O1", "-g", f"-fsanitize={kind}", "-fno-sanitize-recover=all"])
    # verify_asan_link_order: the interpreter isn't instrumented; detect_leaks: memory that the interpreter doesn't free isn't
    # ours.
    worst = python(
        "-m", "tests.amaml.kernel_problems", str(library_path),
        LD_PRELOAD=":".join(runtimes), ASAN_OPTIONS="detect_leaks=0", UBSAN_OPTIONS="print_stacktrace=1",
        TSAN_OPTIONS="exitcode=66",
    )  # fmt: skip
    assert float(worst) < 1e-10


def test_switched_off() -> None:
    assert python("-c", "from amaml.kernel import backend; print(backend())", AMAML_KERNEL="off") == "batched"


SOLVE = """
from amaml.kernel import backend
from tests.amaml.kernel_problems import regression
import amaml
amaml.meta_gradient(**regression([1, 4, 1]), length=0.1)
print(backend())
"""


@pytest.fixture
def fresh_environment(tmp_path: Path) -> Path:
    """The interpreter of another environment with an empty cache."""
    import venv

    venv.create(tmp_path / "env", symlinks=True)
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    for origin in map(Path, sys.path):
        if origin.name == "site-packages":
            (site / "those.pth").write_text(f"import site; site.addsitedir({str(origin)!r})\n")
    return tmp_path / "env"


def test_without_a_compiler_the_batched_path_answers(fresh_environment: Path) -> None:
    interpreter = fresh_environment / "bin" / "python"

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [interpreter, *arguments], cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert "no C++ compiler" in run("-m", "amaml.kernel.build")
    assert run("-c", SOLVE) == "batched"
    assert not (fresh_environment / "var").exists()


def test_a_failing_compiler_is_reported_and_does_no_harm(fresh_environment: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "c++"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    broken.chmod(0o755)
    done = subprocess.run(
        [fresh_environment / "bin" / "python", "-m", "amaml.kernel.build"],
        cwd=ROOT,
        env={"PATH": f"{broken.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "couldn't build the kernel" in done.stdout
    assert "no room" in done.stdout
    assert not list((fresh_environment / "var").rglob("*.so"))


def test_a_damaged_cache_counts_as_none(fresh_environment: Path) -> None:
    interpreter = fresh_environment / "bin" / "python"

    def backend() -> str:
        done = subprocess.run([interpreter, "-c", SOLVE], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    kernels = fresh_environment / "var" / "amaml"
    kernels.mkdir(parents=True)
    (kernels / f"kernel-{cache.code()}-123.so").write_bytes(b"\x7fELF, cut off")
    assert backend() == "batched"


GROWTH = """
import torch, amaml
from tests.amaml.problems import cosines, network, start
torch.set_num_threads(2)
net = network([32, 32], torch.float32)
losses, tasks = amaml.regression_losses(net), cosines(16, 100, torch.float32)

def solve(length):
    amaml.meta_gradient(start(net), *losses, tasks, length=length, solver=amaml.Euler(0.01))

def status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

solve(0.02)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
solve(20.0)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of memory")
@pytest.mark.usefixtures("kernel")
def test_two_thousand_steps_of_sixteen_tasks_need_little_memory() -> None:
    assert int(python("-c", GROWTH)) < 2048, "kB"
