"""The kernel on a GPU: compiled by NVRTC at first use, for a type of number and an activation, and launched on PyTorch's stream.

NVIDIA's own bindings (cuda-bindings) call NVRTC and the driver: every CUDA build of PyTorch since 2.10 brings both.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from amaml.kernel.cache import HERE, SHARED, folder
from amaml.kernel.problem import KernelProblem

SOURCES = [
    *(HERE / "cuda" / name for name in ("mlp_flow.cu", "activations.h", "block.h", "network.h", "products.h")),
    *SHARED,
]
OPTIONS = ("--std=c++17", "--device-as-default-execution-space", "--fmad=true")
THREADS = 256
"""Of a block."""
RESERVED = 2048
"""Bytes of a multiprocessor's memory that the driver and sums take."""
CHUNKS = (128, 64, 32, 16, 8)
"""Points that are looked at together: as many as the memory of a multiprocessor has room for."""
SHARE_OF_FREE = 0.5
"""Of the device's free memory, what the blocks of one launch may take; more tasks than that follow in a launch of their own."""
_NUMBERS = {torch.float32: "float", torch.float64: "double"}
_ACTIVATIONS = ("Tanh", "Sigmoid", "Softplus", "Relu")
"""In the order of problem.h's enumeration."""


class CudaError(RuntimeError):
    """The driver or the compiler refused."""


class CudaKernel:
    """The kernel of one device."""

    def __init__(self, device: torch.device) -> None:
        """Raises ImportError where there are no bindings, CudaError where the compiler can't be asked."""
        self._driver: Any = importlib.import_module("cuda.bindings.driver")
        self._nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")
        self._device = device
        properties = torch.cuda.get_device_properties(device)
        self._architecture = f"sm_{properties.major}{properties.minor}"
        self._near_at_most = int(getattr(properties, "shared_memory_per_block_optin"))  # noqa: B009 - PyTorch's stubs lack it
        digest = hashlib.sha256(repr((OPTIONS, self._architecture, self._ask(self._nvrtc.nvrtcVersion()))).encode())
        for source in SOURCES:
            digest.update(source.read_bytes())
        self._code = digest.hexdigest()[:12]
        self.name = f"cuda kernel {self._code}"
        """Equal names on equal devices: equal bits."""
        self._functions: dict[tuple[str, str], tuple[Any, Any]] = {}
        self._needs: dict[bytes, tuple[int, int]] = {}

    def fits(self, c: KernelProblem, dtype: torch.dtype, shape: Sequence[int]) -> bool:
        """Whether a multiprocessor's memory has room for a block; sets how many points are looked at together. `shape`: what the
        memory depends on beside the problem's own numbers."""
        for chunk in CHUNKS:
            c.chunk = chunk
            if self._needed(c, dtype, shape)[1] + RESERVED <= self._near_at_most:
                return True
        return False

    def run(self, c: KernelProblem, dtype: torch.dtype, shape: Sequence[int]) -> None:
        """Solves the problem, whose pointers are the device's: a block a task, on the current stream."""
        solve, _ = self._function(c, dtype)
        far, near = self._needed(c, dtype, shape)
        self._ask(
            self._driver.cuFuncSetAttribute(
                solve, self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, near
            )
        )
        at_once = self._at_once(c.batch, far)
        workspace = torch.empty(at_once * far, dtype=torch.uint8, device=self._device)
        for first in range(0, c.batch, at_once):
            blocks = min(at_once, c.batch - first)
            arguments = [ctypes.c_void_p(workspace.data_ptr()), ctypes.c_int64(far), ctypes.c_int64(first)]
            self._launch(solve, blocks, THREADS, near, [c, *arguments])

    def _at_once(self, batch: int, far: int) -> int:
        """How many tasks a launch may have. Free is what the driver has and what PyTorch's allocator holds unused."""
        if batch * far <= 1 << 26:
            return batch
        free, _ = torch.cuda.mem_get_info(self._device)
        free += torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return max(1, min(batch, int(SHARE_OF_FREE * free) // far))

    def _needed(self, c: KernelProblem, dtype: torch.dtype, shape: Sequence[int]) -> tuple[int, int]:
        """Bytes that a block takes: of the device, of its multiprocessor. The kernel itself counts them, once for each shape."""
        key = repr((dtype, bool(c.rates), *shape)).encode() + c.sizes_and_switches()
        if key not in self._needs:
            _, measure = self._function(c, dtype)
            found = torch.empty(2, dtype=torch.int64, device=self._device)
            self._launch(measure, 1, 1, 0, [c, ctypes.c_void_p(found.data_ptr())])
            far, near = found.tolist()
            self._needs[key] = (far, near)
        return self._needs[key]

    def _launch(self, function: Any, blocks: int, threads: int, near: int, arguments: Sequence[Any]) -> None:
        places = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        stream = torch.cuda.current_stream(self._device).cuda_stream
        with torch.cuda.device(self._device):
            launched = self._driver.cuLaunchKernel(
                function, blocks, 1, 1, threads, 1, 1, near, stream, ctypes.addressof(places), 0
            )
        self._ask(launched)

    def _function(self, c: KernelProblem, dtype: torch.dtype) -> tuple[Any, Any]:
        """What solves and what measures, compiled for the numbers and the activation."""
        kind = (_NUMBERS[dtype], _ACTIVATIONS[c.activation])
        if kind not in self._functions:
            with torch.cuda.device(self._device):
                module = self._ask(self._driver.cuModuleLoadData(self._machine_code(*kind)))
            self._functions[kind] = (
                self._ask(self._driver.cuModuleGetFunction(module, b"amaml_solve")),
                self._ask(self._driver.cuModuleGetFunction(module, b"amaml_measure")),
            )
        return self._functions[kind]

    def _machine_code(self, number: str, activation: str) -> bytes:
        path = folder() / f"cuda-{self._code}-{number}-{activation}.cubin"
        if not path.exists():
            machine_code = self._compiled(number, activation)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                    file.write(machine_code)
                Path(file.name).replace(path)  # whole or not at all
            except OSError as error:
                warnings.warn(f"every process compiles the kernel anew: {error}", RuntimeWarning, stacklevel=2)
            return machine_code
        return path.read_bytes()

    def _compiled(self, number: str, activation: str) -> bytes:
        nvrtc = self._nvrtc
        program = self._ask(nvrtc.nvrtcCreateProgram(SOURCES[0].read_bytes(), SOURCES[0].name.encode(), 0, [], []))
        options = [
            *OPTIONS, f"--gpu-architecture={self._architecture}", f"-I{HERE}", f"-I{HERE / 'cuda'}",
            f"-DAMAML_THREADS={THREADS}", f"-DAMAML_NUMBER={number}", f"-DAMAML_ACTIVATION={activation}",
        ]  # fmt: skip
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytearray(self._ask(nvrtc.nvrtcGetProgramLogSize(program)))
            self._ask(nvrtc.nvrtcGetProgramLog(program, log))
            raise CudaError(f"NVRTC couldn't compile the kernel for {self._architecture}:\n{bytes(log).decode()}")
        machine_code = bytearray(self._ask(nvrtc.nvrtcGetCUBINSize(program)))
        self._ask(nvrtc.nvrtcGetCUBIN(program, machine_code))
        self._ask(nvrtc.nvrtcDestroyProgram(program))
        return bytes(machine_code)

    @staticmethod
    def _ask(answer: tuple[Any, ...]) -> Any:
        """What a call of the bindings gives beside its status. Raises CudaError."""
        status, *values = answer
        if status != 0:
            raise CudaError(f"{status!r}")
        return values[0] if len(values) == 1 else tuple(values)


@functools.cache
def cuda_kernel(device: torch.device) -> CudaKernel | None:
    """The kernel of a device, or None where solves take the batched path."""
    if os.environ.get("AMAML_KERNEL") == "off":
        return None
    try:
        return CudaKernel(device)
    except ImportError as error:
        warnings.warn(
            f"solves on {device} use the slower batched path: {error}; install cuda-bindings",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
