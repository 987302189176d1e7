"""How a run can fail, beside the solves' own SolveError and the data's DataError."""

from __future__ import annotations

import torch

from amaml import memory
from amaml.spec import JobSpec


class Diverged(Exception):
    """A loss, a gradient or θ became infinite or NaN."""

    @classmethod
    def in_training(cls, iteration: int, iterations: int, what: str) -> Diverged:
        """After so many of the meta-iterations; `what` did."""
        return cls(
            f"meta-training diverged after {iteration} of {iterations} meta-iterations ({what}): lower "
            "meta.optimizer.lr, trajectory.length or solver.step, set meta.clip, or leave solver.guard and method.adjoint to the "
            "solver (null)"
        )


class CertificateFailed(Exception):
    """The meta-gradients' certificates were over runtime.certify_limit too often in a row."""


class TimedOut(Exception):
    """The run has used up runtime.max_seconds."""


class OutOfMemory(Exception):
    """One task alone doesn't fit into the device's memory."""

    @classmethod
    def of_one_task(cls, error: Exception, what: str, spec: JobSpec, device: torch.device) -> OutOfMemory:
        """`what` was being computed when the error said that memory was refused."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "memory that the process may have"
        whole, wanted = memory.total(device), memory.asked_for(error)
        much = "" if whole is None else f"{memory.in_words(whole)} of "
        last = "" if wanted is None else f", {wanted} was asked for last"
        precision = "" if spec.runtime.dtype == "float32" else "set runtime.dtype to float32, "
        return cls(
            f"{what} of one task alone doesn't fit into the {much}{name}{last}: lower family.shots, family.queries or "
            f"the size of model, {precision}set method.adjoint.checkpoints to a small number where the adjoint has "
            "checkpoints, or run it on a worker with more memory"
        )
