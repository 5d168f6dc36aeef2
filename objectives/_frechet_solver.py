"""Fréchet distances of a population that changes little from step to step, in products of the rows that came and went.

With C_r = F F^T and F^T C F = V L^2 V^T of an earlier population, H = F V L^{-1/2} makes both covariances the same
diagonal matrix: C_r = H L H^T and H^T C H = L, and its transport map is T = H H^T. For a later C, H^T C H = L + O and

    T = H (I + P)^{-1} H^T    with    P L + L P + P L P = O,

exactly. Without the last term P_ij = O_ij / (l_i + l_j), whatever the gaps between the l: no spectral gap enters. O
follows rows that come and go by products of n r^2, and T is applied to the live rows alone, by its series in P.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from objectives._linalg import above_rounding, mean_and_covariance
from rdm.api import CorruptFileError, Follower, InputError, Seen, Solved, Sum

EVERY = 128  # steps at most from one exact one to the next
PROFIT = 21  # steps without a product of r^3 after which an eigendecomposition costs less than these
AGREES = 1e-3  # of what is found in a checkpoint with what follows from its moments
SAMPLE = 32  # rows that a bound is measured on
State = dict[str, Tensor]


class Fit(NamedTuple):
    """The population's Gaussian fit, but for the covariance itself."""

    mean: Tensor  # about the statistic's shift
    mass: Tensor
    scale: Tensor  # of the covariance, 1 / (1 - correction / n)
    trace: Tensor

    @classmethod
    def of(cls, moments: Sum, correction: int) -> "Fit":
        """From the moments, in d^2 reads of none but the diagonal."""
        mean = moments.value[0] / moments.mass
        if float(moments.count) <= correction * (1 + 1e-9):
            raise InputError(
                f"a covariance with correction={correction} needs more rows; got {float(moments.count):.3g}"
            )
        scale = 1 / (1 - correction / moments.count)
        return cls(mean, moments.mass, scale, (moments.value[1:].trace() / moments.mass - mean @ mean) * scale)


class Pulled(NamedTuple):
    """(x - mu) (I - T) of the live rows, the value, the state that they leave, and the bound of the pull's error."""

    pull: Tensor
    value: Tensor
    state: State | None
    bound: float
    age: int = 0  # steps since the basis


@dataclass(frozen=True)
class FrechetSolver(Follower):
    r"""Follows the moments in the eigenbasis of an earlier step; exact where a bound says that this is not enough.

    The gradient's relative error (Frobenius, over the live rows) is held below `tolerance` by a bound of what is left
    out, taken on 32 of them. Without the last term of the equation above, (I + P)^{-1} = I - P + 3/2 P^2, as it is
    where all commutes, and the bound is half the size of P^2. Where that is more than the tolerance, P takes a
    fixed-point step, P_ij = (O - P L P)_ij / (l_i + l_j), from that of the step before, (I + P)^{-1} = I - P + P^2 -
    P^3, and the bound is what the step moved P^2 by and the size of P^4, as P^3 falls from P^2.

    Where that is more too, where the covariance is singular, and at least every 128 steps, the step is exact, by an
    eigendecomposition in float64 whose basis the next steps take. What the followed gradient would have been off by is
    measured then, and a warning says where no bound said so. Products are in the rows' own type.

    `Solved.report` has the `bound`, whether the step was `exact` (1) or not (0), and if so the `error` measured.

    Cost:
        about 7 n r^2, and r^3 with a fixed-point step; exact ones 30 r^3. Memory 4 r^2 in the rows' type.
    """

    tolerance: float
    correction: int

    def solve(self, seen: Seen, statistic: Any, target: Any, state: State | None) -> Solved:  # noqa: D102
        moments = seen.population
        assert isinstance(moments, Sum)
        rows = seen.live.value.detach()
        fit, report = Fit.of(moments, self.correction), {"exact": 0.0}
        found = None if state is None or seen.change is None else self._followed(seen, fit, statistic, target, state)
        if found is not None:
            report["bound"] = found.bound
        if found is None or not found.bound <= self.tolerance or found.age >= EVERY:
            exact = self._exact(rows - statistic.shift, rows.dtype, moments, fit, target)
            report["exact"] = 1.0
            if found is not None:
                report["error"] = self._compared(found, exact)
            found = exact
        share = seen.share * seen.live.weight.detach() / seen.live.weight.detach().sum()
        pull = found.pull.double().mul_(2 * fit.scale).add_(2 * (fit.mean - target.mean)).mul_(share[:, None])
        value = (fit.mean - target.mean).square().sum() + fit.trace + target.trace - 2 * found.value
        return Solved(_Given.apply(seen.live.value, value.clamp_min(0), pull.to(rows.dtype)), found.state, report)

    def _compared(self, found: Pulled, exact: Pulled) -> float:
        """How far a followed pull is from the exact one; a warning where no bound said so."""
        error = float((found.pull - exact.pull).norm() / exact.pull.norm().clamp_min(1e-300))
        if error > self.tolerance >= found.bound:
            warnings.warn(
                f"frechet: the gradient was off by {error:.2g} where its bound said {found.bound:.2g} and the "
                f"tolerance is {self.tolerance:.2g}; take a smaller tolerance",
                stacklevel=3,
            )
        return error

    def _exact(self, rows: Tensor, kind: torch.dtype, moments: Sum, fit: Fit, target: Any) -> Pulled:
        """By eigh in float64; a state if the covariance has full rank on the reference's directions."""
        _, covariance = mean_and_covariance(moments, correction=self.correction)
        eigenvalues, vectors = torch.linalg.eigh(target.factor.T @ (covariance @ target.factor))
        keep = above_rounding(eigenvalues)
        whole = bool(keep.all())
        if not whole:
            warnings.warn(
                "frechet: the population's covariance is singular on the reference's directions, and every step is "
                "exact on the rank that there is; enlarge the memory or leave the tolerance out",
                stacklevel=4,
            )
            eigenvalues, vectors = eigenvalues[keep], vectors[:, keep]
        levels = eigenvalues.sqrt()
        basis = (target.factor @ vectors).div_(levels.sqrt())
        centred = rows.double() - fit.mean
        pull = centred - (centred @ basis) @ basis.T
        if not whole:
            return Pulled(pull, levels.sum(), None, 0.0)
        own = basis.to(kind)
        state = {
            "basis": own,
            "levels": levels,
            "centre": fit.mean,
            "moments": torch.diag(levels * fit.mass / fit.scale).to(kind),
            "second": torch.zeros_like(own[:0]),
            "steps": torch.zeros(2, dtype=torch.int64),
        }
        return Pulled(pull, levels.sum(), state, 0.0)

    def _followed(self, seen: Seen, fit: Fit, statistic: Any, target: Any, state: State) -> Pulled | None:
        """By the basis that there is."""
        change, basis, levels = seen.change, state["basis"], state["levels"]
        if change is None or basis.dtype != seen.live.value.dtype:
            return None
        kind, live = basis.dtype, len(seen.live.value)
        around = statistic.shift + state["centre"]
        rows = (change.rows.value - around).to(kind) @ basis
        weights = change.rows.weight.to(kind)[:, None]
        moments = torch.addmm(state["moments"], (rows * weights).T, rows, beta=change.kept)
        moved = fit.mean - state["centre"]
        mean = moved.to(kind) @ basis
        off = moments * (fit.scale / fit.mass).to(kind)
        off.addr_(mean, mean, alpha=-float(fit.scale)).diagonal().sub_(levels.to(kind))
        denominators = levels.to(kind)[:, None] + levels.to(kind)
        centred = (seen.live.value.detach() - (around + moved)).to(kind)
        y = rows[:live] - mean
        age, plain = state["steps"].tolist()
        next_state = {**state, "moments": moments}
        if not len(state["second"]):
            p = off / denominators
            first = y @ p
            second = first @ p
            pull = centred - (y - first).add_(second, alpha=1.5) @ basis.T
            bound = 0.5 * _ratio(second, pull, basis)
            if bound <= self.tolerance or plain >= PROFIT:
                overlap = (
                    levels * (1 + p.diagonal().double() - torch.linalg.vector_norm(p, dim=1).double().square() / 2)
                ).sum()
                return Pulled(pull, overlap, {**next_state, "steps": torch.tensor([age + 1, plain + 1])}, bound, age)
        else:
            p = (off - state["second"]).div_(denominators)
        pull, p, product, bound = self._improved(off, p, denominators, levels.to(kind), y, centred, basis)
        overlap = (levels * (1 + p.diagonal().double())).sum()
        return Pulled(
            pull, overlap, {**next_state, "second": product, "steps": torch.tensor([age + 1, plain])}, bound, age
        )

    def _improved(
        self, off: Tensor, p: Tensor, denominators: Tensor, levels: Tensor, y: Tensor, centred: Tensor, basis: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """By one fixed-point step, or two where that is not enough."""
        pull, product, bound = centred, off, math.inf
        for _ in range(2):
            product, before = _sandwich(p, levels), p
            p = (off - product).div_(denominators)
            first = y @ p
            second = first @ p
            third = second @ p
            pull = centred - (y - first).add_(second).sub_(third) @ basis.T
            moved = second[_some(second)] - first[_some(first)] @ before
            falling = float(third.norm() / second.norm().clamp_min(torch.finfo(second.dtype).tiny))
            bound = _ratio(moved, pull, basis, taken=True) + falling * _ratio(third, pull, basis)
            if bound <= self.tolerance:
                break
        return pull, p, product, bound

    def check(self, state: State, past: Any, statistic: Any, target: Any) -> None:  # noqa: D102
        wide, rank = target.factor, target.factor.shape[1]
        narrow = torch.float32 if state.get("basis", torch.empty(0)).dtype == torch.float32 else torch.float64
        example = Fit.of(past, self.correction)
        wanted = {
            "basis": wide.to(narrow),
            "levels": wide[0],
            "centre": wide[:, 0],
            "moments": wide.new_empty(rank, rank, dtype=narrow),
            "second": wide.new_empty(rank if len(state.get("second", ())) else 0, rank, dtype=narrow),
            "steps": torch.zeros(2, dtype=torch.int64),
        }
        fits = list(state) == list(wanted) and all(
            isinstance(state[k], Tensor) and (state[k].dtype, state[k].shape) == (v.dtype, v.shape)
            and bool(state[k].isfinite().all()) for k, v in wanted.items()
        )  # fmt: skip
        if not fits or not self._agrees(state, past, example, target):
            raise CorruptFileError("what a solver kept is not of this population; give the state of one like it")

    def _agrees(self, state: State, past: Any, fit: Fit, target: Any) -> bool:
        """Whether the basis makes the reference diagonal and the moments are the past's in it, on a few directions."""
        basis, levels = state["basis"].double(), state["levels"]
        if bool((levels <= 0).any()) or bool((state["steps"] < 0).any()):
            return False
        source = torch.Generator().manual_seed(0)
        probes, others = (
            torch.randn(size, 4, generator=source, dtype=torch.float64).to(basis.device) for size in basis.shape[::-1]
        )
        wide, mean, apart = basis @ probes, past.value[0], state["centre"]
        second = past.value[1:] @ wide - torch.outer(mean, apart @ wide) - torch.outer(apart, mean @ wide)
        second += fit.mass * torch.outer(apart, apart @ wide)
        pairs = (
            (state["moments"].double() @ probes, basis.T @ second),
            (basis @ (levels[:, None] * (basis.T @ others)), target.factor @ (target.factor.T @ others)),
        )
        return all(float((got - wanted).norm()) <= AGREES * float(wanted.norm()) for got, wanted in pairs)


def _some(rows: Tensor) -> slice:
    """Rows spread over all."""
    return slice(None, None, max(1, len(rows) // SAMPLE))


def _ratio(rows: Tensor, pull: Tensor, basis: Tensor, *, taken: bool = False) -> float:
    """Norm of rows in the basis over that of the pull, on a sample of the rows."""
    some = rows if taken else rows[_some(rows)]
    return float((some @ basis.T).norm() / pull[_some(pull)].norm().clamp_min(torch.finfo(pull.dtype).tiny))


def _sandwich(p: Tensor, levels: Tensor) -> Tensor:
    """P L P for a symmetric P, of which the lower half is computed block by block."""
    scaled, size = p * levels.sqrt(), max(64, -(-len(p) // 4))
    product = torch.empty_like(p)
    for start in range(0, len(p), size):
        stop = min(start + size, len(p))
        torch.mm(scaled[start:stop], scaled[:stop].T, out=product[start:stop, :stop])
        product[:start, start:stop] = product[start:stop, :start].T
    return product


class _Given(torch.autograd.Function):
    """A value whose gradient in the rows is known."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * cotangents[0].to(gradient), None, None
