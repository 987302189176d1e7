"""The kernel on a GPU: compiled by NVRTC when a shape is first solved, and launched on PyTorch's stream.

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
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from amaml.kernel.cache import HERE, SHARED, folder
from amaml.kernel.problem import ACTIVATIONS, KernelProblem

SOURCES = [
    *(
        HERE / "cuda" / name
        for name in ("mlp_flow.cu", "activations.h", "block.h", "network.h", "products.h", "shape.h")
    ),
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


class CudaError(RuntimeError):
    """The driver or the compiler refused."""


class _Shape(NamedTuple):
    """What the kernel is compiled for."""

    number: str
    activation: str
    widths: tuple[int, ...]
    support: int
    """Points of a chunk of the support set, and of the query set."""
    query: int
    adaptive: bool
    controlled: bool


def _lengths(c: KernelProblem) -> tuple[int, int]:
    """Points of a chunk of either set: chunks are as long as each other."""
    support, query = (-(-count // -(-count // c.chunk)) for count in (c.support_points, c.query_points))
    return support, query


def numbers_near(widths: Sequence[int], points: int) -> int:
    """How many numbers a block keeps in its multiprocessor's memory: NUMBERS of network.h."""

    def fours(count: int) -> int:
        return -(-count // 4) * 4

    stride = fours(points) if fours(points) // 4 % 2 else fours(points) + 4
    layers = [outputs * fours(inputs) + (inputs + 1) * fours(outputs) for inputs, outputs in pairwise(widths)]
    return stride * (2 * sum(widths) - widths[0] + widths[-1]) + 2 * sum(layers) + 8 * THREADS


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
        self._functions: dict[_Shape, tuple[Any, Any]] = {}
        self._needs: dict[tuple[Any, ...], int] = {}

    def fits(self, c: KernelProblem, dtype: torch.dtype, widths: Sequence[int], steps: int) -> bool:
        """Whether a multiprocessor's memory has room for a block; sets how many points are looked at together."""
        for chunk in CHUNKS:
            c.chunk = chunk
            support, query = _lengths(c)
            if numbers_near(widths, max(support, query)) * dtype.itemsize + RESERVED <= self._near_at_most:
                return True
        return False

    def run(self, c: KernelProblem, dtype: torch.dtype, widths: Sequence[int], steps: int) -> None:
        """Solves the problem, whose pointers are the device's: a block a task, on the current stream. `steps`: fixed ones."""
        shape = _Shape(
            _NUMBERS[dtype],
            ACTIVATIONS[c.activation].title(),
            tuple(widths),
            *_lengths(c),
            bool(c.adaptive),
            bool(c.controlled),
        )
        solve, measure = self._functions_for(shape)
        far = self._needed(c, shape, steps, measure)
        near = numbers_near(widths, max(shape.support, shape.query)) * dtype.itemsize
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

    def _needed(self, c: KernelProblem, shape: _Shape, steps: int, measure: Any) -> int:
        """Bytes that a block takes of the device's memory. The kernel itself counts them, once for each shape."""
        key = (shape, steps, bool(c.rates), c.sizes_and_switches())
        if key not in self._needs:
            found = torch.empty((), dtype=torch.int64, device=self._device)
            self._launch(measure, 1, 1, 0, [c, ctypes.c_void_p(found.data_ptr())])
            self._needs[key] = int(found)
        return self._needs[key]

    def _launch(self, function: Any, blocks: int, threads: int, near: int, arguments: Sequence[Any]) -> None:
        places = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        stream = torch.cuda.current_stream(self._device).cuda_stream
        with torch.cuda.device(self._device):
            launched = self._driver.cuLaunchKernel(
                function, blocks, 1, 1, threads, 1, 1, near, stream, ctypes.addressof(places), 0
            )
        self._ask(launched)

    def _functions_for(self, shape: _Shape) -> tuple[Any, Any]:
        """What solves and what measures."""
        if shape not in self._functions:
            driver = self._driver
            with torch.cuda.device(self._device):
                module = self._ask(driver.cuModuleLoadData(self._machine_code(shape)))
            solve = self._ask(driver.cuModuleGetFunction(module, b"amaml_solve"))
            most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._ask(driver.cuFuncSetAttribute(solve, most, self._near_at_most - RESERVED))
            self._functions[shape] = solve, self._ask(driver.cuModuleGetFunction(module, b"amaml_measure"))
        return self._functions[shape]

    def _machine_code(self, shape: _Shape) -> bytes:
        path = folder() / f"cuda-{self._code}-{hashlib.sha256(repr(shape).encode()).hexdigest()[:12]}.cubin"
        if path.exists():
            return path.read_bytes()
        machine_code = self._compiled(shape)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(machine_code)
            Path(file.name).replace(path)  # whole or not at all
        except OSError as error:
            warnings.warn(f"every process compiles the kernel anew: {error}", RuntimeWarning, stacklevel=2)
        return machine_code

    def _compiled(self, shape: _Shape) -> bytes:
        nvrtc = self._nvrtc
        program = self._ask(nvrtc.nvrtcCreateProgram(SOURCES[0].read_bytes(), SOURCES[0].name.encode(), 0, [], []))
        options = [
            *OPTIONS, f"--gpu-architecture={self._architecture}", f"-I{HERE}", f"-I{HERE / 'cuda'}",
            f"-DAMAML_THREADS={THREADS}", f"-DAMAML_NUMBER={shape.number}", f"-DAMAML_ACTIVATION={shape.activation}",
            f"-DAMAML_WIDTHS={','.join(map(str, shape.widths))}",
            f"-DAMAML_SUPPORT={shape.support}", f"-DAMAML_QUERY={shape.query}",
            f"-DAMAML_ADAPTIVE={shape.adaptive:d}", f"-DAMAML_CONTROLLED={shape.controlled:d}",
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
