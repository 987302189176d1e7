"""Changes of the recipe of `benchmarks.recipe`, tried one at a time.

    python -m benchmarks.ideas [CELL …]

Every idea trains for half of the recipe's meta-iterations on that cell, with two seeds, and is scored only on validation tasks.
Rows in `results/ideas.json` are kept, so a run can be interrupted, and several may run on different cells.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from amaml.flow.derivatives import Derivatives
from amaml.flow.guard import PowerIteration
from amaml.flow.result import SolveError
from amaml.methods.amaml.gradient import MetaGradient, NotAgain, _batched
from amaml.methods.problem import GradientProblem, pose
from amaml.registry import Estimator
from amaml.run.outcome import Diverged
from amaml.run.training import Training
from amaml.spec import JobSpec
from benchmarks.paper import add
from benchmarks.recipe import CANDIDATES, PAPER, SEARCH_SEED, spec_of
from benchmarks.record import RESULTS

RECIPE = "reptile 30 %, rates 1e-2"
CELLS = ["cosmixture 50", "alpine 50"]
SEEDS = range(SEARCH_SEED, SEARCH_SEED + 2)
EVERY = 20
"""The number of meta-iterations between two estimates of the flow's stiffness."""

Document = dict[str, Any]
Wrapped = Callable[[Estimator, Training], Estimator]


def with_horizons(spec: Document) -> None:
    """The mean of the query losses at T/3, 2T/3 and T."""
    length = spec["trajectory"]["length"]
    spec["meta"]["phases"][0]["trajectory"] = {"length": length}
    spec["trajectory"] = {"horizons": [{"at": length * third / 3, "weight": 1 / 3} for third in (1, 2, 3)]}


def with_all_learned(spec: Document) -> None:
    """Learns T and ρ in addition to the rates; ρ starts at .01."""
    spec["meta"]["phases"][-1]["method"] = {"kind": "amaml", "learn": ["rates", "length", "proximal"], "proximal": 0.01}


def with_tasks(number: int) -> Callable[[Document], None]:
    def more(spec: Document) -> None:
        spec["family"]["train_tasks"] = number

    return more


def with_slower_rates(spec: Document) -> None:
    spec["meta"]["learn_lr"] = 3e-3


def pulled(kappa: float) -> Wrapped:
    """λ(0) + κ(θ − u(T)): adds a multiple of Reptile's direction to each exact gradient."""

    def wrapped(estimator: Estimator, _: Training) -> Estimator:
        def estimate(params: dict[str, Tensor], *arguments: Any, **given: Any) -> MetaGradient:
            found: MetaGradient = estimator(params, *arguments, **given)
            per_task = {
                name: own + kappa * (params[name] - found.adapted[name]) for name, own in found.per_task.items()
            }
            return with_gradients(found, per_task)

        return estimate

    return wrapped


def alternated(estimator: Estimator, training: Training) -> Estimator:
    """Every other update has Reptile's direction with the learned rates, for each task as long as its exact gradient."""

    def estimate(params: dict[str, Tensor], *arguments: Any, **given: Any) -> MetaGradient:
        found: MetaGradient = estimator(params, *arguments, **given)
        if training.iteration % 2 == 0:
            return found
        back = {name: params[name] - adapted for name, adapted in found.adapted.items()}
        scale = norms(found.per_task) / norms(back)
        return with_gradients(
            found, {name: own * scale.reshape(-1, *[1] * (own.ndim - 1)) for name, own in back.items()}
        )

    return estimate


def bootstrapped(steps: int, *, at_rates: bool = True) -> Wrapped:
    """λ(T) = u(T) − ũ, where ũ is the end of the flow after further steps on support and query set together, with the learned
    rates or with rates of 1 (Flennerhag et al., arXiv 2109.04504)."""

    def wrapped(_: Estimator, _training: Training) -> Estimator:
        def estimate(
            params: dict[str, Tensor], support: Any, query: Any, tasks: Any, *, wrt: Any = (), **given: Any
        ) -> MetaGradient:
            problem, layout = pose(params, support, query, tasks, **given)
            both = {f"support_{of}": torch.cat([tasks[f"support_{of}"], tasks[f"query_{of}"]], dim=1) for of in "xy"}
            onward = pose(params, support, query, {**tasks, **both}, **given)[0].derivatives
            bent = Bootstrapped(**vars(problem), onward=onward, steps=steps, at_rates=at_rates)
            answer = _batched(bent, set(wrt or ()))
            return MetaGradient(
                grad=layout.unflatten_gradient(answer.gradients.mean(dim=0)),
                per_task=layout.unflatten_gradient(answer.gradients),
                loss=answer.losses[:, -1], adapted=layout.unflatten(answer.adapted), stats=answer.stats,
                certificate=None, _layout=layout, _answer=answer, _again=NotAgain(),
            )  # fmt: skip

        return estimate

    return wrapped


@dataclass(frozen=True)
class Bootstrapped(GradientProblem):
    onward: Derivatives
    """The gradient of the loss on support and query set together."""
    steps: int
    at_rates: bool

    def judge(self, k: int, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss, _, direct = super().judge(k, u)
        rates, target = self.rates if self.at_rates and self.rates is not None else 1.0, u
        for _ in range(self.steps):
            target = target - self.solver.step * rates * self.onward.gradient(target)
        return loss, self.weights[k] * (u - target), direct


def capped(limit: float) -> Wrapped:
    """Lowers all rates if h·λmax of √α∇²L√α at the ends of the tasks' flows is above the limit."""

    def wrapped(estimator: Estimator, training: Training) -> Estimator:
        def estimate(params: dict[str, Tensor], support: Any, query: Any, tasks: Any, **given: Any) -> MetaGradient:
            found: MetaGradient = estimator(params, support, query, tasks, **given)
            if training.iteration % EVERY == 0:
                own = {name: given[name] for name in ("length", "solver", "rates")}
                problem, _ = pose(params, support, query, tasks, **own)
                ends = torch.cat([tensor.flatten(1) for tensor in found.adapted.values()], dim=1)
                product = problem.solver.step * PowerIteration(problem.flow(), ends).lambda_max.max()
                if product > limit:
                    with torch.no_grad():
                        for logarithm in training.state.learned.logarithms.values():
                            logarithm.add_(torch.log(limit / product))
            return found

        return estimate

    return wrapped


SLOW = [
    "bootstrapped by 5 steps",
    "bootstrapped by 5 steps at rates of 1",
]
"""The kernel can't solve these, so they are trained with the first seed only."""
IDEAS: dict[str, tuple[Callable[[Document], None] | None, Wrapped | None]] = {
    "the recipe": (None, None),
    "plus .03 (θ − u(T))": (None, pulled(0.03)),
    "plus .3 (θ − u(T))": (None, pulled(0.3)),
    "every other update Reptile's": (None, alternated),
    "horizons T/3, 2T/3, T": (with_horizons, None),
    "T and ρ learned too": (with_all_learned, None),
    "rates learned at 3e-3": (with_slower_rates, None),
    "rates capped at h·λmax = 1": (None, capped(1.0)),
    "rates capped at h·λmax = 2": (None, capped(2.0)),
    "300 training tasks": (with_tasks(300), None),
    "1,000 training tasks": (with_tasks(1000), None),
    "bootstrapped by 5 steps": (None, bootstrapped(5)),
    "bootstrapped by 5 steps at rates of 1": (None, bootstrapped(5, at_rates=False)),
}


def with_gradients(found: MetaGradient, per_task: dict[str, Tensor]) -> MetaGradient:
    return replace(found, per_task=per_task, grad={name: own.mean(dim=0) for name, own in per_task.items()})


def norms(per_task: dict[str, Tensor]) -> Tensor:
    """[B]."""
    return torch.stack([own.flatten(1).square().sum(dim=1) for own in per_task.values()]).sum(dim=0).sqrt()


def run(cell: str, idea: str, seed: int) -> dict[str, Any]:
    changed, wrapped = IDEAS[idea]
    rows = json.loads((RESULTS / "recipe.json").read_text())["results"]
    counts = next(
        row["iterations"] for row in rows if (row["cell"], row["candidate"], row["seed"]) == (cell, RECIPE, SEARCH_SEED)
    )
    document = spec_of(cell, CANDIDATES[RECIPE], seed, [count // 2 for count in counts]).model_dump(mode="json")
    document["method"] = None
    if changed is not None:
        changed(document)
    training = Training.start(JobSpec.model_validate_json(json.dumps(document)))
    if wrapped is not None:
        *before, last = training.setup.phases
        assert last.estimator is not None
        estimator = wrapped(last.estimator, training)
        training.setup = replace(training.setup, phases=(*before, replace(last, estimator=estimator)))
    began = time.process_time()
    scores = [report.metrics.get("nrmse_validation") for report in training]
    found = [score for score in scores if score is not None]
    return {
        "cell": cell, "idea": idea, "seed": seed, "iterations": training.iterations,
        "seconds": time.process_time() - began, "validation": min(found), "last": found[-1],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ideas")
    parser.add_argument("cells", nargs="*", choices=[[], *PAPER], help=f"{' and '.join(CELLS)} unless some are named")
    given = parser.parse_args()
    path = RESULTS / "ideas.json"
    for seed in SEEDS:
        for cell in given.cells or CELLS:
            for idea in IDEAS if seed == SEEDS[0] else [idea for idea in IDEAS if idea not in SLOW]:
                rows = json.loads(path.read_text())["results"] if path.exists() else []
                if any((row["cell"], row["idea"], row["seed"]) == (cell, idea, seed) for row in rows):
                    continue
                try:
                    row = run(cell, idea, seed)
                except (SolveError, Diverged) as error:
                    row = {"cell": cell, "idea": idea, "seed": seed, "failed": str(error)}
                add(path, [row], "ideas")
                print(row, flush=True)


if __name__ == "__main__":
    main()
