"""The errors with which a run can fail, in addition to SolveError of a solve and DataError of the data."""

from __future__ import annotations

import torch

from amaml import memory
from amaml.spec import JobSpec


class Diverged(Exception):
    """A loss, a gradient or θ became infinite or NaN."""

    @classmethod
    def in_training(cls, iteration: int, iterations: int, what: str) -> Diverged:
        """The error of meta-training after `iteration` meta-iterations; `what` says which quantity diverged."""
        return cls(
            f"meta-training diverged after {iteration} of {iterations} meta-iterations ({what}): lower "
            "meta.optimizer.lr, trajectory.length or solver.step, set meta.clip, or leave solver.guard and method.adjoint to the "
            "solver (null)"
        )


class CertificateFailed(Exception):
    """Too many certificates in a row were above runtime.certify_limit."""


class TimedOut(Exception):
    """The run has used up runtime.max_seconds."""


class OutOfMemory(Exception):
    """A single task doesn't fit into the device's memory."""

    @classmethod
    def of_one_task(cls, error: Exception, what: str, spec: JobSpec, device: torch.device) -> OutOfMemory:
        """`error` says that there wasn't enough memory to compute `what`."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "memory that the process may have"
        whole, wanted = memory.total(device), memory.asked_for(error)
        much = "" if whole is None else f"{memory.in_words(whole)} of "
        last = "" if wanted is None else f", {wanted} was asked for last"
        precision = "" if spec.runtime.dtype == "float32" else "set runtime.dtype to float32, "
        return cls(
            f"{what} of a single task doesn't fit into the {much}{name}{last}: lower family.shots, family.queries or "
            f"the size of model, {precision}set method.adjoint.checkpoints to a small number where the adjoint has "
            "checkpoints, or run the job on a worker with more memory"
        )
