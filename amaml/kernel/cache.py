"""Where compiled kernels lie, and which of them fits the sources and the processor at hand."""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path

HERE = Path(__file__).parent
SHARED = [HERE / f"{name}.h" for name in ("arithmetic", "checkpointing", "kinks", "problem", "task")]
"""The solve of a task, the same for processors and GPUs."""
SOURCES = [
    *(HERE / "cpu" / name for name in ("mlp_flow.cpp", "block.h", "network.h", "products.h", "vectors.h")),
    *SHARED,
]
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
    "-fPIC", "-shared", "-pthread",
)  # fmt: skip
"""Not -ffast-math: NaN and infinity are how a diverging solve is found out. Traps and the sign of zero nobody looks at."""


def folder() -> Path:
    """Where kernels of this environment lie."""
    return Path(sys.prefix) / "var" / "amaml"


def cached() -> Path | None:
    """The kernel built from these sources for this processor; the newest where several compilers made one."""
    kernels = list(folder().glob(f"kernel-{code()}-*.so"))
    return max(kernels, key=lambda path: path.stat().st_mtime_ns, default=None)


def code() -> str:
    """What the machine code depends on beside the compiler: sources, flags, processor."""
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update(source.read_bytes())
    digest.update("\0".join((*FLAGS, platform.system(), platform.machine(), *_processor())).encode())
    return digest.hexdigest()[:12]


def _processor() -> list[str]:
    """What -march=native looks at: model and features, as the system names them."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return [platform.processor()]
    about = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")
    first = information.read_text().split("\n\n")[0].splitlines()
    return sorted(line for line in first if line.split(":")[0].strip() in about)
