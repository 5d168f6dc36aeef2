"""Sinkhorn divergences from step to step: each solve starts from the reference's potential of the one before."""

import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from objectives._sinkhorn import (
    Cost,
    Potentials,
    Problem,
    add_pull,
    differentiable,
    divergence,
    fits,
    pulled_mass,
    solve,
    update,
    weigh_by_slope,
)
from rdm.api import CorruptFileError, Solved, Starter

HALF = 0.5  # of the mass: if the first update from an earlier potential moves more, the temperature is lowered anew
MOST = 1000  # sweeps at the target temperature
SAMPLE = 32  # rows that the gradient's rest is measured on
ROUNDING = 4  # machine epsilons that a sweep moves in any case
AGREES = 1e-3  # of what is found in a checkpoint with what follows from the reference
State = dict[str, Tensor]


@dataclass(frozen=True)
class SinkhornSolver(Starter):
    r"""Solves every term at the target temperature to a tolerance, from the reference's potential of the step before.

    The reference's rows stay where they are, so their potential g is a start for the next step: half a sweep makes f of
    it, whatever the generated rows are. Sweeps alternate, f from g and g from f, each a product with a kernel
    exp((f_0 + g_0 - C) / eps) that is formed once. Of a population with itself, sweeps from f = 0 at the target
    converge by 1/2 each for every kernel that is positive, as all these are: they need no start. So the value and its
    gradient are those of `sweeps` without end, within the tolerance, and not those of the schedule: a start from the
    step before changes the time alone.

    Sweeps end when the gradient's relative error (Frobenius) is below `tolerance` by an estimate on 32 of the rows,
    twice the larger of two things, over the gradient's size. What the last sweep moved their gradient by, times
    r / (1 - r), with r the larger of the last two ratios of such moves. And the mass that it moved, times the size of a
    gradient towards the reference's mean: the plan is the exact one for reference weights that are off by this mass in
    sum, and of clusters far apart for their blur it alone says that there is still much to do. What rounding moves
    counts as nothing. Where the first update from g moves more than half of the mass, or sums leave the numbers' range,
    the temperature is lowered anew, and sweeps go on from there. After 1,000 sweeps a warning says that the tolerance
    is not met.

    `Solved.report` has the `bound` (that estimate, 1 at most), the `error` (the mass that the last sweep moved), the
    number of `sweeps`, and whether the step was `annealed` (1) or started from the step before (0).

    Cost:
        the products of a step, (3n/2 + 2m) n d, an exponential a pair, and n m reads twice a sweep: 2 or 3 sweeps where
        rows move little or the blur is large, as many as from any start where rows are drawn anew and the blur is
        below their neighbours' distance. Memory: n m numbers up to 256 MiB; beyond, exponentials are taken in each
        sweep, twice.
    """

    objective: Any  # the `Sinkhorn` that made it
    tolerance: float

    def distance(self, summary: Any, target: Any, state: State | None) -> Solved:  # noqa: D102
        x, a, y, problem = self.objective.sides(summary, target)
        with torch.no_grad():
            rows, masses = x.detach(), a.detach()
            own = self._own(target, problem) if state is None else state["own"]
            within = None if target.cost is None else _within(Cost(rows, None, problem.p), masses, problem, pull=True)
            sample = Sample.of(rows, y, masses, target.weights, problem, within)
            found = self._across(rows, y, masses, target.weights, problem, sample, state)
            across = found.potentials
            value = divergence(problem, masses, target.weights, across, within, own)
        report = {"bound": found.bound, "error": float(across.error), "sweeps": float(found.sweeps)}
        left = {"g": across.g, "own": own}
        return Solved(differentiable(x, a, value), left, report | {"annealed": float(found.annealed)})

    def _own(self, target: Any, problem: Problem) -> Tensor:
        """The reference's own term."""
        if target.cost is None:
            return target.own
        return target.masses @ problem.dual(_within(target.cost, target.masses, problem, pull=False).f)

    def _across(
        self, x: Tensor, y: Tensor, a: Tensor, b: Tensor, problem: Problem, sample: "Sample", state: State | None
    ) -> "Found":
        """From the potential of the step before, or by lowering the temperature."""
        sides = x, y, a, b, problem
        found = None if state is None else self._swept(_sweeper(*sides, state["g"]), state["g"], sample, most=HALF)
        if found is not None:
            return found
        g = solve(Cost(x, y, problem.p), a, b, problem._replace(extra=0)).g
        found = self._swept(_sweeper(*sides, g), g, sample) or self._swept(InLogs(*sides, g), g, sample)
        assert found is not None
        return found._replace(annealed=True)

    def _swept(self, sweeper: "Sweeper", g: Tensor, sample: "Sample", *, most: float = math.inf) -> "Found | None":
        """Sweeps until all is within the tolerance; None where the first moves more mass, or sums leave the range."""
        before, moved, rates, error = sample.gradient(g), math.inf, [1.0], math.inf
        bound, count, rounding = math.inf, 0, sweeper.rounding(sample.exponent)
        for count in range(1, MOST + 1):
            old, g = g, sweeper.sweep(g)
            error = float(sample.b @ torch.expm1((old - g) / sample.problem.eps).abs())
            if not bool(g.isfinite().all()) or (count == 1 and error > most):
                return None
            now = sample.gradient(g)
            last, moved = moved, float((now - before).norm())
            rates = [*rates[-1:], moved / last if last > 0 else 0.0]
            rate, before = max(rates), now
            rest = moved * rate / (1 - rate) if rate < 1 else math.inf
            bound = 2 * max(rest, error * sample.size) / max(float((now - sample.within).norm()), 1e-300)
            if bound <= self.tolerance or max(error * sample.size, moved) <= rounding * sample.size:
                break
        else:
            warnings.warn(
                f"sinkhorn: not within the tolerance of {self.tolerance:.2g} after {MOST} sweeps; raise it, or blur",
                stacklevel=4,
            )
        f, pull = sweeper.ended(g)
        return Found(Potentials(f, g, pull, g.new_tensor(error)), min(bound, 1.0), count)

    def check(self, state: State, target: Any) -> None:  # noqa: D102
        wanted = {"g": target.weights, "own": target.own}
        fits = list(state) == list(wanted) and all(
            (state[k].dtype, state[k].shape) == (v.dtype, v.shape) and bool(state[k].isfinite().all())
            for k, v in wanted.items()
        )
        own = self._own(target, target.problem) if fits else target.own
        if not fits or float((state["own"] - own).abs()) > AGREES * float(own.abs()):
            raise CorruptFileError("what a solver kept is not of this reference; give the state of one like it")


class Found(NamedTuple):
    """Where sweeps ended."""

    potentials: Potentials
    bound: float  # estimate of the gradient's relative error
    sweeps: int
    annealed: bool = False


def _within(cost: Cost, a: Tensor, problem: Problem, *, pull: bool) -> Potentials:
    """The transport of a set to itself, solved to rounding."""
    return solve(cost, a, a, problem._replace(temperatures=[problem.eps], extra=MOST), pull=pull)


class Sample(NamedTuple):
    """Some of the generated rows, whose gradient is formed after every sweep."""

    rows: Tensor  # k d
    y: Tensor
    a: Tensor  # k
    b: Tensor
    costs: Tensor  # k m
    problem: Problem
    within: Tensor  # k d, what is taken off the gradient

    @classmethod
    def of(cls, x: Tensor, y: Tensor, a: Tensor, b: Tensor, problem: Problem, within: Potentials | None) -> "Sample":
        """Rows spread over all."""
        some = slice(None, None, max(1, len(x) // SAMPLE))
        rows, own = x[some], None if within is None else pulled_mass(within, a, problem)
        costs = Cost(rows, y, problem.p, keep=False).block(slice(0, len(rows)))
        return cls(rows, y, a[some], b, costs, problem, torch.zeros_like(rows) if own is None else own[some])

    @property
    def exponent(self) -> float:
        """The largest C / eps."""
        return float(self.costs.max()) / self.problem.eps

    @property
    def size(self) -> float:
        """Of a gradient towards the reference's mean."""
        apart = (self.rows.double() - self.b @ self.y.double()).norm(dim=1)
        return float((self.a * apart.pow(self.problem.p - 1)).norm())

    def gradient(self, g: Tensor) -> Tensor:
        """Of the term across, at the potential of the reference."""
        problem = self.problem
        logs = (g / problem.eps + self.b.log()) - self.costs.double() / problem.eps
        f = -problem.damping(problem.eps) * problem.eps * logs.logsumexp(1)
        plan, pulled = logs.softmax(1).to(self.rows.dtype), torch.zeros_like(self.rows)
        weigh_by_slope(plan, self.costs, problem.p)
        add_pull(pulled, plan, self.rows, self.y, torch.ones_like(plan[0]))
        return pulled.double().mul_((self.a * problem.moved(f))[:, None])


class Kernel:
    """exp((g_0j - C_ij) / eps - t_i), 1 at most, of which a sweep is two products with vectors."""

    def __init__(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor, problem: Problem, g: Tensor):
        self.cost, self.a, self.b, self.problem = Cost(x, y, problem.p, keep=False), a, b, problem
        self.start = (g / problem.eps).to(x.dtype)
        self.tops, self.blocks = torch.empty_like(x[:, 0]), list[Tensor]()
        for i, block in self.cost.pieces(whole=True):
            block.mul_(-1 / problem.eps).add_(self.start)
            self.tops[i] = block.amax(1)
            self.blocks.append(block.sub_(self.tops[i, None]).exp_())

    def rounding(self, exponent: float) -> float:
        """What a sweep moves by rounding alone: of the kernel's vectors, as the kernel stays, and of potentials."""
        return ROUNDING * (torch.finfo(self.start.dtype).eps + torch.finfo(torch.float64).eps * exponent)

    def _masses(self, g: Tensor) -> Tensor:
        return (self.b * (g / self.problem.eps - self.start).exp()).to(self.start.dtype)

    def _damped(self, logs: Tensor) -> Tensor:
        return -self.problem.damping(self.problem.eps) * self.problem.eps * logs

    def _rows(self, masses: Tensor) -> Tensor:
        return torch.cat([block @ masses for block in self.blocks])

    def sweep(self, g: Tensor) -> Tensor:
        """The reference's potential after one sweep."""
        f = self._damped(self._rows(self._masses(g)).double().log() + self.tops)
        masses = (self.a * (f / self.problem.eps + self.tops).exp()).to(self.start.dtype)
        columns = torch.zeros_like(self.start)
        for i, block in zip(self.cost.slices(), self.blocks, strict=True):
            columns.addmv_(block.T, masses[i])
        return self._damped(columns.double().log() - self.start)

    def ended(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The generated rows' potential, and the mean over their plan of the cost's gradient."""
        masses, cost = self._masses(g), self.cost
        rows, pulled = self._rows(masses), torch.zeros_like(cost.x)
        for i, block in zip(cost.slices(), self.blocks, strict=True):
            if self.problem.p != 2:
                weigh_by_slope(block, cost.block(i), self.problem.p)
            add_pull(pulled[i], block, cost.x[i], cost.y, masses)
        self.blocks.clear()  # which the slope has changed
        return self._damped(rows.double().log() + self.tops), pulled.div_(rows[:, None])


class InLogs:
    """The same with exponentials in every sweep, for kernels too large to keep or beyond the numbers' range."""

    def __init__(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor, problem: Problem, g: Tensor):
        self.cost, self.weights, self.problem = Cost(x, y, problem.p), (a, b), problem
        self.f = torch.zeros_like(a)

    def rounding(self, exponent: float) -> float:
        """What a sweep moves by rounding alone: of exponents."""
        return ROUNDING * torch.finfo(self.cost.x.dtype).eps * (1 + exponent)

    def sweep(self, g: Tensor) -> Tensor:
        """The reference's potential after one sweep."""
        self.f = update(self.cost, *self.weights, self.f, g, self.problem, self.problem.eps)[0]
        return update(self.cost, *self.weights, self.f, g, self.problem, self.problem.eps)[1]

    def ended(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The generated rows' potential, and the mean over their plan of the cost's gradient."""
        f, _, pulled = update(self.cost, *self.weights, self.f, g, self.problem, self.problem.eps, pull=True)
        assert pulled is not None
        return f, pulled


Sweeper = Kernel | InLogs


def _sweeper(x: Tensor, y: Tensor, a: Tensor, b: Tensor, problem: Problem, g: Tensor) -> Sweeper:
    """That which fits the memory."""
    return (Kernel if fits(x, y) else InLogs)(x, y, a, b, problem, g)
