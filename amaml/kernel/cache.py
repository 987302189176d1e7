"""Where compiled kernels are cached, and which of them matches the present sources and processor."""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path

HERE = Path(__file__).parent
SHARED = [
    HERE / f"{name}.h"
    for name in ("adjoint_equation", "arithmetic", "checkpointing", "forward", "kinks", "problem", "task")
]
"""The solve of one task, the same source for CPUs and GPUs."""
SOURCES = [
    *(HERE / "cpu" / name for name in ("mlp_flow.cpp", "block.h", "network.h", "products.h", "vectors.h")),
    *SHARED,
]
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
    "-fPIC", "-shared", "-pthread",
)  # fmt: skip
"""Without -ffast-math, since NaN and infinity show that a solve diverges. Traps and the sign of zero don't matter."""


def folder() -> Path:
    """The folder of this Python environment's kernels."""
    return Path(sys.prefix) / "var" / "amaml"


def cached() -> Path | None:
    """The kernel built from the present sources for this processor; the newest, if several compilers have built one."""
    kernels = list(folder().glob(f"kernel-{code()}-*.so"))
    return max(kernels, key=lambda path: path.stat().st_mtime_ns, default=None)


def code() -> str:
    """A hash of all that the machine code depends on, except the compiler: sources, flags and processor."""
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update(source.read_bytes())
    digest.update("\0".join((*FLAGS, platform.system(), platform.machine(), *_processor())).encode())
    return digest.hexdigest()[:12]


def _processor() -> list[str]:
    """What -march=native depends on: the processor's model and features, as the system names them."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return [platform.processor()]
    about = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")
    first = information.read_text().split("\n\n")[0].splitlines()
    return sorted(line for line in first if line.split(":")[0].strip() in about)
