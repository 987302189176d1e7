"""Random problems for `benchmarks.stress`, of kinds that are known to mislead solvers, each with an independent reference.

References share nothing with the engine: closed forms where there are any, autograd through a plain loop for fixed steps, SciPy's
DOP853 there and back for smooth flows, and central differences of the meta-loss for flows with kinks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.special import erf
from torch import Tensor, nn

import amaml
from benchmarks.workload import independent_gradient

FIXED = (amaml.Euler, amaml.Heun, amaml.RK4)
TASKS = 2
Tensors = dict[str, Tensor]
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class StressProblem:
    """Arguments of `meta_gradient`, and a reference for its result."""

    params: Any
    losses: tuple[Loss, Loss]
    tasks: Tensors
    question: dict[str, Any]
    reference: Callable[[int], Tensor | None]
    """A task's gradient [P] in float64; None where the meta-loss has none, or none that can be computed."""
    reference_error: float = 1e-9
    """Relative error of the reference."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The problem's description in the results."""


def drawn(number: int) -> StressProblem:
    """The problem with this number; the kinds alternate."""
    rng = np.random.default_rng([7, number])
    torch.manual_seed(number)
    kinds = list(KINDS)
    kind = kinds[number % len(kinds)]
    problem = KINDS[kind](rng)
    question = {name: repr(value) for name, value in problem.question.items() if not isinstance(value, Tensor)}
    problem.facts.update(kind=kind, **question)
    return problem


# What they have in common


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def pick(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


def an_adaptive_solver(rng: np.random.Generator, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    tolerance = float(10.0 ** -rng.integers(2, 7 if dtype is torch.float32 else 9))
    adjoint = pick(rng, amaml.Discrete(), amaml.Discrete(), amaml.Interpolated())
    return {"solver": pick(rng, amaml.Dopri5, amaml.Bosh3)(rtol=tolerance, atol=tolerance), "adjoint": adjoint}


def any_solver(rng: np.random.Generator, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    if rng.integers(2):
        return an_adaptive_solver(rng, dtype)
    return {"solver": pick(rng, *FIXED)(step=log_uniform(rng, 0.005, 1.0))}


def unrolled(loss: Callable[[Tensor, str], Tensor], theta: Tensor, length: float, solver: Any) -> Tensor:
    """The gradient [P] of a discrete map, by autograd through its steps."""
    count = max(1, round(length / solver.step))
    u = start = theta.detach().clone().requires_grad_()

    def slope(at: Tensor) -> Tensor:
        return -torch.autograd.grad(loss(at, "support"), at, create_graph=True)[0]

    for _ in range(count):
        u = step(solver, slope, u, length / count)
    return torch.autograd.grad(loss(u, "query"), start)[0]


def step(solver: Any, slope: Callable[[Tensor], Tensor], u: Tensor, h: float) -> Tensor:
    """One step of a fixed-step solver, as textbooks have it."""
    k1 = slope(u)
    if isinstance(solver, amaml.Euler):
        return u + h * k1
    if isinstance(solver, amaml.Heun):
        return u + h / 2 * (k1 + slope(u + h * k1))
    k2 = slope(u + h / 2 * k1)
    k3 = slope(u + h / 2 * k2)
    return u + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(u + h * k3))


def flat(named: Any, axes: int = 0) -> Tensor:
    """Named tensors with this many leading axes as one tensor [..., P], in their order; a flat tensor as it is."""
    return named if isinstance(named, Tensor) else torch.cat([v.flatten(axes) for v in named.values()], dim=axes)


# Networks


def of_network(net: nn.Module, tasks: Tensors, question: dict[str, Any]) -> StressProblem:
    """Regression by the network itself, called through PyTorch."""
    params = {name: value.detach().clone() for name, value in net.named_parameters()}
    exact = copy.deepcopy(net).double()

    def reference(task: int) -> Tensor:
        def loss(u: Tensor, rows: str) -> Tensor:
            parts = torch.split(u, [value.numel() for value in params.values()])
            named = {name: part.view(params[name].shape) for name, part in zip(params, parts, strict=True)}
            predicted = torch.func.functional_call(exact, named, (tasks[f"{rows}_x"][task].double(),))
            return 0.5 * (predicted - tasks[f"{rows}_y"][task].double()).square().mean()

        theta = flat(params).double()
        if isinstance(question["solver"], FIXED):
            return unrolled(loss, theta, question["length"], question["solver"])
        return independent_gradient(loss, theta, question["length"])

    return StressProblem(params, amaml.regression_losses(net), tasks, question, reference)


def rows(rng: np.random.Generator, inputs: int, outputs: int, scale: float, dtype: torch.dtype) -> Tensors:
    counts = {"support": int(rng.integers(2, 40)), "query": int(rng.integers(2, 40))}
    return {
        f"{of}_{name}": (scale * torch.randn(TASKS, count, size, dtype=torch.float64)).to(dtype)
        for of, count in counts.items()
        for name, size in (("x", inputs), ("y", outputs))
    }


def network(rng: np.random.Generator) -> StressProblem:
    """A network that is stiff because of the size of inputs and weights, which doesn't influence the chosen steps."""
    dtype = pick(rng, torch.float32, torch.float64)
    inputs, outputs = (int(rng.integers(1, 4)) for _ in range(2))
    hidden = [int(width) for width in rng.integers(1, 17, size=rng.integers(1, 4))]
    activation = pick(rng, "tanh", "sigmoid", "softplus", "relu")
    net = amaml.MLP(inputs, hidden, outputs, activation).to(dtype)
    solver = any_solver(rng, dtype)
    if activation == "relu":  # the kind "corners of relu" has adaptive solvers
        solver = {"solver": pick(rng, *FIXED)(step=log_uniform(rng, 0.005, 1.0))}
    question = {"length": float(rng.uniform(0.2, 3.0)), **solver}
    return of_network(net, rows(rng, inputs, outputs, log_uniform(rng, 0.3, 4.0), dtype), question)


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return found


def edited_network(rng: np.random.Generator) -> StressProblem:
    """An MLP that was edited after its construction."""
    dtype = pick(rng, torch.float32, torch.float64)
    net: Any = amaml.MLP(2, [6, 6], 1, pick(rng, "tanh", "sigmoid"))
    edit = pick(rng, "activation", "dropped", "appended", "hook", "tied")
    if edit == "activation":
        net[1] = pick(rng, nn.SiLU(), nn.Softplus(), nn.Tanh())
    elif edit == "dropped":
        net.pop(3)
    elif edit == "appended":
        net.append(nn.Tanh())
    elif edit == "hook":
        net.register_forward_pre_hook(_tripled)
    else:
        net = Tied()
    question = {"length": float(rng.uniform(0.2, 2.0)), **any_solver(rng, dtype)}
    problem = of_network(net.to(dtype), rows(rng, 2, 1, 1.0, dtype), question)
    problem.facts["edit"] = edit
    return problem


def _tripled(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (3 * inputs[0],)


# Quadratic support losses: closed forms


def of_quadratic(
    theta: Tensor, matrix: Tensor, rest: Tensor, question: dict[str, Any], *, loudness: float = 1.0, quiet: bool = False
) -> StressProblem:
    """Support loss ½(u−a)ᵀA(u−a), query loss |u−b|² + Σ u⁴/10 (both times `loudness`; nothing if `quiet`)."""
    tasks = {"A": matrix, "a": rest, "b": torch.randn(TASKS, len(theta), dtype=torch.float64)}

    def support(u: Tensor, task: Tensors) -> Tensor:
        away = u - task["a"]
        return 0.5 * away @ task["A"] @ away

    def query(u: Tensor, task: Tensors) -> Tensor:
        return (0.0 if quiet else loudness) * ((u - task["b"]).square().sum() + 0.1 * u.pow(4).sum())

    def reference(task: int) -> Tensor:
        one = {name: value[task] for name, value in tasks.items()}
        if isinstance(question["solver"], FIXED):

            def loss(u: Tensor, of: str) -> Tensor:
                return support(u, one) if of == "support" else query(u, one)

            return unrolled(loss, theta, question["length"], question["solver"])
        return _of_the_flow(theta, one, lambda u: torch.func.grad(query)(u, one), question)

    return StressProblem(theta, (support, query), tasks, question, reference)


def _of_the_flow(theta: Tensor, task: Tensors, slope: Callable[[Tensor], Tensor], question: dict[str, Any]) -> Tensor:
    proximal = question.get("proximal", 0.0)
    rates = question.get("rates", torch.ones_like(theta))
    in_query = proximal * question.get("proximal_in_query", False)
    root = rates.sqrt()
    # √α∘(A+ρ)∘√α is symmetric, so its exponential is exact to rounding at any stiffness.
    curvature = task["A"] + proximal * torch.eye(len(theta), dtype=torch.float64)
    eigenvalues, basis = torch.linalg.eigh(root[:, None] * curvature * root)
    pulled = torch.linalg.solve(curvature, proximal * torch.eye(len(theta), dtype=torch.float64))
    still = torch.linalg.solve(curvature, task["A"] @ task["a"] + proximal * theta)
    total = torch.zeros_like(theta)
    for time, weight in question.get("horizons") or [(question["length"], 1.0)]:
        decay = root[:, None] * (basis @ torch.diag(torch.exp(-time * eigenvalues)) @ basis.mT) / root
        u = still + decay @ (theta - still)
        away = in_query * (u - theta)
        moves = pulled + decay @ (torch.eye(len(theta), dtype=torch.float64) - pulled)
        total += weight * (moves.mT @ (slope(u) + away) - away)
    return total


def spectrum(size: int, largest: float, smallest: float) -> Tensor:
    """Symmetric matrices [TASKS, P, P] with eigenvalues spread evenly by their logarithms."""
    basis = torch.linalg.qr(torch.randn(TASKS, size, size, dtype=torch.float64)).Q
    return basis @ torch.diag(torch.logspace(math.log10(smallest), math.log10(largest), size).double()) @ basis.mT


def at_rest(rng: np.random.Generator) -> StressProblem:
    """The support data are fitted at the start, so u doesn't move and λ does."""
    size = int(rng.integers(2, 12))
    theta = torch.randn(size, dtype=torch.float64)
    question = {"length": log_uniform(rng, 0.5, 10.0), **an_adaptive_solver(rng)}
    return of_quadratic(theta, spectrum(size, log_uniform(rng, 0.5, 5.0), 0.1), theta.expand(TASKS, -1), question)


def stiff(rng: np.random.Generator) -> StressProblem:
    """λmax·T up to 3,000."""
    size = int(rng.integers(3, 12))
    length = log_uniform(rng, 0.2, 3.0)
    matrix = spectrum(size, log_uniform(rng, 10.0, 3000.0) / length, 0.1)
    question = {"length": length, **an_adaptive_solver(rng)}
    return of_quadratic(torch.randn(size, dtype=torch.float64), matrix, torch.randn(TASKS, size).double(), question)


def units(rng: np.random.Generator) -> StressProblem:
    """Losses of 1e-8 and of 1e8, parameters of very different sizes."""
    size = int(rng.integers(3, 8))
    sizes = torch.from_numpy(10.0 ** rng.uniform(-3, 1, size))
    matrix = spectrum(size, 3.0, 0.3) / sizes[:, None] / sizes
    question = {"length": log_uniform(rng, 0.2, 2.0), "rates": sizes.square(), **an_adaptive_solver(rng)}
    rest = sizes * torch.randn(TASKS, size, dtype=torch.float64)
    loudness = float(10.0 ** rng.integers(-8, 9))
    return of_quadratic(sizes * torch.randn(size, dtype=torch.float64), matrix, rest, question, loudness=loudness)


def pulled(rng: np.random.Generator) -> StressProblem:
    """Proximal terms, rates, several horizons whose weights nearly cancel."""
    size = int(rng.integers(2, 8))
    question = {
        "horizons": [(0.4, 1.0), (0.4 + log_uniform(rng, 1e-3, 1.0), -1.0)] if rng.integers(2) else [(1.0, 1.0)],
        "proximal": log_uniform(rng, 0.01, 10.0) if rng.integers(2) else 0.0,
        "proximal_in_query": bool(rng.integers(2)),
        "rates": torch.from_numpy(10.0 ** rng.uniform(-2, 1, size)),
        **an_adaptive_solver(rng),
    }
    matrix = spectrum(size, log_uniform(rng, 1.0, 20.0), 0.1)
    return of_quadratic(torch.randn(size, dtype=torch.float64), matrix, torch.randn(TASKS, size).double(), question)


def nothing(rng: np.random.Generator) -> StressProblem:
    """A constant query loss, whose gradient is 0."""
    theta = torch.randn(4, dtype=torch.float64)
    question = {"length": 1.0, **any_solver(rng)}
    return of_quadratic(theta, spectrum(4, 3.0, 0.3), torch.randn(TASKS, 4).double(), question, quiet=True)


# Curvature that changes on the way


def late_stiffness(rng: np.random.Generator) -> StressProblem:
    """A parameter moves at speed 1; when it passes a certain value, the curvature of another, which is at rest, rises."""
    place, width, height = float(rng.uniform(0.2, 1.2)), log_uniform(rng, 0.005, 0.3), log_uniform(rng, 3.0, 300.0)

    def curvature(s: Tensor) -> Tensor:
        return 1 + height * torch.sigmoid((s - place) / width)

    ends = np.logaddexp(0, (1.3 - place) / width) - np.logaddexp(0, -place / width)
    return _drifting(rng, curvature, 1.3 + height * width * float(ends))


def bump(rng: np.random.Generator) -> StressProblem:
    """The same, but the curvature rises and falls again."""
    place, width, height = float(rng.uniform(0.2, 1.1)), log_uniform(rng, 0.01, 0.3), log_uniform(rng, 3.0, 300.0)

    def curvature(s: Tensor) -> Tensor:
        return 1 + height * torch.exp(-((s - place) / width).square())

    area = height * width * math.sqrt(math.pi) / 2 * (erf((1.3 - place) / width) + erf(place / width))
    return _drifting(rng, curvature, 1.3 + float(area))


def _drifting(rng: np.random.Generator, curvature: Callable[[Tensor], Tensor], decay: float) -> StressProblem:
    others = torch.linspace(0.5, 3, int(rng.integers(1, 50)), dtype=torch.float64)

    def support(u: Tensor, _: Tensors) -> Tensor:
        return -u[0] + 0.5 * curvature(u[0]) * u[1].square() + 0.5 * (others * u[2:].square()).sum()

    def query(u: Tensor, _: Tensors) -> Tensor:
        return u[1]

    size = 2 + len(others)
    gradient = torch.zeros(size, dtype=torch.float64)
    gradient[1] = math.exp(-decay)
    theta, tasks = torch.zeros(size, dtype=torch.float64), {"": torch.zeros(TASKS, 1, dtype=torch.float64)}
    return StressProblem(theta, (support, query), tasks, {"length": 1.3, **an_adaptive_solver(rng)}, lambda _: gradient)


# Kinks


def a_bounded_solver(rng: np.random.Generator) -> dict[str, Any]:
    """Its steps shrink at every corner, the more the smaller the tolerance, so neither may be too small."""
    tolerance = float(10.0 ** -rng.integers(2, 5))
    solver = pick(rng, amaml.Dopri5, amaml.Bosh3)(rtol=tolerance, max_steps=3_000)
    return {"solver": solver, "adjoint": pick(rng, amaml.Discrete(), amaml.Interpolated())}


def absolute(rng: np.random.Generator) -> StressProblem:
    """Σ c|u|: every parameter moves to 0 at its own speed and stays there."""
    size = int(rng.integers(1, 6))
    theta, speeds = torch.randn(2, size, dtype=torch.float64)
    tasks = {"c": speeds.abs() * torch.ones(TASKS, 1, dtype=torch.float64)}
    question = {"length": float(rng.uniform(0.1, 2.0)), **a_bounded_solver(rng)}
    arrived = theta.abs() <= speeds.abs() * question["length"]
    return StressProblem(
        theta, (lambda u, task: (task["c"] * u.abs()).sum(), lambda u, _: u.sum()), tasks, question,
        lambda _: torch.where(arrived, 0.0, 1.0).double(),
    )  # fmt: skip


def hinge(rng: np.random.Generator) -> StressProblem:
    """A support vector machine with a plain hinge loss: the flow crosses corners and slides along some."""
    points = int(rng.integers(3, 12))
    tasks = {name: torch.randn(TASKS, points, 2, dtype=torch.float64) for name in ("x", "query_x")}

    def support(u: Tensor, task: Tensors) -> Tensor:
        return (1 - task["x"] @ u).relu().mean() + 0.05 * u.square().sum()

    def query(u: Tensor, task: Tensors) -> Tensor:
        return (task["query_x"] @ u - 1).square().mean()

    theta = torch.randn(2, dtype=torch.float64)
    question = {"length": float(rng.uniform(0.2, 2.0)), **a_bounded_solver(rng)}
    return _by_central_differences(theta, support, query, tasks, question)


def corners_of_relu(rng: np.random.Generator) -> StressProblem:
    """A small network of relu with an adaptive solver."""
    inputs = torch.randn(2, TASKS, int(rng.integers(2, 8)), 1, dtype=torch.float64)
    tasks = {"support": inputs[0], "query": inputs[1]}

    def loss(of: str) -> Loss:
        def value(u: Tensor, task: Tensors) -> Tensor:
            hidden = (task[of] * u[:3] + u[3:6]).relu()
            return 0.5 * (hidden @ u[6:9] - torch.sin(2 * task[of][:, 0])).square().mean()

        return value

    question = {"length": float(rng.uniform(0.2, 2.0)), **a_bounded_solver(rng)}
    theta = torch.randn(9, dtype=torch.float64)
    return _by_central_differences(theta, loss("support"), loss("query"), tasks, question)


def _by_central_differences(
    theta: Tensor, support: Loss, query: Loss, tasks: Tensors, question: dict[str, Any]
) -> StressProblem:
    """The flow's gradient by differences of J, which is solved by 2,000 steps of Heun for every unit of time. Corners leave
    errors of the size of a step, so the reference is good to a few per cent; where J itself has a corner or a jump within the
    differences' reach, those of two widths lie far apart, and there is none."""

    def reference(task: int) -> Tensor | None:
        one = {name: value[task] for name, value in tasks.items()}
        apart = torch.eye(len(theta), dtype=torch.float64)
        starts = torch.cat([theta + d * apart for d in (2e-3, -2e-3, 1e-3, -1e-3)])
        slope = torch.func.vmap(torch.func.grad(lambda u: -support(u, one)))
        count = math.ceil(2000 * question["length"])
        for _ in range(count):
            starts = step(amaml.Heun(), slope, starts, question["length"] / count)
        values = torch.func.vmap(lambda u: query(u, one))(starts).split(len(theta))
        wide, narrow = (values[0] - values[1]) / 4e-3, (values[2] - values[3]) / 2e-3
        return narrow if (wide - narrow).norm() < 0.02 * narrow.norm() else None

    return StressProblem(theta, (support, query), tasks, question, reference, reference_error=0.05)


KINDS: dict[str, Callable[[np.random.Generator], StressProblem]] = {
    "network": network,
    "edited network": edited_network,
    "at rest": at_rest,
    "late stiffness": late_stiffness,
    "bump": bump,
    "stiff": stiff,
    "units": units,
    "pulled": pulled,
    "nothing": nothing,
    "absolute": absolute,
    "hinge": hinge,
    "corners of relu": corners_of_relu,
}
