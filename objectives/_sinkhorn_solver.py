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
SLOW = 0.5  # rate of plain sweeps above which steps are made longer
SLOWEST = 0.999  # rate that they are made longer for at most
SAMPLE = 32  # rows that the gradient's rest is measured on
ROUNDING = 4  # machine epsilons that a sweep moves in any case
AGREES = 1e-3  # of what is found in a checkpoint with what follows from the reference
State = dict[str, Tensor]


@dataclass(frozen=True)
class SinkhornSolver(Starter):
    r"""Solves every term at the target temperature to a tolerance, from the reference's potential of the step before.

    The reference's rows stay where they are, so their potential g is a start for the next step: half a sweep makes f of
    it, whatever the generated rows are. Sweeps alternate, f from g and g from f, each a product with a kernel
    exp((f_0 + g_0 - C) / eps) that is formed once. They come in pairs, by which a rate r of convergence is seen; where
    it is above 1/2, the steps of some sweeps in between are made longer by 2 / (1 + sqrt(1 - r)) (Lehmann et al.,
    2022, "A note on overrelaxation in the Sinkhorn algorithm"), unless that once moved more mass than before. Of a
    population with itself, sweeps from f = 0 at the target converge by 1/2 each for every kernel that is positive, as
    all these are: they need no start. So the value and its gradient are those of `sweeps` without end, within the
    tolerance, and not those of the schedule: a start from the step before changes the time alone.

    Sweeps end when the gradient's relative error (Frobenius) is below `tolerance` by an estimate on 32 of the rows,
    twice the larger of two things, over the gradient's size. What the last sweep moved their gradient by, times
    r / (1 - r), with r the larger of the last two pairs'. And the mass that it moved, times the size of a gradient
    towards the reference's mean: the plan is the exact one for reference weights that are off by this mass in sum, and
    of clusters far apart for their blur it alone says that there is still much to do. What rounding moves counts as
    nothing. Where the first update from g moves more than half of the mass, or sums leave the numbers' range, the
    temperature is lowered anew, and sweeps go on from there. After 1,000 sweeps a warning says that the tolerance is
    not met.

    `Solved.report` has the `bound` (that estimate, 1 at most), the `error` (the mass that the last sweep moved), the
    number of `sweeps`, and whether the step was `annealed` (1) or started from the step before (0).

    Cost:
        the products of a step, (3n/2 + 2m) n d, an exponential a pair, and n m reads twice a sweep: 2 to 4 sweeps where
        rows move little or the blur is large, as many as from any start (10 to 150) where rows are drawn anew and the
        blur is below their neighbours' distance. Memory: n m numbers up to 256 MiB; beyond, exponentials are taken in
        each sweep, twice.
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
            found, across, annealed = self._across(rows, y, masses, target.weights, problem, sample, state)
            value = divergence(problem, masses, target.weights, across, within, own)
        report = {"bound": found.bound, "error": found.error, "sweeps": float(found.sweeps)}
        left = {"g": found.g, "own": own}
        return Solved(differentiable(x, a, value), left, report | {"annealed": float(annealed)})

    def _own(self, target: Any, problem: Problem) -> Tensor:
        """The reference's own term."""
        if target.cost is None:
            return target.own
        return target.masses @ problem.dual(_within(target.cost, target.masses, problem, pull=False).f)

    def _across(
        self, x: Tensor, y: Tensor, a: Tensor, b: Tensor, problem: Problem, sample: "Sample", state: State | None
    ) -> tuple["Found", Potentials, bool]:
        """From the potential of the step before, or by lowering the temperature."""
        sides, found, sweeper = (x, y, a, b, problem), None, None
        if state is not None:
            sweeper = _sweeper(*sides, state["g"])
            found = self._swept(sweeper, state["g"], sample, most=HALF)
        annealed = found is None
        if found is None:
            g = solve(Cost(x, y, problem.p), a, b, problem._replace(extra=0)).g
            sweeper = _sweeper(*sides, g)
            found = self._swept(sweeper, g, sample)
            if found is None:
                sweeper = InLogs(*sides, g)
                found = self._swept(sweeper, g, sample)
        assert found is not None and sweeper is not None
        f, pull = sweeper.ended(found.g)
        return found, Potentials(f, found.g, pull, found.g.new_tensor(found.error)), annealed

    def _swept(self, sweeper: "Sweeper", g: Tensor, sample: "Sample", *, most: float = math.inf) -> "Found | None":
        """Sweeps until all is within the tolerance; None where the first moves more mass, or sums leave the range."""
        best, rates, count, relaxed = Found(g), [0.0], 0, True
        while True:
            passed = [g]
            for _ in range(2):
                passed.append(sweeper.g_of(sweeper.f_of(passed[-1])))
            first, error = (sample.mass(*pair) for pair in zip(passed, passed[1:], strict=False))
            count, whole = count + 2, bool(passed[-1].isfinite().all())
            if count == 2 and (not whole or first > most):
                return None
            if relaxed and (not whole or error > best.error):  # relaxing led astray: plain sweeps from where it began
                g, relaxed = best.g, False
                continue
            if not whole:
                return None
            rates = [rates[-1], min(error / first, 1.0) if first > 0 else 0.0]
            g, rounding = passed[-1], sweeper.rounding(sample.exponent)
            bound, done = self._bound(sample, passed, error, max(rates), rounding)
            best = Found(g, error, min(bound, 1.0), count)
            if done or count >= MOST:
                break
            if relaxed and max(rates) > SLOW:
                g, more = _relaxed(sweeper, g, min(max(rates), SLOWEST))
                count += more
        if not done:
            warnings.warn(
                f"sinkhorn: not within the tolerance of {self.tolerance:.2g} after {MOST} sweeps; raise it, or blur",
                stacklevel=4,
            )
        return best

    def _bound(
        self, sample: "Sample", passed: list[Tensor], error: float, rate: float, rounding: float
    ) -> tuple[float, bool]:
        """The estimate for the gradient after two sweeps, and whether that is enough; measured where the mass is."""
        size = max(float((sample.gradient(passed[-1]) - sample.within).norm()), 1e-300)
        mass = error * sample.size
        if 2 * mass > self.tolerance * size and error > rounding:
            return math.inf, False
        moved = float((sample.gradient(passed[-1]) - sample.gradient(passed[-2])).norm())
        rest = moved * rate / (1 - rate) if rate < 1 else math.inf
        bound = 2 * max(rest, mass) / size
        return bound, bound <= self.tolerance or max(mass, moved) <= rounding * sample.size

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

    g: Tensor
    error: float = math.inf  # the mass that the last sweep moved
    bound: float = 1.0  # estimate of the gradient's relative error
    sweeps: int = 0


def _relaxed(sweeper: "Sweeper", g: Tensor, rate: float) -> tuple[Tensor, int]:
    """Sweeps whose steps are made longer by the factor that is best where plain ones converge at this rate."""
    omega = 2 / (1 + math.sqrt(1 - rate))
    count = math.ceil(4 / (2 - omega))
    f = sweeper.f_of(g)
    for _ in range(count):
        g = g + omega * (sweeper.g_of(f) - g)
        f = f + omega * (sweeper.f_of(g) - f)
    return g, count


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

    def mass(self, old: Tensor, new: Tensor) -> float:
        """What a sweep moved, of the mass."""
        return float(self.b @ torch.expm1((old - new) / self.problem.eps).abs())

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
        add_pull(pulled, plan, self.rows, torch.ones_like(plan[0]), self.y)
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

    def f_of(self, g: Tensor) -> Tensor:
        """The generated rows' potential by the reference's."""
        return self._damped(self._rows(self._masses(g)).double().log() + self.tops)

    def g_of(self, f: Tensor) -> Tensor:
        """The reference's by the generated rows'."""
        masses = (self.a * (f / self.problem.eps + self.tops).exp()).to(self.start.dtype)
        columns = torch.zeros_like(self.start)
        for i, block in zip(self.cost.slices(), self.blocks, strict=True):
            columns.addmv_(block.T, masses[i])
        return self._damped(columns.double().log() - self.start)

    def ended(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The generated rows' potential, and the mean over their plan of the cost's gradient."""
        masses, cost = self._masses(g), self.cost
        rows, pulled, weighted = self._rows(masses), torch.zeros_like(cost.x), masses[:, None] * cost.y
        for i, block in zip(cost.slices(), self.blocks, strict=True):
            if self.problem.p != 2:
                weigh_by_slope(block, cost.block(i), self.problem.p)
            add_pull(pulled[i], block, cost.x[i], masses, weighted)
        self.blocks.clear()  # which the slope has changed
        return self._damped(rows.double().log() + self.tops), pulled.div_(rows[:, None])


class InLogs:
    """The same with exponentials in every sweep, for kernels too large to keep or beyond the numbers' range."""

    def __init__(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor, problem: Problem, g: Tensor):
        self.cost, self.weights, self.problem = Cost(x, y, problem.p), (a, b), problem
        self.f, self.g = torch.zeros_like(a), g

    def rounding(self, exponent: float) -> float:
        """What a sweep moves by rounding alone: of exponents."""
        return ROUNDING * torch.finfo(self.cost.x.dtype).eps * (1 + exponent)

    def f_of(self, g: Tensor) -> Tensor:
        """The generated rows' potential by the reference's."""
        self.f = update(self.cost, *self.weights, self.f, g, self.problem, self.problem.eps)[0]
        return self.f

    def g_of(self, f: Tensor) -> Tensor:
        """The reference's by the generated rows'."""
        self.g = update(self.cost, *self.weights, f, self.g, self.problem, self.problem.eps)[1]
        return self.g

    def ended(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The generated rows' potential, and the mean over their plan of the cost's gradient."""
        f, _, pulled = update(self.cost, *self.weights, self.f, g, self.problem, self.problem.eps, pull=True)
        assert pulled is not None
        return f, pulled


Sweeper = Kernel | InLogs


def _sweeper(x: Tensor, y: Tensor, a: Tensor, b: Tensor, problem: Problem, g: Tensor) -> Sweeper:
    """That which fits the memory."""
    return (Kernel if fits(x, y) else InLogs)(x, y, a, b, problem, g)
