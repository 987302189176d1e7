"""How much memory a run uses beyond what its trainer held before: resident memory, or that of the CUDA device it uses.

The trainer is warm and runs many jobs, and each leaves a few megabytes behind. A total would thus say more of how many
jobs came before than of this one.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class PeakMemory:
    """`read` gives the peak since the last `reset`, beyond what was held when this object was made."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self.reset()
        self._start = self._peak()

    def reset(self) -> None:
        if self._cuda:
            import torch  # noqa: PLC0415 - the trainer has it imported

            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            from amaml.memory import return_to_system  # noqa: PLC0415 - it imports torch, as the trainer has done

            # What an earlier job, or an evaluation, has freed would count as this job's.
            return_to_system()
            _CLEAR.write_text(_RESET_PEAK)

    def read(self) -> int | None:
        """Bytes; None where the system doesn't tell."""
        peak = self._peak()
        return None if peak is None or self._start is None else max(0, peak - self._start)

    def _peak(self) -> int | None:
        if self._cuda:
            import torch  # noqa: PLC0415

            return int(torch.cuda.max_memory_allocated())
        if sys.platform != "linux":
            return None
        found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
        return 1024 * int(found[1]) if found else None
