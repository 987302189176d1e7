"""Which GPU this process computes on, asked of the driver: no context is made, which would take the GPU's memory."""

from __future__ import annotations

import ctypes
from uuid import UUID

from worker.processes.protocol import Gpu

LONGEST_NAME = 256


def gpu() -> Gpu | None:
    """The first that CUDA_VISIBLE_DEVICES leaves; None where there is none, or no driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    name, memory, uuid = ctypes.create_string_buffer(LONGEST_NAME), ctypes.c_size_t(), ctypes.create_string_buffer(16)
    if (
        cuda.cuDeviceGetName(name, LONGEST_NAME, device)
        or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        or cuda.cuDeviceGetUuid_v2(uuid, device)
    ):
        return None
    kind = "MIG" if " MIG " in name.value.decode() else "GPU"
    return Gpu(
        name=name.value.decode(),
        memory_bytes=memory.value,
        uuid=f"{kind}-{UUID(bytes=uuid.raw)}",
        others=count.value - 1,
    )
