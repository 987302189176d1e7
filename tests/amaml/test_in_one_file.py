"""docs/amaml_in_one_file.py computes the same as the library."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch.func import vmap

import amaml

FILE = Path(__file__).parents[2] / "docs" / "amaml_in_one_file.py"


@pytest.fixture
def one() -> dict:
    torch.manual_seed(0)
    return runpy.run_path(str(FILE), run_name="one")


def test_it_gives_the_library_s_derivatives(one):
    theta = one["start"]().double()
    rates = torch.rand(len(theta), dtype=torch.float64) + 0.5
    points = [tuple(tensor.double() for tensor in pair) for pair in one["sinusoids"](4)]
    by_theta, by_rates, losses = vmap(one["meta_gradient"], in_dims=(None, None, 0, 0))(theta, rates, *points)
    tasks = dict(zip(("support_x", "support_y", "query_x", "query_y"), (*points[0], *points[1]), strict=True))
    found = amaml.meta_gradient(
        theta,
        lambda u, task: one["loss"](u, (task["support_x"], task["support_y"])),
        lambda u, task: one["loss"](u, (task["query_x"], task["query_y"])),
        tasks,
        length=one["LENGTH"],
        solver=amaml.Euler(step=one["STEP"], guard=False),
        rates=rates,
    )
    torch.testing.assert_close(by_theta, found.per_task, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(by_rates, found.by_task("rates"), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(losses, found.loss, rtol=1e-12, atol=0)


def test_it_learns(one):
    before = one["error_on_unseen"](one["start"](), torch.ones(1))
    assert one["error_on_unseen"](*one["trained"](20)) < 0.9 * before


def test_it_is_short():
    assert len(FILE.read_text().splitlines()) <= 120
