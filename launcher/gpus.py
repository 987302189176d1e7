"""The GPUs of this machine, each of which gets a worker of its own, asked of NVIDIA's driver and without PyTorch."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping

from launcher.process import StartFailed

_SUCCESS = 0
_UUID_BYTES = 96


def assigned(environment: Mapping[str, str]) -> list[str]:
    """A value of CUDA_VISIBLE_DEVICES for each worker that is to have a GPU.

    AMAML_GPUS names them as CUDA_VISIBLE_DEVICES would, or says `none`. Without it they are all that the driver has, or those
    among them that CUDA_VISIBLE_DEVICES leaves. Raises StartFailed for a device that is named twice.
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
    """As CUDA reads them: what follows an entry that names no device doesn't count."""
    found: list[str] = []
    for entry in map(str.strip, value.split(",")):
        if entry in ("", "-1"):
            break
        if entry in found:
            raise StartFailed(
                f"{variable}={value} names GPU {entry} twice: name each once, as every one gets one worker"
            )
        found.append(entry)
    return found


def _of_the_driver() -> Iterator[str]:
    """The UUIDs of all GPUs, or of the parts of those that are divided (MIG); none where there is no driver."""
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
    """Of the device, or of its parts where it is divided."""
    now, later = ctypes.c_uint(), ctypes.c_uint()
    divided = nvml.nvmlDeviceGetMigMode(device, ctypes.byref(now), ctypes.byref(later)) == _SUCCESS and now.value
    for handle in _parts(nvml, device) if divided else [device]:
        uuid = ctypes.create_string_buffer(_UUID_BYTES)
        if nvml.nvmlDeviceGetUUID(handle, uuid, _UUID_BYTES) == _SUCCESS:
            yield uuid.value.decode()


def _parts(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> Iterator[ctypes.c_void_p]:
    most = ctypes.c_uint()
    if nvml.nvmlDeviceGetMaxMigDeviceCount(device, ctypes.byref(most)) != _SUCCESS:
        return
    for index in range(most.value):
        part = ctypes.c_void_p()
        if nvml.nvmlDeviceGetMigDeviceHandleByIndex(device, index, ctypes.byref(part)) == _SUCCESS:
            yield part
