"""Three hundred random problems, most of them stiff beyond what their solver was made for: is any gradient silently wrong?

Each is solved with its certificate. What comes back is either a failure code with its sentence, or a gradient, and every task's
is held against a reference with nothing of the engine in it: autograd through a plain loop for fixed steps, SciPy's DOP853
there and back for the flow. A gradient is silently wrong where it lies further from the reference than ten times
what its certificate admits (and rounding of the reference).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import amaml
from benchmarks.record import Run, arguments
from benchmarks.workload import independent_gradient, network_loss

PROBLEMS = 300
MARGIN, REFERENCE_ERROR = 10, 1e-9
FIXED = (amaml.Euler, amaml.Heun, amaml.RK4)


@dataclass(frozen=True)
class Problem:
    net: amaml.MLP
    params: dict[str, Tensor]
    tasks: dict[str, Tensor]
    length: float
    solver: Any

    def facts(self) -> dict[str, Any]:
        return {
            "widths": [layer.out_features for layer in self.net if isinstance(layer, torch.nn.Linear)],
            "activation": type(self.net[1]).__name__.lower(),
            "points": self.tasks["support_x"].shape[1],
            "dtype": str(self.tasks["support_x"].dtype).removeprefix("torch."),
            "length": self.length,
            "solver": repr(self.solver),
        }


def drawn(number: int) -> Problem:
    """The number'th problem. Stiffness comes from the size of inputs and weights; steps don't know about it."""
    rng = np.random.default_rng([7, number])
    torch.manual_seed(number)
    dtype = (torch.float32, torch.float64)[rng.integers(2)]
    inputs, outputs = (int(rng.integers(1, 4)) for _ in range(2))
    hidden = [int(width) for width in rng.integers(1, 17, size=rng.integers(1, 4))]
    activation = ("tanh", "sigmoid", "softplus", "relu")[rng.integers(4)]
    fixed = bool(rng.integers(2))
    if activation == "relu":  # Its flow has kinks, where no order of convergence holds; its steps are as good as any.
        fixed = True
    net = amaml.MLP(inputs, hidden, outputs, activation).to(dtype)
    scale = float(np.exp(rng.uniform(np.log(0.3), np.log(4.0))))
    points, queries = int(rng.integers(2, 40)), int(rng.integers(2, 40))
    tasks = {
        f"{rows}_{name}": (scale * torch.randn(3, count, size, dtype=torch.float64)).to(dtype)
        for rows, count in (("support", points), ("query", queries))
        for name, size in (("x", inputs), ("y", outputs))
    }
    tolerance = float(10.0 ** -rng.integers(2, 7 if dtype is torch.float32 else 9))
    solver = (
        FIXED[rng.integers(3)](step=float(np.exp(rng.uniform(np.log(0.005), np.log(1.0)))))
        if fixed
        else (amaml.Dopri5, amaml.Bosh3)[rng.integers(2)](rtol=tolerance, atol=tolerance)
    )
    params = {name: value.detach().clone() for name, value in net.named_parameters()}
    return Problem(net, params, tasks, float(rng.uniform(0.2, 3.0)), solver)


def reference(problem: Problem, task: int) -> Tensor:
    """The task's gradient [P] in float64 of what the solver aims at."""
    theta = flat(problem.params).double()
    points = {name: value[task].double() for name, value in problem.tasks.items()}
    loss = network_loss(problem.net, problem.params, points)
    if not isinstance(problem.solver, FIXED):
        return independent_gradient(loss, theta, problem.length)
    count = max(1, round(problem.length / problem.solver.step))
    u = start = theta.requires_grad_()

    def field(at: Tensor) -> Tensor:
        return -torch.autograd.grad(loss(at, "support"), at, create_graph=True)[0]

    for _ in range(count):
        u = _step(problem.solver, field, u, problem.length / count)
    return torch.autograd.grad(loss(u, "query"), start)[0]


def _step(solver: Any, field: Callable[[Tensor], Tensor], u: Tensor, h: float) -> Tensor:
    k1 = field(u)
    if isinstance(solver, amaml.Euler):
        return u + h * k1
    if isinstance(solver, amaml.Heun):
        return u + h / 2 * (k1 + field(u + h * k1))
    k2 = field(u + h / 2 * k1)
    k3 = field(u + h / 2 * k2)
    return u + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(u + h * k3))


def flat(named: dict[str, Tensor], axes: int = 0) -> Tensor:
    """[…, P], in the module's order."""
    return torch.cat([value.flatten(axes) for value in named.values()], dim=axes)


def judged(problem: Problem) -> dict[str, Any]:
    """What the engine answered, and per task how far beyond its certificate the answer lies."""
    try:
        answer = amaml.meta_gradient(
            problem.params, *amaml.regression_losses(problem.net), problem.tasks,
            length=problem.length, solver=problem.solver, certify=True,
        )  # fmt: skip
    except amaml.SolveError as error:
        return {"outcome": error.failures[0].code.name.lower(), "sentence": str(error)}
    assert answer.certificate is not None
    admitted = answer.certificate.error
    errors = []
    for task, gradient in enumerate(flat(answer.per_task, axes=1).double()):
        exact = reference(problem, task)
        errors.append(float((gradient - exact).norm() / exact.norm()) if exact.norm() else float(gradient.norm()))
    beyond = [error / (MARGIN * float(own) + REFERENCE_ERROR) for error, own in zip(errors, admitted, strict=True)]
    outcome = "within its certificate" if max(beyond) <= 1 else "silently wrong"
    return {
        "outcome": outcome,
        "largest_error": max(errors),
        "largest_certificate": float(admitted.max()),
        "beyond": max(beyond),
        "stiffness": float(answer.stats.lambda_max.max()) * problem.length,
    }


def main(run: Run) -> None:
    torch.set_num_threads(1)
    rows = []
    for number in range(8 if run.quick else PROBLEMS):
        problem = drawn(number)
        rows.append({"problem": number, **problem.facts(), **judged(problem)})
    outcomes = Counter(row["outcome"] for row in rows)
    run.write({"outcomes": dict(outcomes), "rows": rows})
    for outcome, count in outcomes.most_common():
        print(f"{outcome:26} {count}")


if __name__ == "__main__":
    main(arguments("stress"))
