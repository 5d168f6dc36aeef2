"""Entropic plans of a cost matrix in float64, by alternating updates in the log domain until the marginals fit."""

import math

import torch
from torch import Tensor

from rdm.api import Transport

ITERATIONS = 1000


def entropic(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    eps: float,
    rho: float | None,
    factor: float,
    tolerance: float,
    iterations: int,
) -> Transport:
    """min_P <P, C> + eps KL(P | a b^T), with marginals a and b, or at the price rho KL of others.

    The temperature falls from the costs' range to eps by `factor`, an update each; then both potentials are updated in
    turn. After g's update the columns fit exactly, so that the error is that of the rows.
    """
    held, f = cost.detach(), torch.zeros(len(cost), dtype=torch.float64, device=cost.device)
    u, v = a.detach(), b.detach()
    for warm in _falling(float(held.max() - held.min()), eps, factor):
        g, _ = _update(held.T, u, f, warm, rho)
        f, _ = _update(held, v, g, warm, rho)
    g, error, done = torch.zeros_like(v), math.inf, 0
    for done in range(1, iterations + 1):
        g, _ = _update(held.T, u, f, eps, rho)
        after, raw = _update(held, v, g, eps, rho)
        error = float((u * (((f - raw) / eps).exp() - _kept(f, rho))).abs().sum())
        if error <= tolerance or done == iterations:
            break
        f = after
    plan = u[:, None] * v * ((f[:, None] + g - held) / eps).exp()
    slopes = [p if rho is None else -(rho + eps) * torch.expm1(-p / rho) for p in (f, g)]
    parts = [w @ (p if rho is None else -rho * torch.expm1(-p / rho)) for w, p in ((u, f), (v, g))]
    value = parts[0] + parts[1] - eps * (plan.sum() - 1)
    return Transport(differentiable(value, plan, cost, a, b, *slopes), plan, f, g, error, done, error <= tolerance)


def powered(x: Tensor, y: Tensor, p: float) -> Tensor:
    """|x_i - y_j|^p by differences; equal rows have gradient 0."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").pow(p)


def differentiable(value: Tensor, plan: Tensor, cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """The value with its gradient: the plan in the costs, slopes f and g in the weights."""
    moved = (plan * (cost - cost.detach())).sum() + f @ (a - a.detach()) + g @ (b - b.detach())
    return value.detach() + moved


def _falling(start: float, eps: float, factor: float) -> list[float]:
    steps = math.ceil(math.log(eps / start) / math.log(factor)) if start > eps else 0
    return [start * factor**k for k in range(steps)]


def _update(cost: Tensor, masses: Tensor, other: Tensor, eps: float, rho: float | None) -> tuple[Tensor, Tensor]:
    """A side's soft minimum over the other, -eps log sum_j b_j exp((g_j - C_ij) / eps): damped, and as it is."""
    raw = -eps * torch.logsumexp((other - cost) / eps + masses.log(), 1)
    return (raw if rho is None else raw / (1 + eps / rho)), raw


def _kept(f: Tensor, rho: float | None) -> Tensor | float:
    """The share of its mass that a row of this potential moves."""
    return 1.0 if rho is None else (-f / rho).exp()
