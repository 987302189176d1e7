"""Adjoint MAML (Li et al., arXiv 2110.08432) in one file, to be read first. It runs for half a minute.

A family has many tasks. A task is to learn one function y(x) from a few *support* points; its *query* points judge what was
learned. Meta-learning looks for one start θ of a network from which training on any task's support points ends well:

    J(θ) = mean over tasks of L_query(u(T)),     du/dt = −α ∘ ∇L_support(u),     u(0) = θ.

The second equation, the gradient flow, is what gradient descent follows as its step h becomes small; with Euler steps it *is*
gradient descent. α is a rate for every parameter. The gradient of J needs no graph of the training: the adjoint
λ(t) = dL_query(u(T))/du(t) obeys a linear equation, which is solved backwards from T to 0 along the states u(t):

    λ(T) = ∇L_query(u(T)),     dλ/dt = ∇²L_support(u(t)) (α ∘ λ),     dJ/dθ = mean λ(0),     dJ/dα = −mean ∫ ∇L_support(u) ∘ λ dt.

The library does the same for any model, loss and solver, for adaptive steps with error control on λ, and in compiled code.
"""

from __future__ import annotations

import math
from statistics import median

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vjp, vmap

SIZES = [(1, 40), (40, 40), (40, 1)]
LENGTH, STEP = 1.0, 0.05
Points = tuple[Tensor, Tensor]


def network(theta: Tensor, x: Tensor) -> Tensor:
    """A multilayer perceptron with tanh, of the flat parameters θ [P], at the inputs x [n, 1]."""
    for layer, (fan_in, fan_out) in enumerate(SIZES):
        weight, bias, theta = theta.split([fan_in * fan_out, fan_out, len(theta) - (fan_in + 1) * fan_out])
        x = x @ weight.reshape(fan_in, fan_out) + bias
        x = x if layer == len(SIZES) - 1 else x.tanh()
    return x


def loss(theta: Tensor, points: Points) -> Tensor:
    return (network(theta, points[0]) - points[1]).square().mean()


def flow(theta: Tensor, rates: Tensor, support: Points, steps: int, h: float) -> list[Tensor]:
    """The states u_0 … u_steps of gradient descent, Euler's method for the gradient flow."""
    states = [theta]
    for _ in range(steps):
        states.append(states[-1] - h * rates * grad(loss)(states[-1], support))
    return states


def meta_gradient(theta: Tensor, rates: Tensor, support: Points, query: Points) -> tuple[Tensor, Tensor, Tensor]:
    """One task's dJ/dθ, dJ/dα and query loss, exactly those of the N steps, with about 2√N states in memory: the forward pass
    keeps the first state of every interval of √N steps, and the backward pass recomputes the other states of one interval at a
    time."""
    n = round(LENGTH / STEP)
    h, interval = LENGTH / n, math.isqrt(n)
    starts, u = [], theta
    for first in range(0, n, interval):
        starts.append((first, u))
        u = flow(u, rates, support, min(interval, n - first), h)[-1]
    cotangent, query_loss = grad_and_value(loss)(u, query)
    by_rates = torch.zeros_like(theta)
    for first, start in reversed(starts):
        for u in reversed(flow(start, rates, support, min(interval, n - first) - 1, h)):
            # The Hessian is symmetric: its product with a vector is the gradient's vector–Jacobian product.
            slope, pull = vjp(lambda at: grad(loss)(at, support), u)
            by_rates = by_rates - h * slope * cotangent
            cotangent = cotangent - h * pull(rates * cotangent)[0]
    return cotangent, by_rates, query_loss


def sinusoids(tasks: int, shots: int = 10, queries: int = 50) -> tuple[Points, Points]:
    """Support and query points of random tasks y = a sin(x − φ) (Finn et al. 2017), with x and y divided by their standard
    deviations; each is [tasks, n, 1]."""
    amplitude, phase = 0.1 + 4.9 * torch.rand(tasks, 1, 1), math.pi * torch.rand(tasks, 1, 1)
    xs = [10 * torch.rand(tasks, points, 1) - 5 for points in (shots, queries)]
    support, query = [(x / 2.9, amplitude * (x - phase).sin() / 2.1) for x in xs]
    return support, query


def start() -> Tensor:
    """Random weights, biases of 0."""
    layers = [(torch.randn(fan_in * fan_out) / fan_in**0.5, torch.zeros(fan_out)) for fan_in, fan_out in SIZES]
    return torch.cat([tensor for layer in layers for tensor in layer])


def trained(iterations: int) -> tuple[Tensor, Tensor]:
    """θ and α after `iterations` steps of Adam. A few tasks have far longer gradients than the others and would determine Adam's
    steps alone, so each gradient is clipped at the median length of the last thousand."""
    theta, log_rates, lengths = start(), torch.zeros_like(start()), list[float]()
    adam = torch.optim.Adam([theta, log_rates], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    for _ in range(iterations):
        rates = log_rates.exp()
        by_theta, by_rates, _ = vmap(meta_gradient, in_dims=(None, None, 0, 0))(theta, rates, *sinusoids(5))
        lengths = [*lengths, *by_theta.norm(dim=1).tolist()][-1000:]
        cut = (median(lengths) / by_theta.norm(dim=1)).clamp(max=1)[:, None]
        theta.grad, log_rates.grad = (cut * by_theta).mean(dim=0), (cut * by_rates).mean(dim=0) * rates
        adam.step()
        schedule.step()
    return theta, log_rates.exp()


def error_on_unseen(theta: Tensor, rates: Tensor) -> float:
    """The mean query loss after the flow on a hundred new tasks."""
    _, _, losses = vmap(meta_gradient, in_dims=(None, None, 0, 0))(theta, rates, *sinusoids(100))
    return losses.mean().item()


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)  # which is faster for a network as small as this
    print(f"mean squared error after the flow: from a random start {error_on_unseen(start(), torch.ones(1)):.3f}")
    print(f"from what was learned {error_on_unseen(*trained(500)):.3f}")
