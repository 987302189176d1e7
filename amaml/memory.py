"""Out of memory: which errors mean it, how much was asked for, how much the device has, and how memory is freed."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import re
import sys

import torch

GIB = 1 << 30

_SAID_BY_LIBRARIES = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Texts in messages of RuntimeError that mean out of memory: torch has a separate exception only for its CUDA allocator."""

_ASKED_FOR = re.compile(r"(?:tried to allocate|unable to allocate) ([\d.]+) (bytes|[KMGTPE]iB)", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the exception, or one that it was raised from, means that an allocation failed."""
    found: BaseException | None = error
    while found is not None:
        if (
            isinstance(found, MemoryError | torch.OutOfMemoryError)
            or (isinstance(found, OSError) and found.errno == errno.ENOMEM)
            or (isinstance(found, RuntimeError) and any(words in str(found) for words in _SAID_BY_LIBRARIES))
        ):
            return True
        found = found.__cause__
    return False


def asked_for(error: BaseException) -> str | None:
    """The size of the failed allocation, in words; None where the error doesn't say."""
    found = _ASKED_FOR.search(str(error))
    if found is None:
        return None
    return in_words(int(float(found[1]))) if found[2].lower() == "bytes" else f"{found[1]} {found[2]}"


def total(device: torch.device) -> int | None:
    """Bytes of the device's memory; on the CPU those of the machine, or the process's limit if that is smaller. None where the
    system doesn't say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415 - Windows has none

    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return machine if limit == resource.RLIM_INFINITY else min(machine, limit)


def is_held_by_others(device: torch.device) -> bool:
    """Whether other processes hold much of a CUDA device's memory: more than a gibibyte, and more than a tenth of it. The memory
    that the driver holds for this process can't be told from theirs, but it is less than that."""
    if device.type != "cuda":
        return False
    free, whole = torch.cuda.mem_get_info(device)
    others = whole - free - torch.cuda.memory_reserved(device)
    return bool(others > max(GIB, whole / 10))


def release(device: torch.device) -> None:
    """Frees unused memory, so that the next try doesn't find it fragmented by the last one."""
    gc.collect()  # frames of a failed solve may refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        return_to_system()


def return_to_system() -> None:
    """Returns the host memory that the process has freed to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it; other C libraries keep less freed memory
    if trim is not None:
        trim(0)


def in_words(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.1f} MiB"
