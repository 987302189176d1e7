"""The compiled CPU kernel as a shared library, loaded at first use, and the choice between kernel and batched path."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch

from amaml.kernel.cache import cached
from amaml.kernel.cuda import CudaKernel, cuda_kernel
from amaml.kernel.problem import KernelProblem

CHUNK = 128
"""The points of a task that are computed together, so few that intermediate results stay in the processor's cache."""
_off: ContextVar[bool] = ContextVar("amaml_kernel_off", default=False)

_OUT_OF_MEMORY, _INCONSISTENT = 1, 2
"""What the kernel returns where it solved nothing."""


class Kernel(NamedTuple):
    """A loaded CPU kernel."""

    library: ctypes.CDLL
    name: str
    """"kernel" and a hash of its machine code: equal names mean equal bits."""

    def fits(self, c: KernelProblem, dtype: torch.dtype, widths: Sequence[int], steps: int) -> bool:
        """True for every problem, since memory comes from the heap; sets the length of chunks."""
        c.chunk = CHUNK
        return True

    def run(self, c: KernelProblem, dtype: torch.dtype, widths: Sequence[int], steps: int) -> None:
        """Solves the problem. Raises MemoryError, and ValueError for sizes that contradict each other."""
        solve = self.library.amaml_solve_float64 if dtype == torch.float64 else self.library.amaml_solve_float32
        ended = solve(ctypes.byref(c))
        if ended == _OUT_OF_MEMORY:
            raise MemoryError("the kernel ran out of memory: use fewer threads, a smaller network or checkpoints=k")
        if ended == _INCONSISTENT:
            raise ValueError("the problem's sizes don't match its network: call the kernel through amaml.meta_gradient")


@contextmanager
def disabled() -> Iterator[None]:
    """A context in which solves use the batched path, for comparison."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


CPU = torch.device("cpu")


def kernel(device: torch.device = CPU) -> Kernel | CudaKernel | None:
    """The kernel for solves on the device; None where they use the batched path."""
    if _off.get() or device.type not in ("cpu", "cuda"):
        return None
    return cuda_kernel(device) if device.type == "cuda" else _loaded()


def backend(device: torch.device = CPU) -> str:
    """What solves of the built-in networks on the device: "kernel 1f0c…", "cuda kernel 7d3a…" or "batched"."""
    found = kernel(device)
    return found.name if found else "batched"


@functools.cache
def _loaded() -> Kernel | None:
    if os.environ.get("AMAML_KERNEL") == "off":
        return None
    path = cached()
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # it was built for another system, or is incomplete: it counts as missing
        return None
    library.amaml_problem_bytes.restype = ctypes.c_int64
    if library.amaml_problem_bytes() != ctypes.sizeof(KernelProblem):
        return None
    for name in ("amaml_solve_float32", "amaml_solve_float64"):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.POINTER(KernelProblem)], ctypes.c_int64
    return Kernel(library, f"kernel {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}")
