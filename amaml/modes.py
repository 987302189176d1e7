"""The modes of PyTorch that a caller may have set around a call, and in which this library computes all the same."""

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
    """Without autocast on any device, without inference mode, and without recording for autograd.

    Autocast would solve in 16 bits what params ask for in 32 or 64, tensors made in inference mode can't take part in a
    derivative, and results are detached.
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
    """Scaled dot-product attention by plain matrix products, since the fused kernels have no second derivative.

    PyTorch keeps the choice for the whole process, so the first thread that enters makes it and the last one that leaves
    takes it back.
    """
    global _inside  # noqa: PLW0603 - counted for the whole process, as the choice is
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
