"""Why a queued job waits for something other than a free worker: words for programs, and the sentences that go with them."""

from __future__ import annotations

from typing import Final

PENDING: Final = "dataset_pending"
"""Its data set hasn't been checked yet."""
PENDING_DETAIL: Final = "It starts when its data set has been checked."
TURN: Final = "study_turn"
"""Its study holds it back."""
TURN_DETAIL: Final = "It starts when another job of its study has ended: the study runs no more at once."
NO_CUDA_WORKER: Final = "no_cuda_worker"
NO_SUCH_GPU: Final = "no_such_gpu"
