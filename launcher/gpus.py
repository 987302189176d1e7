"""The GPUs of this machine, as NVIDIA's driver lists them without PyTorch. Each GPU gets its own worker."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping

from launcher.children import StartFailed

_SUCCESS = 0
_UUID_BYTES = 96


def assigned(environment: Mapping[str, str]) -> list[str]:
    """The value of CUDA_VISIBLE_DEVICES for each worker with a GPU.

    AMAML_GPUS lists the GPUs in the format of CUDA_VISIBLE_DEVICES, or is `none`. Without it, all GPUs of the driver are used, or
    those listed in CUDA_VISIBLE_DEVICES. Raises StartFailed for a device that is named twice.
    """
    named = environment.get("AMAML_GPUS", "").strip()
    if named == "none":
        return []
    if named:
        return _entries("AMAML_GPUS", named)
    found = list(_of_the_driver())
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return found if visible is None or not found else _entries("CUDA_VISIBLE_DEVICES", visible)


def _entries(variable: str, value: str) -> list[str]:
    """The devices in a list that is read as CUDA reads it: an empty entry or -1 ends it."""
    found: list[str] = []
    for entry in map(str.strip, value.split(",")):
        if entry in ("", "-1"):
            break
        if entry in found:
            raise StartFailed(
                f"{variable}={value} names GPU {entry} twice: name each GPU once, since each gets one worker"
            )
        found.append(entry)
    return found


def _of_the_driver() -> Iterator[str]:
    """The UUIDs of all GPUs, where a GPU divided by MIG is replaced by its instances; none without a driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return
    if nvml.nvmlInit_v2() != _SUCCESS:
        return
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != _SUCCESS:
            return
        for index in range(count.value):
            device = ctypes.c_void_p()
            if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == _SUCCESS:
                yield from _uuids(nvml, device)
    finally:
        nvml.nvmlShutdown()


def _uuids(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> Iterator[str]:
    """The UUID of the device, or those of its MIG instances where it is divided."""
    now, later = ctypes.c_uint(), ctypes.c_uint()
    divided = nvml.nvmlDeviceGetMigMode(device, ctypes.byref(now), ctypes.byref(later)) == _SUCCESS and now.value
    for handle in _instances(nvml, device) if divided else [device]:
        uuid = ctypes.create_string_buffer(_UUID_BYTES)
        if nvml.nvmlDeviceGetUUID(handle, uuid, _UUID_BYTES) == _SUCCESS:
            yield uuid.value.decode()


def _instances(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> Iterator[ctypes.c_void_p]:
    most = ctypes.c_uint()
    if nvml.nvmlDeviceGetMaxMigDeviceCount(device, ctypes.byref(most)) != _SUCCESS:
        return
    for index in range(most.value):
        instance = ctypes.c_void_p()
        if nvml.nvmlDeviceGetMigDeviceHandleByIndex(device, index, ctypes.byref(instance)) == _SUCCESS:
            yield instance
