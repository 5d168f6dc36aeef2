"""Fréchet distances of a population that changes little from step to step, in products of the rows that came and went.

With C_r = F F^T and F^T C F = V L^2 V^T of an earlier population, H = F V L^{-1/2} makes both covariances the same
diagonal matrix: C_r = H L H^T and H^T C H = L, and its transport map is T = H H^T. For a later C, H^T C H = L + O and

    T = H (I + P)^{-1} H^T    with    P L + L P + P L P = O,

exactly. Without the last term P_ij = O_ij / (l_i + l_j), whatever the gaps between the l: no spectral gap enters. O
follows rows that come and go by products of n r^2, and T is applied to the live rows alone, by its series in P.
"""

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from objectives._frechet_step import Fit, Found, Moved, Part, multiplies_bfloat16, without_product
from objectives._linalg import above_rounding, mean_and_covariance, symmetric_product
from rdm.api import CorruptFileError, Follower, Seen, Solved, Sum

EVERY = 256  # steps at most from one exact one to the next
AGREES = 1e-3  # of what is found in a checkpoint with what follows from its moments
State = dict[str, Tensor]


class Pulled(NamedTuple):
    """What a step found, of which population, and the state that it leaves."""

    found: Found
    fit: Fit
    state: State | None
    age: int = 0  # steps since the basis


@dataclass(frozen=True)
class FrechetSolver(Follower):
    r"""Follows the moments in the eigenbasis of an earlier step; exact where a bound says that this is not enough.

    The gradient's relative error (Frobenius, over the live rows) is held below `tolerance` by a bound of what is left
    out, taken on 32 of them. Without the last term of the equation above, (I + P)^{-1} = I - P + 3/2 P^2, as it is
    where all commutes, and the bound is half the size of P^2; twice its size without P^2. Where that is more than the
    tolerance, P takes a fixed-point step, P_ij = (O - P L P)_ij / (l_i + l_j), from that of the step before,
    (I + P)^{-1} = I - P + P^2 - P^3, and the bound is what the step moved P^2 by and the size of P^4, as P^3 falls from
    P^2, or that of P^3 without it. The bound is the gradient's: the value has none, and was seen off by a tolerance.

    Where that is more too, where the covariance is singular, and at least every 256 steps, the step is exact, by an
    eigendecomposition in float64 whose basis the next steps take. What the followed gradient would have been off by is
    measured then, and a warning says where no bound said so.

    Products are in the rows' own type, but for those with P: in bfloat16, where the processor has units for it and
    with their error, 1/256 of their size, the bound is within the tolerance.

    `Solved.report` has the `bound`, whether the step was `exact` (1) or not (0), and if so the `error` measured.

    Cost:
        4 to 5 n r^2, and r^3 with a fixed-point step; exact ones 30 r^3, and the population's moments. Memory 4 r^2 in
        the rows' type.
    """

    tolerance: float
    correction: int

    def solve(self, seen: Seen, statistic: Any, target: Any, state: State | None) -> Solved:  # noqa: D102
        rows, report = seen.live.value.detach(), {"exact": 0.0}
        pulled = None if state is None or seen.change is None else self._followed(seen, statistic, state)
        if pulled is not None:
            report["bound"] = pulled.found.bound
        if pulled is None or not pulled.found.bound <= self.tolerance or pulled.age >= EVERY:
            moments = seen.population()
            assert isinstance(moments, Sum)
            exact = self._exact(rows - statistic.shift, rows.dtype, moments, target)
            report["exact"] = 1.0
            if pulled is not None:
                report["error"] = self._compared(pulled.found, exact.found)
            pulled = exact
        found, fit, live = pulled.found, pulled.fit, seen.live.weight.detach()
        factor, shift = 2 * seen.share * live / live.sum(), fit.mean - target.mean
        pull = found.pull.mul_(fit.scale).add_(shift.to(found.pull)).mul_(factor.to(found.pull)[:, None])
        value = shift.square().sum() + fit.trace + target.trace - 2 * found.overlap
        given = _Given.apply(seen.live.value, value.clamp_min(0), pull.to(rows.dtype))
        left = None if seen.change is None else pulled.state  # the memory weighs a first population anew
        return Solved(given, left, report)

    def _compared(self, found: Found, exact: Found) -> float:
        """How far a followed pull is from the exact one; a warning where no bound said so."""
        error = float((found.pull - exact.pull).norm() / exact.pull.norm().clamp_min(1e-300))
        if error > self.tolerance >= found.bound:
            warnings.warn(
                f"frechet: the gradient was off by {error:.2g} where its bound said {found.bound:.2g} and the "
                f"tolerance is {self.tolerance:.2g}; take a smaller tolerance",
                stacklevel=3,
            )
        return error

    def _exact(self, rows: Tensor, kind: torch.dtype, moments: Sum, target: Any) -> Pulled:
        """By eigh in float64; a state if the covariance has full rank on the reference's directions."""
        fit = Fit.of(moments, self.correction)
        _, covariance = mean_and_covariance(moments, correction=self.correction)
        eigenvalues, vectors = torch.linalg.eigh(symmetric_product(target.factor.T, covariance @ target.factor))
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
        found = Found(centred - (centred @ basis) @ basis.T, levels.sum(), None, 0.0)
        if not whole:
            return Pulled(found, fit, None)
        own = basis.to(kind)
        state = {
            "basis": own,
            "levels": levels,
            "centre": fit.mean,
            "moments": torch.diag(levels * fit.mass / fit.scale).to(kind),
            "second": torch.zeros_like(own[:0]),
            "steps": torch.zeros(2, dtype=torch.int64),
            "first": fit.first,
            "sums": fit.sums,
        }
        return Pulled(found, fit, state)

    def _followed(self, seen: Seen, statistic: Any, state: State) -> Pulled | None:
        """By the basis that there is."""
        change, basis, levels = seen.change, state["basis"], state["levels"]
        if change is None or basis.dtype != seen.live.value.dtype:
            return None
        kind, weights = basis.dtype, change.rows.weight
        wide = change.rows.value - statistic.shift
        fit = Fit(state["first"], state["sums"], self.correction).after(change.kept, wide, weights)
        moved = fit.mean - state["centre"]
        centred = (wide[: len(seen.live.value)] - fit.mean).to(kind)
        rows = wide.sub_(state["centre"]).to(kind) @ basis
        moments = symmetric_product((rows * weights.to(kind)[:, None]).T, rows)
        moments.add_(state["moments"], alpha=change.kept)
        mean, masses = moved.to(kind) @ basis, (levels * (fit.mass / fit.scale)).to(kind)
        p = without_product(moments, mean, fit.mass, masses)
        y, coarse = rows[: len(centred)] - mean, multiplies_bfloat16(p.device)
        here = Moved(basis, levels, centred, y, Part(p, coarse=coarse), masses, self.tolerance)
        (age, plain), second = state["steps"].tolist(), state["second"]
        found = None if len(second) else here.plain(plain)
        if found is None:
            found = here.improved(second if len(second) else None)
        else:
            plain += 1
        kept = {"moments": moments, "first": fit.first, "sums": fit.sums, "steps": torch.tensor([age + 1, plain])}
        kept["second"] = basis[:0] if found.product is None else found.product
        return Pulled(found, fit, {**state, **kept}, age)

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
            "first": example.first,
            "sums": example.sums,
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
            (state["first"], fit.first),
            (state["sums"], fit.sums),
            (state["moments"].double() @ probes, basis.T @ second),
            (basis @ (levels[:, None] * (basis.T @ others)), target.factor @ (target.factor.T @ others)),
        )
        return all(float((got - wanted).norm()) <= AGREES * float(wanted.norm()) for got, wanted in pairs)


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
