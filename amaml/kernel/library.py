"""The compiled kernel as a library: loaded at first use, if the cache of this environment has one."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from amaml.kernel.cache import cached

_off: ContextVar[bool] = ContextVar("amaml_kernel_off", default=False)

_INTEGERS = (
    "layers activation batch parameters support_points query_points horizons threads "
    "stages order adaptive guard max_steps checkpoints controlled tensors backward "
    "proximal_in_query want_length want_rates want_proximal"
)
_NUMBERS = "proximal rtol atol stability_limit step_cap"
_POINTERS = (
    "widths sizes times weights counts steps a b error midpoint theta rates power_start scales "
    "support_x support_y query_x query_y gradients through_theta by_rates by_proximal by_length losses ends lambda_max "
    "accepted rejected gradient_count hvp_count code failed_at value bound"
)


class KernelProblem(ctypes.Structure):
    """`Problem` of mlp_flow.cpp, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _INTEGERS.split()),
        *((name, ctypes.c_double) for name in _NUMBERS.split()),
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
    ]


class Kernel(NamedTuple):
    """A loaded kernel."""

    library: ctypes.CDLL
    name: str
    """"kernel" and a hash of its machine code: equal names, equal bits."""


@contextmanager
def disabled() -> Iterator[None]:
    """Solves inside take the batched path, for comparison."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


def kernel() -> Kernel | None:
    """The kernel that solves use here and now, or None where they take the batched path."""
    return None if _off.get() else _loaded()


def backend() -> str:
    """The name of what solves of the built-in networks run on: "kernel 1f0c…" or "batched"."""
    found = kernel()
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
    except OSError:  # built for another system, or cut off: as good as none
        return None
    library.amaml_problem_bytes.restype = ctypes.c_int64
    if library.amaml_problem_bytes() != ctypes.sizeof(KernelProblem):
        return None
    for name in ("amaml_solve_float32", "amaml_solve_float64"):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.POINTER(KernelProblem)], ctypes.c_int64
    return Kernel(library, f"kernel {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}")
