"""Where and in which precision a run computes, and its limits. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from amaml.spec.part import Part

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class RuntimeSpec(Part):
    seed: Seed = 0
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    checkpoint_every: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    certify_every: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Meta-iterations between certificates, each of which measures the meta-gradient's error by a finer solve."""
    certify_limit: Annotated[float, Field(gt=0, le=1_000)] = 0.25
    """The largest relative error that a certificate may find in any task; three larger ones in a row fail the run."""
    max_seconds: Annotated[float, Field(gt=0, le=31_536_000)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
