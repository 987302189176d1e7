"""How well users that the job never saw are learned from its initialization, compared with a random start.

    python examples/adapt_unseen.py INITIALIZATION RATINGS

The network is rebuilt from the safetensors file alone. The unseen users come from the ratings file that the job used: each is
adapted on 10 ratings and scored on 15 others. The exit status is 0 only if the learned start is better.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import amaml
from amaml.registry import build_family, build_model


def main(initialization: Path, ratings: Path) -> int:
    torch.set_num_threads(1)  # tensors this small gain nothing from a second thread
    model = amaml.LearnedModel.read(initialization)
    learned, spec = model.module, model.spec
    parameters = sum(parameter.numel() for parameter in learned.parameters())
    print(f"rebuilt from {initialization.name} alone: {spec.model.kind} with {parameters} parameters")

    family = build_family(
        spec.family,
        seed=spec.runtime.seed,
        dtype=torch.float32,
        device=torch.device("cpu"),
        datasets={str(spec.family.dataset): ratings},
    )
    users = family.evaluation_batch("test", spec.evaluation.tasks)
    random = amaml.load(initialization)  # the same network, to get the weights from which the job's training began
    random.load_state_dict(
        build_model(
            spec.model, in_features=family.in_features, out_features=family.out_features, seed=spec.runtime.seed
        ).state_dict()
    )

    ways = {
        f"gradient flow to T = {spec.trajectory.length:g}": {"by": "flow"},
        "30 epochs of Adam": {"by": "finetune", "epochs": 30},
    }
    count = len(users["support_x"])
    print(f"nRMSE on held-out ratings of {count} unseen users (mean ± standard error; 1 = one mean for everybody)")
    print(f"  {'adapted by':<24} {'random start':>15} {'learned start':>15} {'better by':>10} {'users better off':>17}")
    better = True
    for name, way in ways.items():
        before, after = scores(random, users, way), scores(learned, users, way)
        gain = 1 - statistics.fmean(after) / statistics.fmean(before)
        winners = sum(a < b for a, b in zip(after, before, strict=True)) / count
        print(f"  {name:<24} {shown(before):>15} {shown(after):>15} {gain:>10.1%} {winners:>17.0%}")
        better = better and gain > 0
    if not better:
        print("the learned start is no better than a random one")
    return 0 if better else 1


def scores(start: nn.Module, users: dict[str, Tensor], way: dict[str, object]) -> list[float]:
    """Each user's nRMSE: root mean square error on held-out ratings, in units standardised on training users."""
    found = []
    for x, y, held_out_x, held_out_y in zip(
        *(users[name] for name in ("support_x", "support_y", "query_x", "query_y")), strict=True
    ):
        model = amaml.adapt(start, x, y, **way)
        with torch.no_grad():
            found.append((model(held_out_x) - held_out_y).square().mean().sqrt().item())
    return found


def shown(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
