"""Contexts that make this library's computations independent of the modes of PyTorch that a caller has set."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_lock = threading.Lock()
_inside = 0
_choice = ExitStack()


@contextmanager
def plain_modes() -> Iterator[None]:
    """Switches off autocast on every device, inference mode, and recording for autograd.

    Autocast would compute in 16 bits although params have 32 or 64, and tensors made in inference mode can't be differentiated.
    Results of this library are detached, so autograd need not record.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    with ExitStack() as modes:
        for kind in {"cpu", "cpu" if device is None else device.type}:
            modes.enter_context(torch.autocast(kind, enabled=False))
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.no_grad())
        yield


@contextmanager
def attention_by_products() -> Iterator[None]:
    """Computes scaled dot-product attention by plain matrix products, since the fused kernels have no second derivative.

    PyTorch keeps this choice for the whole process, so the first thread that enters makes it, and the last one that leaves
    reverts it.
    """
    global _inside  # noqa: PLW0603 - the choice is the whole process's, so this count is too
    with _lock:
        if not _inside:
            _choice.enter_context(sdpa_kernel(SDPBackend.MATH))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _choice.close()
