"""How a run can fail, beside the solves' own SolveError and the data's DataError."""

from __future__ import annotations


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
