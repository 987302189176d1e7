"""A trainer that trains nothing: it speaks worker.processes.protocol as worker.trainer does, at once and without torch.

What it "learns" is a chain of SHA-256 digests, one an iteration, so that a run which was interrupted and resumed ends in the
bits of an undisturbed one only if it went on from a checkpoint of its own. It stands for the real trainer where a test is
of the worker around it; the real one has tests of its own (tests/worker/test_trainer.py, tests/faults/test_bits.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from pathlib import Path

from amaml.spec import JobSpec
from worker.processes.failpoint import failpoint
from worker.processes.protocol import Checkpoint, ProgressReport, Ready, Run, Stopped, Succeeded
from worker.processes.wire import Wire, die_with_the_worker, versions
from worker.trainer import Orders

ITERATION_SECONDS = 0.002
SECONDS_BETWEEN_MESSAGES = 0.05


def main() -> None:
    die_with_the_worker()
    wire = Wire()
    orders = Orders(os.dup(0))
    ready = Ready(versions=versions(), devices=["cpu"])
    while True:
        wire.send(ready)
        run = orders.run()
        last = _train(run, orders, wire)
        orders.done()
        wire.send(last)


def _train(run: Run, orders: Orders, wire: Wire) -> Succeeded | Stopped:
    spec = JobSpec.model_validate_json(run.spec)
    iterations, every = spec.meta.iterations, spec.runtime.checkpoint_every
    iteration, digest = _start(run, spec)
    points: list[tuple[int, float]] = []
    told_at = float("-inf")
    uncommitted: Path | None = None

    def tell() -> None:
        wire.send(
            ProgressReport(
                phase="training", iteration=iteration, iterations=iterations, eta_seconds=None,
                metrics={"meta_loss": list(points)},
            )
        )  # fmt: skip
        points.clear()

    while iteration < iterations:
        time.sleep(ITERATION_SECONDS)
        iteration, digest = iteration + 1, hashlib.sha256(digest).digest()
        points.append((iteration, digest[0] / 256))
        if time.monotonic() - told_at > SECONDS_BETWEEN_MESSAGES:
            tell()
            told_at = time.monotonic()
        failpoint("trainer.reported")
        stop = orders.stop
        if iteration % every == 0 or (stop is not None and stop.checkpoint):
            while uncommitted is not None and uncommitted.exists():
                time.sleep(0.002)
            tell()
            uncommitted = Path(run.folder) / f"checkpoint-{iteration}"
            uncommitted.write_text(json.dumps([iteration, digest.hex()]))
            wire.send(Checkpoint(step=iteration, path=str(uncommitted)))
        if stop is not None:
            return Stopped(step=iteration)
    tell()
    return Succeeded(path=str(_save(run, digest)), parameters=len(digest), iteration=iterations)


def _start(run: Run, spec: JobSpec) -> tuple[int, bytes]:
    if run.checkpoint is None:  # as of a real run, the bits don't depend on when checkpoints are written
        return 0, hashlib.sha256(f"{spec.runtime.seed} {spec.meta.iterations}".encode()).digest()
    iteration, digest = json.loads(Path(run.checkpoint).read_text())
    return iteration, bytes.fromhex(digest)


def _save(run: Run, digest: bytes) -> Path:
    """A safetensors file with one tensor of bytes, and metadata as an initialization has them."""
    header = json.dumps(
        {
            "__metadata__": {"job_id": run.job_id, "tensors_sha256": hashlib.sha256(digest).hexdigest()},
            "digest": {"dtype": "U8", "shape": [len(digest)], "data_offsets": [0, len(digest)]},
        }
    ).encode()
    path = Path(run.folder) / "initialization.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + digest)
    return path


if __name__ == "__main__":
    main()
