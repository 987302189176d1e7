"""Other implementations on the same problem: every peer takes a Work and returns the mean meta-gradient [P].

The unrolled ones compute the exact gradient of N explicit Euler steps of .01 through a graph of the whole trajectory.
`authors` is the algorithm of the paper's released code, written from its description. The packages are used through
their public calls, and are imported only where they are called.
"""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from types import TracebackType

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import linear, mse_loss

from benchmarks.workload import HERE, NET, STEP, Work, flat

Peer = Callable[[Work], Tensor]
LAYERS = list(pairwise(NET.widths))
SHAPES = [shape for inputs, outputs in LAYERS for shape in ((outputs, inputs), (outputs,))]
SIZES = [outputs * inputs if len(shape) == 2 else outputs
         for inputs, outputs in LAYERS for shape in ((outputs, inputs), (outputs,))]  # fmt: skip


def network(params: Sequence[Tensor], x: Tensor) -> Tensor:
    """The MLP with as few calls of PyTorch as possible."""
    for index in range(0, len(params), 2):
        x = linear(x, params[index], params[index + 1])
        if index + 2 < len(params):
            x = torch.tanh(x)
    return x


def loss(params: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * mse_loss(network(params, x), y)


def unpacked(u: Tensor) -> list[Tensor]:
    """[P] as the network's tensors."""
    return [part.view(shape) for part, shape in zip(torch.split(u, SIZES), SHAPES, strict=True)]


def _tasks(work: Work) -> list[dict[str, Tensor]]:
    return [{name: value[index] for name, value in work.tasks.items()} for index in range(work.batch)]


def _steps(work: Work) -> int:
    return round(work.length / STEP)


def _mean_over_tasks(work: Work, gradient: Callable[[list[Tensor], dict[str, Tensor]], Sequence[Tensor]]) -> Tensor:
    theta = [value.clone().requires_grad_() for value in work.params.values()]
    total = torch.zeros_like(flat(work.params))
    for task in _tasks(work):
        total += torch.cat([part.reshape(-1) for part in gradient(theta, task)])
    return total / work.batch


# ------------------------------------------------------------------------------------- graph of the whole trajectory


def create_graph(work: Work) -> Tensor:
    """PyTorch alone: every step with create_graph=True, then backward."""

    def gradient(theta: list[Tensor], task: dict[str, Tensor]) -> Sequence[Tensor]:
        params = theta
        for _ in range(_steps(work)):
            slopes = torch.autograd.grad(loss(params, task["support_x"], task["support_y"]), params, create_graph=True)
            params = [value - STEP * slope for value, slope in zip(params, slopes, strict=True)]
        return torch.autograd.grad(loss(params, task["query_x"], task["query_y"]), theta)

    return _mean_over_tasks(work, gradient)


def first_order(work: Work) -> Tensor:
    """FOMAML as it is usually written: PyTorch alone, one task at a time, no graph of the steps."""

    def gradient(theta: list[Tensor], task: dict[str, Tensor]) -> Sequence[Tensor]:
        params = theta
        for _ in range(_steps(work)):
            slopes = torch.autograd.grad(loss(params, task["support_x"], task["support_y"]), params)
            params = [
                (value - STEP * slope).detach().requires_grad_() for value, slope in zip(params, slopes, strict=True)
            ]
        return torch.autograd.grad(loss(params, task["query_x"], task["query_y"]), params)

    return _mean_over_tasks(work, gradient)


def vmapped(work: Work) -> Tensor:
    """torch.func: the unrolled loop under vmap, all tasks in one graph."""

    def unrolled(theta: Tensor, x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        u = theta
        for _ in range(_steps(work)):
            u = u - STEP * grad(lambda v: loss(unpacked(v), x, y))(u)
        return loss(unpacked(u), query_x, query_y)

    keys = ("support_x", "support_y", "query_x", "query_y")
    per_task: Tensor = vmap(grad(unrolled), in_dims=(None, 0, 0, 0, 0))(
        flat(work.params), *(work.tasks[key] for key in keys)
    )
    return per_task.mean(dim=0)


def higher(work: Work) -> Tensor:
    """The package higher: innerloop_ctx around a module and SGD."""
    import higher as package  # noqa: PLC0415 - an optional peer

    net = _module(work)
    for task in _tasks(work):
        optimizer = torch.optim.SGD(net.parameters(), lr=STEP)
        with package.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (inner, inner_optimizer):
            for _ in range(_steps(work)):
                inner_optimizer.step(0.5 * mse_loss(inner(task["support_x"]), task["support_y"]))
            (0.5 * mse_loss(inner(task["query_x"]), task["query_y"])).backward()
    return _collected(net, work)


def torchopt(work: Work) -> Tensor:
    """The package TorchOpt: MetaSGD on a module."""
    import torchopt as package  # noqa: PLC0415 - an optional peer

    net = _module(work)
    theta = list(net.parameters())
    optimizer = package.MetaSGD(net, lr=STEP)
    start = package.extract_state_dict(net, by="reference", detach_buffers=True)
    start_of_optimizer = package.extract_state_dict(optimizer, by="reference")
    total = torch.zeros_like(flat(work.params))
    for task in _tasks(work):
        for _ in range(_steps(work)):
            optimizer.step(0.5 * mse_loss(net(task["support_x"]), task["support_y"]))
        gradient = torch.autograd.grad(0.5 * mse_loss(net(task["query_x"]), task["query_y"]), theta)
        total += torch.cat([part.reshape(-1) for part in gradient])
        package.recover_state_dict(net, start)
        package.recover_state_dict(optimizer, start_of_optimizer)
    return total / work.batch


def _module(work: Work) -> torch.nn.Module:
    layers: list[torch.nn.Module] = []
    for inputs, outputs in LAYERS:
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.Tanh()]
    net = torch.nn.Sequential(*layers[:-1])
    net.load_state_dict(work.params)
    return net


def _collected(net: torch.nn.Module, work: Work) -> Tensor:
    return flat({name: value.grad for name, value in net.named_parameters() if value.grad is not None}) / work.batch


# ------------------------------------------------------------------------------------------------- stored trajectory


def authors(work: Work) -> Tensor:
    """One task at a time: RK4 forward at fixed .01, all states stored; then λ ← λ − h ∇²L(u_k) λ for k = N … 0, which is one step
    more than the trajectory has."""

    def gradient(theta: list[Tensor], task: dict[str, Tensor]) -> Sequence[Tensor]:
        def slope(u: Tensor) -> Tensor:
            u = u.detach().requires_grad_()
            return -torch.autograd.grad(loss(unpacked(u), task["support_x"], task["support_y"]), u)[0]

        u = torch.cat([value.detach().reshape(-1) for value in theta])
        states = [u]
        for _ in range(_steps(work)):
            k1 = slope(u)
            k2 = slope(u + STEP / 2 * k1)
            k3 = slope(u + STEP / 2 * k2)
            k4 = slope(u + STEP * k3)
            u = u + STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            states.append(u)
        end = u.requires_grad_()
        adjoint = torch.autograd.grad(loss(unpacked(end), task["query_x"], task["query_y"]), end)[0]
        for state in reversed(states):
            at = state.detach().requires_grad_()
            force = torch.autograd.grad(
                loss(unpacked(at), task["support_x"], task["support_y"]), at, create_graph=True
            )[0]
            adjoint = adjoint - STEP * torch.autograd.grad(force, at, adjoint)[0]
        return [adjoint]

    return _mean_over_tasks(work, gradient)


# ------------------------------------------------------------------------------------------------ general ODE solvers


class BudgetSpent(Exception):
    """An ODE solver didn't end within its budget of evaluations."""


def _batched_field(work: Work, budget: int) -> Callable[..., Tensor]:
    """−∇L_sup of all tasks [B, P]; raises BudgetSpent after `budget` calls."""
    calls = 0

    def field(_t: Tensor, u: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > budget:
            raise BudgetSpent(f"more than {budget} evaluations of the field")
        slopes: Tensor = vmap(grad(lambda v, x, y: loss(unpacked(v), x, y)))(
            u.view(work.batch, -1), work.tasks["support_x"], work.tasks["support_y"]
        )
        return -slopes.view_as(u)

    return field


def _judged(work: Work, start: Tensor, end: Tensor) -> Tensor:
    """dJ/dθ by the graph from the start [B, P] to the end [B, P]."""
    slopes = vmap(grad(lambda v, x, y: loss(unpacked(v), x, y)))(
        end.detach(), work.tasks["query_x"], work.tasks["query_y"]
    )
    return torch.autograd.grad(end, start, slopes)[0].mean(dim=0)


def _start(work: Work) -> Tensor:
    return flat(work.params).expand(work.batch, -1).clone().requires_grad_()


def torchdiffeq(work: Work, tol: float, budget: int = 20_000) -> Tensor:
    """odeint_adjoint, dopri5: u re-integrated backwards, one step size for the whole batch. Raises BudgetSpent."""
    from torchdiffeq import odeint_adjoint  # noqa: PLC0415

    start = _start(work)
    times = torch.tensor([0.0, work.length], dtype=start.dtype)
    ends = odeint_adjoint(
        _batched_field(work, budget), start, times, rtol=tol, atol=tol, method="dopri5", adjoint_params=()
    )
    return _judged(work, start, ends[-1])


def torchode(work: Work, tol: float, budget: int = 20_000) -> Tensor:
    """The package torchode: dopri5 with a step size for each task, backpropagation through the solver. Raises BudgetSpent."""
    import torchode as package  # noqa: PLC0415 - an optional peer

    start = _start(work)
    term = package.ODETerm(_batched_field(work, budget))
    solver = package.AutoDiffAdjoint(
        package.Dopri5(term=term), package.IntegralController(atol=tol, rtol=tol, term=term)
    )
    ones = torch.ones(work.batch, dtype=start.dtype)
    problem = package.InitialValueProblem(y0=start, t_start=0 * ones, t_end=work.length * ones)
    return _judged(work, start, solver.solve(problem).ys[:, -1])


# ------------------------------------------------------------------------------------------------------------- JAX


class JaxPeer:
    """JAX in a separate process and environment (`benchmarks/.venv-jax`), one compiled function: diffrax's
    RecursiveCheckpointAdjoint at a tolerance, or a scan of Euler steps. It's compiled before the constructor returns."""

    PYTHON = HERE / ".venv-jax" / "bin" / "python"

    def __init__(self, work: Work, tol: float | None = None) -> None:
        """`tol=None`: Euler."""
        self._process = subprocess.Popen(
            [str(self.PYTHON), str(HERE / "jax_peer.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        memory = io.BytesIO()
        np.savez(memory, theta=flat(work.params).numpy(), **{key: value.numpy() for key, value in work.tasks.items()})
        setting = {"length": work.length, "step": STEP, "tol": tol, "sizes": SIZES, "shapes": SHAPES,
                   "bytes": len(memory.getvalue())}  # fmt: skip
        self._send(json.dumps(setting).encode() + b"\n" + memory.getvalue())
        self.compile_seconds = float(self._answer()["seconds"])
        self.versions: dict[str, str] = self._answer()

    def __call__(self, _work: Work | None = None) -> Tensor:
        """One run; its own time is in `seconds`."""
        self._send(b"run\n")
        answer = self._answer()
        self.seconds = float(answer["seconds"])
        return torch.tensor(answer["gradient"], dtype=torch.float64)

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(message)
        self._process.stdin.flush()

    def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the JAX process ended with status {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> JaxPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.wait(timeout=30)


GRAPH_BASED: dict[str, Peer] = {"create_graph": create_graph, "higher": higher, "torchopt": torchopt}
"""A graph of the trajectory a task at a time: what the bars are measured against."""
