"""The kernel on a GPU: compiled by NVRTC when a network's shape is first solved, and launched on PyTorch's current stream.

NVRTC and the driver are called through NVIDIA's bindings (cuda-bindings). Every CUDA build of PyTorch since 2.10 contains both.
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
"""Threads of a block."""
RESERVED = 2048
"""Bytes of a block's shared memory that the driver and the kernel's static variables use."""
CHUNKS = (128, 64, 32, 16, 8)
"""Sizes of a chunk, the points that are computed together; the first for which shared memory suffices is used."""
SHARE_OF_FREE = 0.5
"""The fraction of the device's free memory that the blocks of one launch may use. Further tasks are solved in another launch."""
_NUMBERS = {torch.float32: "float", torch.float64: "double"}


class CudaError(RuntimeError):
    """The driver or the compiler refused."""


class _Shape(NamedTuple):
    """The constants that the kernel is compiled for."""

    number: str
    activation: str
    widths: tuple[int, ...]
    support: int
    """Points in a chunk of the support set."""
    query: int
    """Points in a chunk of the query set."""
    adaptive: bool
    controlled: bool


def _lengths(c: KernelProblem) -> tuple[int, int]:
    """The points in a chunk of the support set and of the query set; all chunks of a set have the same length."""
    support, query = (-(-count // -(-count // c.chunk)) for count in (c.support_points, c.query_points))
    return support, query


def numbers_in_shared_memory(widths: Sequence[int], points: int) -> int:
    """How many numbers a block keeps in shared memory: NUMBERS of cuda/network.h."""

    def fours(count: int) -> int:
        return -(-count // 4) * 4

    stride = fours(points) if fours(points) // 4 % 2 else fours(points) + 4
    layers = [outputs * fours(inputs) + (inputs + 1) * fours(outputs) for inputs, outputs in pairwise(widths)]
    return stride * (2 * sum(widths) - widths[0] + widths[-1]) + 2 * sum(layers) + 8 * THREADS


class CudaKernel:
    """The kernel of one device."""

    def __init__(self, device: torch.device) -> None:
        """Raises ImportError where cuda-bindings isn't installed, CudaError where NVRTC can't be called."""
        self._driver: Any = importlib.import_module("cuda.bindings.driver")
        self._nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")
        self._device = device
        properties = torch.cuda.get_device_properties(device)
        self._architecture = f"sm_{properties.major}{properties.minor}"
        self._shared_at_most = int(getattr(properties, "shared_memory_per_block_optin"))  # noqa: B009 - PyTorch's stubs lack it
        digest = hashlib.sha256(repr((OPTIONS, self._architecture, self._ask(self._nvrtc.nvrtcVersion()))).encode())
        for source in SOURCES:
            digest.update(source.read_bytes())
        self._code = digest.hexdigest()[:12]
        self.name = f"cuda kernel {self._code}"
        """On equal devices, equal names mean equal bits."""
        self._functions: dict[_Shape, tuple[Any, Any]] = {}
        self._needs: dict[tuple[Any, ...], int] = {}

    def fits(self, c: KernelProblem, dtype: torch.dtype, widths: Sequence[int], steps: int) -> bool:
        """Whether a block fits into shared memory; sets the length of chunks."""
        for chunk in CHUNKS:
            c.chunk = chunk
            support, query = _lengths(c)
            if (
                numbers_in_shared_memory(widths, max(support, query)) * dtype.itemsize + RESERVED
                <= self._shared_at_most
            ):
                return True
        return False

    def run(self, c: KernelProblem, dtype: torch.dtype, widths: Sequence[int], steps: int) -> None:
        """Solves the problem, whose pointers are to device memory, with one block for each task, on the current stream. `steps`
        is the number of fixed steps, 0 for an adaptive solver."""
        shape = _Shape(
            _NUMBERS[dtype],
            ACTIVATIONS[c.activation].title(),
            tuple(widths),
            *_lengths(c),
            bool(c.adaptive),
            bool(c.controlled),
        )
        solve, measure = self._functions_for(shape)
        bytes_each = self._needed(c, shape, steps, measure)
        shared = numbers_in_shared_memory(widths, max(shape.support, shape.query)) * dtype.itemsize
        at_once = self._at_once(c.batch, bytes_each)
        workspace = torch.empty(at_once * bytes_each, dtype=torch.uint8, device=self._device)
        for first in range(0, c.batch, at_once):
            blocks = min(at_once, c.batch - first)
            arguments = [ctypes.c_void_p(workspace.data_ptr()), ctypes.c_int64(bytes_each), ctypes.c_int64(first)]
            self._launch(solve, blocks, THREADS, shared, [c, *arguments])

    def _at_once(self, batch: int, bytes_each: int) -> int:
        """How many tasks are solved in one launch. Free memory is what the driver has and what PyTorch's allocator holds
        unused."""
        if batch * bytes_each <= 1 << 26:
            return batch
        free, _ = torch.cuda.mem_get_info(self._device)
        free += torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return max(1, min(batch, int(SHARE_OF_FREE * free) // bytes_each))

    def _needed(self, c: KernelProblem, shape: _Shape, steps: int, measure: Any) -> int:
        """Bytes of global memory that a block uses. The kernel itself counts them, once for each shape."""
        key = (shape, steps, bool(c.rates), c.sizes_and_switches())
        if key not in self._needs:
            found = torch.empty((), dtype=torch.int64, device=self._device)
            self._launch(measure, 1, 1, 0, [c, ctypes.c_void_p(found.data_ptr())])
            self._needs[key] = int(found)
        return self._needs[key]

    def _launch(self, function: Any, blocks: int, threads: int, shared: int, arguments: Sequence[Any]) -> None:
        places = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        stream = torch.cuda.current_stream(self._device).cuda_stream
        with torch.cuda.device(self._device):
            launched = self._driver.cuLaunchKernel(
                function, blocks, 1, 1, threads, 1, 1, shared, stream, ctypes.addressof(places), 0
            )
        self._ask(launched)

    def _functions_for(self, shape: _Shape) -> tuple[Any, Any]:
        """The compiled functions that solve and that count the memory of a block."""
        if shape not in self._functions:
            driver = self._driver
            with torch.cuda.device(self._device):
                module = self._ask(driver.cuModuleLoadData(self._machine_code(shape)))
            solve = self._ask(driver.cuModuleGetFunction(module, b"amaml_solve"))
            most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._ask(driver.cuFuncSetAttribute(solve, most, self._shared_at_most - RESERVED))
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
            warnings.warn(
                f"the compiled kernel couldn't be cached, so every process compiles it again: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
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
        """The values that a call of the bindings returned after its status. Raises CudaError for a status other than success."""
        status, *values = answer
        if status != 0:
            raise CudaError(f"{status!r}")
        return values[0] if len(values) == 1 else tuple(values)


@functools.cache
def cuda_kernel(device: torch.device) -> CudaKernel | None:
    """The kernel of a device; None where solves use the batched path."""
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
