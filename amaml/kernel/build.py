"""Compiles the CPU kernel into a cache in the Python environment: `python -m amaml.kernel.build`.

Only this module compiles it: a solve uses a kernel from the cache if there is one, otherwise the batched path in PyTorch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from amaml.kernel.cache import FLAGS, HERE, SOURCES, code, folder

COMPILERS = ("c++", "g++", "clang++")


class CompileError(Exception):
    """The compiler failed; the message is its output."""


def find_compiler() -> str | None:
    """The path of a C++ compiler; None if the machine has none."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def build(compiler: str) -> Path:
    """The path of this compiler's cached kernel, which is compiled first if it is missing. Raises CompileError."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    kernel = folder() / f"kernel-{code()}-{hashlib.sha256(version).hexdigest()[:12]}.so"
    if not kernel.exists():
        kernel.parent.mkdir(parents=True, exist_ok=True)
        for stale in kernel.parent.glob("kernel-*.so"):
            stale.unlink()
        compile_to(kernel, compiler)
    return kernel


def compile_to(library: Path, compiler: str, extra: Sequence[str] = ()) -> None:
    """Compiles the kernel to the file `library` with FLAGS and the `extra` flags. The file appears whole or not at all. Raises
    CompileError."""
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="building-") as place:
        out = Path(place) / "kernel.so"
        done = subprocess.run(
            [compiler, *FLAGS, *extra, f"-I{HERE}", f"-I{HERE / 'cpu'}", str(SOURCES[0]), "-o", str(out)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CompileError(done.stderr.strip() or f"{compiler} ended with status {done.returncode}")
        out.replace(library)


def main() -> None:
    """Builds the kernel if possible. Without it, solves are slower; their results agree to rounding."""
    compiler = find_compiler()
    if os.environ.get("AMAML_KERNEL") == "off" or compiler is None:
        why = "AMAML_KERNEL is off" if compiler else f"no C++ compiler found ({', '.join(COMPILERS)})"
        sys.stdout.write(f"{why}: solves use the batched path\n")
        return
    try:
        sys.stdout.write(f"kernel: {build(compiler)}\n")
    except (CompileError, OSError) as error:
        sys.stdout.write(f"{compiler} couldn't build the kernel, so that solves use the batched path:\n{error}\n")


if __name__ == "__main__":
    main()
