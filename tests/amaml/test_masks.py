"""Tasks of different sizes, padded to one size and masked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import amaml
from amaml.models.losses import classification_losses
from tests.amaml.networks import mlp, plane, solved
from tests.amaml.problems import Tensors, flat


def padded(value: float) -> tuple[list[Tensors], Tensors]:
    """Tasks of 4, 7 and 9 points, and the same padded to 12 with `value`."""
    whole, sizes = plane(), (4, 7, 9)
    ragged = [{name: rows[task][:size] for name, rows in whole.items()} for task, size in enumerate(sizes)]
    masked = {name: rows.clone() for name, rows in whole.items()}
    mask = torch.arange(12) < torch.tensor(sizes)[:, None]
    for rows in masked.values():
        rows[~mask] = value
    return ragged, {**masked, "support_mask": mask, "query_mask": mask.double()}


@pytest.mark.parametrize("value", [0.0, 1e3, float("nan")])
@pytest.mark.parametrize("losses", [amaml.regression_losses, classification_losses])
def test_padded_points_count_nothing(value: float, losses: Any) -> None:
    net = mlp()
    ragged, masked = padded(value)
    answer = solved(net, masked, losses=losses)
    for task, own in enumerate(ragged):
        alone = solved(net, {name: rows[None] for name, rows in own.items()}, losses=losses)
        torch.testing.assert_close(flat(answer.per_task, 1)[task], flat(alone.grad), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(answer.loss[task], alone.loss[0], rtol=1e-11, atol=1e-13)


def test_masks_without_sense_are_refused() -> None:
    net = mlp()
    _, masked = padded(0.0)
    none = masked["support_mask"].clone()
    none[1] = False
    for mask, sentence in (
        (none, "leaves no point of task 1"),
        (masked["support_mask"][:, :5], r"must be one tensor \[tasks, points\] of shape \[3, 12\], got \[3, 5\]"),
        (masked["query_mask"] * 0.5, "other values than 0 and 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            solved(net, {**masked, "support_mask": mask})
    ragged = {name: [own[name] for own in padded(0.0)[0]] for name in plane()}
    with pytest.raises(ValueError, match=r"pad them to one length.*support_mask"):
        solved(net, ragged)
