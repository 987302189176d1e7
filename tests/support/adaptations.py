"""Initializations that nobody has learned, rows to adapt them with, and an adapter that is asked to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from amaml.registry import build_family, build_model
from amaml.run.initialization import metadata_of, write
from amaml.spec import JobSpec, MLPSpec, SinusoidSpec
from tests.support.waiting import CEILING_SECONDS
from worker.processes.parent import AdapterProcess, Gone
from worker.processes.protocol import Adapt, FromAdapter


def regression(path: Path, **changes: Any) -> Path:
    """An initialization for y = f(x), x a number."""
    spec = JobSpec(**{"family": SinusoidSpec(test_tasks=1), "model": MLPSpec(hidden=[16]), **changes})
    return written(path, spec, {})


def written(path: Path, spec: JobSpec, told: dict[str, str]) -> Path:
    """The file of a network at its random start, with that metadata beside the usual."""
    dtype = getattr(torch, spec.runtime.dtype)
    like = SinusoidSpec(test_tasks=1)
    family = build_family(like, seed=0, dtype=dtype, device=torch.device("cpu"), datasets={})
    metadata = {**metadata_of(spec, family, 3), **told}
    sizes = {name: int(metadata[name]) for name in ("in_features", "out_features")}
    model = build_model(spec.model, seed=0, **sizes).to(dtype)
    write(path, dict(model.named_parameters()), metadata)
    return path


def points(n: int, seed: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, generator=generator, dtype=torch.float64) * 4 - 2
    return {"x": x.tolist(), "y": x.sin().tolist()}


def answer(adapter: AdapterProcess, initialization: Path, folder: Path, request: dict[str, Any]) -> FromAdapter | Gone:
    """What the adapter says of the request; its files go into the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "request").write_text(json.dumps(request))
    assert adapter.wait_until_ready(CEILING_SECONDS) is not None
    adapter.send(
        Adapt(
            adaptation_id="1", request=str(folder / "request"), initialization=str(initialization), folder=str(folder),
            threads=1,
        )
    )  # fmt: skip
    said = adapter.receive(CEILING_SECONDS)
    assert said is not None
    return said
