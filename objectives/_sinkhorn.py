"""Entropic optimal transport in the log domain: annealed symmetric Sinkhorn sweeps, and the gradient at their end."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from objectives._distances import squared_distances
from rdm.api import usual

KEEP = 2**28  # bytes of a cost matrix that is kept between sweeps (8192 x 8192 in float32); larger ones are recomputed
TILE = 2**20  # bytes of the tile that a sweep works on, to stay in the cache of a core
BLOCK = 2  # tiles in a block, the rows of one matrix product
WIDE = 2**6  # times as much on an accelerator, where a tile is a launch and need stay in no cache


class Problem(NamedTuple):
    """What a solve needs besides the rows."""

    p: float  # the cost is |x - y|^p / p
    temperatures: list[float]  # one a sweep, the last is the target
    reach: float | None  # length over which mass is moved rather than made, None: balanced
    extra: int  # further sweeps at the target, fewer once nothing moves

    @property
    def eps(self) -> float:
        """The target temperature."""
        return self.temperatures[-1]

    @property
    def rho(self) -> float:
        """The price of mass that is made."""
        return math.inf if self.reach is None else self.reach**self.p

    def damping(self, eps: float) -> float:
        """What a soft minimum is multiplied by where mass may be made."""
        return 1 / (1 + eps / self.rho)

    def dual(self, potential: Tensor) -> Tensor:
        """What a potential adds to the dual value, per unit of mass."""
        if self.reach is None:
            return potential
        return -(self.rho + self.eps / 2) * torch.expm1(-potential / self.rho)

    def slope(self, potential: Tensor) -> Tensor:
        """The dual value's slope in the weights: the potential, or (rho + eps) (1 - exp(-f / rho))."""
        return potential if self.reach is None else -(self.rho + self.eps) * torch.expm1(-potential / self.rho)

    def moved(self, potential: Tensor) -> Tensor:
        """The share of its mass that a row of this potential moves, exp(-f / rho)."""
        return (-potential / self.rho).exp()


@dataclass(eq=False)
class Cost:
    """|x_i - y_j|^p / p of two sets, or of one with itself (None), by blocks of rows; kept where it fits `KEEP`."""

    x: Tensor
    other: Tensor | None
    p: float
    keep: bool = True

    def __post_init__(self) -> None:
        self.y, self.own = self.x if self.other is None else self.other, self.other is None
        number = TILE // (self.x.element_size() * len(self.y)) * (1 if self.x.device.type == "cpu" else WIDE)
        self.tile = min(max(16, number), len(self.x))
        self.rows = min(BLOCK * self.tile, len(self.x))
        if self.p == 2:
            x = self.x.square().sum(1).div_(2)
            self.halves = x, x if self.own else self.y.square().sum(1).div_(2)
        self.kept: list[Tensor] | None = None
        if self.keep and fits(self.x, self.y, share=0.5 if self.own else 1):
            self.kept = [self.block(i) for i in self.slices()]

    def slices(self) -> Iterator[slice]:
        """Blocks of rows."""
        return (slice(i, min(i + self.rows, len(self.x))) for i in range(0, len(self.x), self.rows))

    def pieces(self, *, whole: bool) -> Iterator[tuple[slice, Tensor]]:
        """Rows with their costs, in `whole` blocks, as products need, or in tiles of them.

        Of one set with itself only the columns from the piece's first row on.
        """
        step = self.rows if whole else self.tile
        for k, i in enumerate(self.slices()):
            block = self.block(i) if self.kept is None else self.kept[k]
            for start in range(0, i.stop - i.start, step):
                stop = min(start + step, i.stop - i.start)
                yield slice(i.start + start, i.start + stop), block[start:stop, start if self.own else 0 :]

    def block(self, i: slice, *, whole: bool = False) -> Tensor:
        """Costs of some rows; `whole`: with all columns in any case."""
        start = i.start if self.own and not whole else 0
        same = i.start - start if self.own else None
        if self.p != 2:
            squared = squared_distances(self.x[i], self.y[start:], exact_small=True, same=same)
            return squared.pow_(self.p / 2).div_(self.p)
        x, y = self.halves
        halves = torch.addmm(y[start:], self.x[i], self.y[start:].T, alpha=-1).add_(x[i, None]).clamp_min_(0)
        if same is not None:
            halves.diagonal(same).zero_()
        return halves


class Potentials(NamedTuple):
    """The dual solution, and what the gradient is made of."""

    f: Tensor  # n, float64
    g: Tensor  # m, float64; f for a set with itself
    pull: Tensor | None  # n d, the mean over row i's plan of the cost's gradient in x_i
    error: Tensor  # what the last update still moved, of the mass: sum_i a_i |1 - exp((f_old - f_i) / eps)|


def fits(x: Tensor, y: Tensor, *, share: float = 1) -> bool:
    """Whether a number for every pair, or this share of them, is kept between sweeps."""
    return len(x) * len(y) * x.element_size() * share <= KEEP


def box(rows: Tensor) -> Tensor:
    """Lowest and highest corner of the bounding box, "2 d"."""
    return torch.stack([rows.amin(0), rows.amax(0)]).double()


def extent(*boxes: Tensor) -> Tensor:
    """Diagonal of the box that holds them all."""
    corners = torch.stack(boxes)
    return (corners[:, 1].amax(0) - corners[:, 0].amin(0)).norm()


def temperatures(diameter: float, *, p: float, blur: float, scaling: float) -> list[float]:
    """From diameter^p, twice, by factors of scaling^p to blur^p, a sweep each: geomloss' schedule.

    Of a box that is smaller than the blur nothing is left to anneal.
    """
    if diameter <= blur:
        return [blur**p]
    steps = max(0, math.ceil(math.log(blur / diameter) / math.log(scaling)))
    return [diameter**p, *(diameter**p * scaling ** (p * k) for k in range(steps)), blur**p]


def solve(cost: Cost, a: Tensor, b: Tensor, problem: Problem, *, pull: bool = False) -> Potentials:
    """Sweeps f, g <- means with their soft minima, then one full update (Feydy 2020, algorithm 3.5)."""
    f = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    g = f if cost.own else torch.zeros(len(b), dtype=torch.float64, device=a.device)
    f, g, _ = update(cost, a, b, f, g, problem, problem.temperatures[0])
    for eps in problem.temperatures:
        f_new, g_new, _ = update(cost, a, b, f, g, problem, eps)
        f, g = (f + f_new) / 2, (g + g_new) / 2
    last = problem.eps
    for _ in range(problem.extra):
        f_new, g_new, _ = update(cost, a, b, f, g, problem, last)
        moved = torch.maximum((f_new - f).abs().max(), (g_new - g).abs().max())
        f, g = (f + f_new) / 2, (g + g_new) / 2
        if usual(moved <= 4 * torch.finfo(cost.x.dtype).eps * (f.abs().max() + g.abs().max()), False):
            break
    f_new, g_new, pulled = update(cost, a, b, f, g, problem, last, pull=pull)
    return Potentials(f_new, g_new, pulled, a @ torch.expm1((f - f_new) / last).abs())


def update(
    cost: Cost, a: Tensor, b: Tensor, f: Tensor, g: Tensor, problem: Problem, eps: float, *, pull: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Soft minima of both sides, -eps log sum_j b_j exp((g_j - C_ij) / eps), damped where mass may be made."""
    damping = problem.damping(eps)
    rows, columns, pulled = _sums(cost, a, b, f, g, eps, pull=pull)
    # below: 1e8 times the least normal number, so that no sum is made of a few denormal terms
    limits = torch.finfo(rows.dtype).tiny * 1e8, torch.finfo(rows.dtype).max
    every = rows if cost.own else torch.cat([rows, columns])
    if usual(((every > limits[0]) & (every < limits[1])).all()):
        rows, columns = rows.double().log(), columns.double().log()
    else:
        rows, columns, pulled = _stable_log_sums(cost, a, b, f, g, eps, pull=pull)
    f_new = damping * (f - eps * rows)
    return f_new, f_new if cost.own else damping * (g - eps * columns), pulled


def _sums(
    cost: Cost, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float, *, pull: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sums over rows (weighted by b) and columns (by a) of P = exp((f_i + g_j - C_ij) / eps), and the pull.

    One exponential serves both sums: with the potentials inside, rows and columns sum to about 1 (test:
    test_sinkhorn.py, against the form with the maximum taken out).
    """
    fe, ge, u, v = ((t).to(cost.x.dtype) for t in (f / eps, g / eps, a, b))
    rows, columns = torch.zeros_like(fe), torch.zeros_like(ge)
    pulled = torch.zeros_like(cost.x) if pull else None
    weighted = v[:, None] * cost.y if pull else cost.y
    room = cost.x.new_empty((cost.rows if pull else cost.tile) * len(cost.y))
    for i, block in cost.pieces(whole=pull):
        j, after = slice(i.start if cost.own else 0, None), i.stop - i.start
        tile = room[: block.numel()].view(block.shape)
        torch.add(ge[j], block, alpha=-1 / eps, out=tile).add_(fe[i, None]).exp_()
        rows[i].addmv_(tile, v[j])
        if cost.own:
            rows[i.stop :].addmv_(tile[:, after:].T, u[i])
        else:
            columns.addmv_(tile.T, u[i])
        if pulled is not None:
            weigh_by_slope(tile, block, cost.p)
            add_pull(pulled[i], tile, cost.x[i], v[j], weighted[j])
            if cost.own:
                add_pull(pulled[i.stop :], tile[:, after:].T, cost.x[i.stop :], u[i], weighted[i])
    if pulled is not None:
        pulled /= rows[:, None]
    return rows, rows if cost.own else columns, pulled


def _stable_log_sums(
    cost: Cost, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float, *, pull: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logs of the same sums with the maximum of each row and column taken out, for sums beyond the number's range."""
    dtype = cost.x.dtype
    fa, gb = f / eps + a.log(), g / eps + b.log()
    rows, columns = torch.empty_like(f), torch.full_like(g, -torch.inf)
    pulled = torch.zeros_like(cost.x) if pull else None
    for i in cost.slices():
        block = cost.block(i, whole=True)
        scaled = block.double() / -eps
        logs = scaled + gb
        rows[i] = logs.logsumexp(1) + f[i] / eps
        columns = torch.logaddexp(columns, (scaled + fa[i, None]).logsumexp(0))
        if pulled is not None:
            plan = logs.softmax(1).to(dtype)
            weigh_by_slope(plan, block, cost.p)
            add_pull(pulled[i], plan, cost.x[i], torch.ones_like(plan[0]), cost.y)
    return rows, columns + g / eps, pulled


def weigh_by_slope(plan: Tensor, block: Tensor, p: float) -> None:
    """plan_ij *= |x_i - y_j|^(p - 2), in place; 0 at equal rows, where the cost has no gradient for p < 2."""
    if p != 2:
        plan.mul_(torch.where(block > 0, (p * block).pow((p - 2) / p), 0.0))


def add_pull(pulled: Tensor, plan: Tensor, x: Tensor, weights: Tensor, weighted: Tensor) -> None:
    """pulled_i += sum_j plan_ij weights_j (x_i - y_j), in place; `weighted` are the rows weights_j y_j."""
    pulled.addcmul_((plan @ weights)[:, None], x).addmm_(plan, weighted, alpha=-1)


class Divergence(NamedTuple):
    """A value with its gradients."""

    value: Tensor  # (), float64
    rows: Tensor | None  # n d, in the generated rows; None where it was not asked for
    weights: Tensor  # n, in their masses


def divergence(
    problem: Problem, a: Tensor, b: Tensor, across: Potentials, within: Potentials | None, own: Tensor
) -> Divergence:
    """The dual values of all terms, the reference's `own` known, and by the envelope theorem the gradient.

    Without `within` nothing is taken off (test: test_sinkhorn.py, against geomloss and finite differences).
    """
    value = a @ problem.dual(across.f) + b @ problem.dual(across.g) - own
    weights, rows = problem.slope(across.f), pulled_mass(across, a, problem)
    if within is not None:
        value = value - a @ problem.dual(within.f)
        weights = weights - problem.slope(within.f)
        theirs = pulled_mass(within, a, problem)
        rows = None if rows is None or theirs is None else rows - theirs
    return Divergence(value, rows, weights)


def pulled_mass(found: Potentials, a: Tensor, problem: Problem) -> Tensor | None:
    """The pull of each row times the mass that its plan moves."""
    if found.pull is None:
        return None
    return found.pull * (a * problem.moved(found.f)).to(found.pull.dtype)[:, None]


def differentiable(x: Tensor, a: Tensor, found: Divergence) -> Tensor:
    """The value with its gradients; what is below 0 by rounding and convergence is 0, and the gradient is kept."""
    value = _Given.apply(x, a, found)
    return value + (value.clamp_min(0) - value).detach()


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, found: Divergence) -> Tensor:
        ctx.save_for_backward(found.rows, found.weights)
        return found.value.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, Tensor, None]:
        rows, weights = ctx.saved_tensors
        return None if rows is None else cotangents[0].to(rows.dtype) * rows, cotangents[0] * weights, None
