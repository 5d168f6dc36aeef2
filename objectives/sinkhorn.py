"""Sinkhorn divergence."""

import warnings
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from objectives._sinkhorn import Cost, Divergence, Problem, box, differentiable, divergence, extent, solve, temperatures
from objectives._sinkhorn_solver import SinkhornSolver
from objectives._transport import ITERATIONS, entropic, powered
from rdm.api import (
    EDGE,
    Count,
    InputError,
    Objective,
    Positive,
    Range,
    Real,
    Samples,
    Traits,
    Transport,
    objectives,
    require,
    usual,
)

OWN = 8192  # reference rows whose transport to themselves debiases the value: no part of the gradient


class TransportTarget(NamedTuple):
    """The reference's rows of positive weight, the fitted blur, and its own term of the debiasing."""

    rows: Tensor  # m d, about the reference's mean
    weights: Tensor  # m, summing to 1
    box: Tensor  # "2 d", the rows' bounding box
    blur: float
    cost: Cost | None  # of `OWN` of the rows at most with themselves, None without debiasing
    masses: Tensor  # of these rows, summing to 1
    problem: Problem  # as it was solved for `own`
    own: Tensor  # (), what the reference's own transport takes from the value


# blurs at which the sweeps of the tests' small problems converge to rounding, as finite differences and symmetry need
@objectives.register(
    "sinkhorn", examples=({"blur": 6.0, "sweeps": 16}, {"blur": 8.0, "p": 1, "reach": 8.0, "sweeps": 16})
)
@dataclass(frozen=True)
class Sinkhorn(Objective):
    r"""Debiased entropic transport cost between both sides (Sinkhorn divergence).

    .. math:: OT_\varepsilon(a, b) - \tfrac12 OT_\varepsilon(a, a) - \tfrac12 OT_\varepsilon(b, b), \quad
              OT_\varepsilon(a, b) = \min_{P \ge 0} \sum_{ij} P_{ij} \tfrac1p |x_i - y_j|^p
              + \varepsilon \operatorname{KL}(P | a b^T), \quad \varepsilon = blur^p

    Source: Genevay et al. (2018), eq. 6; Feydy et al. (2019), eq. 3; unbalanced (`reach`: marginals free at the price
    reach^p KL) Séjourné et al. (2019), proposition 12; annealing and symmetric sweeps Feydy (2020), algorithm 3.5.
    Conventions and schedule are those of geomloss' SamplesLoss("sinkhorn"): the cost has the factor 1/p, so that for
    p = 2 and a small blur the value is half of the squared Wasserstein distance. The temperature falls from diameter^p
    (`diameter`, or that of the bounding box of both sides) by factors scaling^p, a sweep each, then `sweeps` sweeps at
    blur^p (1 is geomloss', after which another update moves some 10 % of the mass; more stop early once nothing moves,
    and a warning says so if 1 % still do). The gradient is the envelope theorem's at the last
    potentials: exact at convergence (geomloss 0.3.1's unbalanced gradient lacks a factor of
    (rho + eps) / (rho + eps/2), rho = reach^p; the backend "geomloss" has it so).
    `debias=False` gives OT_eps(a, b) alone.

    blur "auto" is a tenth of the reference's root mean squared pairwise distance. geomloss' default of 0.05 assumes
    data in the unit cube, where it is about that; it is useless for raw features.

    Shapes:
        features: n d; weights: n; result ().
    Units:
        Feature distance to the power p, over p. blur and reach: feature distances. Biased upwards in n and m, the
        less the larger the blur.
    Cost:
        (n/2 + m) n (d + sweeps). The reference's own term is solved once, and again (m^2/2 a sweep) only where a
        bounding box wider than the reference's changes the schedule; give `diameter` to exclude that. A cost matrix
        is kept between sweeps up to 256 MiB (8192 x 8192 in float32) and formed again in tiles of 2 MiB beyond. m is
        65,536 at most: of a larger reference, rows drawn uniformly. The own term, which has no gradient, is that of
        8,192 of them at most: more would lower the value, by eps log(m / 8192) / 2 at most. With a `tolerance`
        (`rdm.Loss`, `rdm.Population`) a step starts from the reference's potential of the step before and is solved to
        the tolerance, not on the schedule: see `SinkhornSolver`.

    Raises:
        InputError: p outside [1, 2], blur, reach or diameter not positive, scaling outside [.001, .9999], sweeps
        below 1; blur "auto" of a reference with all rows equal; backend "geomloss" where geomloss is not installed,
        p is neither 1 nor 2, or sweeps is not 1.

    >>> import torch, rdm
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> round(rdm.distance("sinkhorn", x + 2, x, blur=0.5).item(), 4)  # |2|^2 / 2
    2.0
    """

    blur: Positive | Literal["auto"] | tuple[Literal["auto"], Positive] = "auto"
    p: Annotated[float, Range(least=1, most=2)] = 2
    scaling: Annotated[float, Range(least=1e-3, most=0.9999)] = 0.5
    debias: bool = True
    reach: Annotated[float, Range(least=1 / EDGE)] | None = None
    sweeps: Count = 1
    diameter: Positive | None = None
    backend: Literal["rdm", "geomloss"] = "rdm"

    def __post_init__(self) -> None:  # noqa: D105
        super().__post_init__()
        if self.backend == "geomloss":
            require("geomloss", extra="ot", owner='sinkhorn with backend="geomloss"')
            if self.p not in (1, 2) or self.sweeps != 1:
                raise InputError(
                    f"sinkhorn: geomloss has p 1 and 2 and one last sweep; got p={self.p} and sweeps={self.sweeps}; "
                    'use backend="rdm"'
                )

    @property
    def traits(self) -> Traits:
        """Symmetric and zero at equal samples to the sweeps' convergence."""
        return Traits(
            zero_at_identity=self.debias,
            symmetric=isinstance(self.blur, int | float),
            learned_weights=self.backend == "rdm",
            waits=self.diameter is None,
        )

    def bind(self, reference: Real) -> tuple[Samples, TransportTarget]:
        """Rows about the reference's mean; the reference's own transport is solved here, once."""
        statistic, held = Samples(reference.mean), reference.held("sinkhorn")
        rows, weights = _present(*_normalised(statistic.measure(held.features, held.masses)))
        blur = self._blur(rows, weights)
        around = box(rows)
        rows = rows.to(_representable(rows.dtype, extent(around), blur))
        own = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:OWN].to(rows.device)
        some, masses = (rows, weights) if len(rows) <= OWN else (rows[own], weights[own] / weights[own].sum())
        cost = Cost(some, None, self.p) if self.debias and self.backend == "rdm" else None
        problem, zero = self._problem(blur, extent(around)), torch.zeros((), dtype=torch.float64, device=rows.device)
        target = TransportTarget(rows, weights, around, blur, cost, masses, problem, zero)
        return statistic, target if cost is None else target._replace(own=_own(cost, masses, problem))

    def distance(self, summary: Any, target: TransportTarget, *, generator: Any = None) -> Tensor:
        """The dual value at the last potentials; its gradient in the rows is the plan's, with the potentials fixed."""
        x, a, y, problem = self.sides(summary, target)
        if self.backend == "geomloss":
            return self._geomloss(x, a, y, target)
        pull = x.requires_grad and torch.is_grad_enabled()
        return differentiable(x, a, self._divergence(x.detach(), a.detach(), y, target, problem, pull=pull))

    def solver(self, tolerance: float) -> SinkhornSolver:
        """Solves each step to a tolerance of its gradient, from the reference's potential of the step before."""
        if self.backend != "rdm":
            raise InputError('sinkhorn: a tolerance is for backend="rdm"; geomloss gives no potentials back')
        return SinkhornSolver(self, tolerance)

    def cost(self, x: Tensor, y: Tensor) -> Tensor:
        """|x - y|^p / p."""
        return powered(x, y, self.p) / self.p

    def transport(
        self,
        cost: Tensor,
        a: Tensor,
        b: Tensor,
        *,
        reference: Tensor | None = None,
        tolerance: float = 1e-6,
        iterations: int | None = None,
    ) -> Transport:
        """The plan of OT_eps(a, b), without debiasing."""
        if isinstance(self.blur, int | float):
            blur = float(self.blur)
        elif reference is not None:
            blur = self._blur(reference, b.detach())
        else:
            raise InputError('sinkhorn: blur "auto" is fitted to reference rows; give y too, or a number')
        rho = None if self._reach is None else self._reach**self.p
        options = {"tolerance": tolerance, "iterations": iterations or ITERATIONS}
        return entropic(cost, a, b, eps=blur**self.p, rho=rho, factor=self.scaling**self.p, **options)

    @property
    def _reach(self) -> float | None:
        """The reach, None where it is beyond every cost: balanced."""
        return None if self.reach is None or self.reach > EDGE else self.reach

    def sides(self, summary: Any, target: TransportTarget) -> tuple[Tensor, Tensor, Tensor, Problem]:
        """Rows and masses of the population, the reference's rows in their type, and the schedule for both."""
        x, a = _present(*_normalised(summary))
        length = extent(box(x.detach()), target.box)
        kind = _representable(x.dtype, length, target.blur)
        return x.to(kind), a, target.rows.to(kind), self._problem(target.blur, length)

    @torch.no_grad()
    def _divergence(
        self, x: Tensor, a: Tensor, y: Tensor, target: TransportTarget, problem: Problem, *, pull: bool
    ) -> Divergence:
        """On the schedule, all terms alike, or their lags do not cancel."""
        across = solve(Cost(x, y, self.p), a, target.weights, problem, pull=pull)
        _warn_of_rest(across.error, self.sweeps)
        if target.cost is None:
            return divergence(problem, a, target.weights, across, None, target.own)
        own = target.own if problem == target.problem else _own(target.cost, target.masses, problem)
        within = solve(Cost(x, None, self.p), a, a, problem, pull=pull)
        return divergence(problem, a, target.weights, across, within, own)

    def _problem(self, blur: float, length: Tensor) -> Problem:
        """Of sides in a box of this diagonal, which a device is waited for."""
        widest = float(length) if self.diameter is None else self.diameter
        schedule = temperatures(widest, p=self.p, blur=blur, scaling=self.scaling)
        return Problem(self.p, schedule, self._reach, self.sweeps - 1)

    def _blur(self, rows: Tensor, weights: Tensor) -> float:
        if isinstance(self.blur, int | float):
            return float(self.blur)
        multiple = 1.0 if self.blur == "auto" else self.blur[1]
        variance = weights @ (rows.double() - weights @ rows.double()).square().sum(1)
        if float(variance) <= 0:
            raise InputError('sinkhorn: blur "auto" needs a reference whose rows differ; give a number')
        return 0.1 * float(multiple) * float((2 * variance).sqrt())

    def _geomloss(self, x: Tensor, weights: Tensor, y: Tensor, target: TransportTarget) -> Tensor:
        peer = require("geomloss", extra="ot", owner='sinkhorn with backend="geomloss"').SamplesLoss(
            "sinkhorn", p=int(self.p), blur=target.blur, reach=self._reach, scaling=self.scaling, debias=self.debias,
            diameter=self.diameter, backend="tensorized",
        )  # fmt: skip
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # geomloss leaves gradients switched on
            return peer(weights.to(x.dtype), x, target.weights.to(x.dtype), y).double()


def _own(cost: Cost, masses: Tensor, problem: Problem) -> Tensor:
    """The reference's own term."""
    return masses @ problem.dual(solve(cost, masses, masses, problem).f)


def _representable(kind: torch.dtype, length: Tensor, blur: float) -> torch.dtype:
    """The rows' dtype, or float64 where costs or temperatures leave float32's range; in a box of this diagonal."""
    inside = (length == 0) | ((length > 1e-15) & (length < 1e15))
    return kind if 1e-15 < blur < 1e15 and usual(inside) else torch.float64


def _warn_of_rest(error: Tensor, sweeps: int) -> None:
    """Say that the sweeps ended early, unless one was asked for; the same text at every call, which is shown once."""
    if sweeps > 1 and usual(error > 0.01, False):
        warnings.warn(
            f"sinkhorn: not converged after sweeps={sweeps}: another update moves more than 1% of the mass; "
            "raise sweeps, scaling or blur",
            stacklevel=2,
        )


def _normalised(summary: Any) -> tuple[Tensor, Tensor]:
    return summary.value, summary.weight / summary.mass


def _present(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Only the rows of positive weight: the others have no potential and must not stretch the diameter."""
    keep = weights > 0
    return (rows, weights) if usual(keep.all()) else (rows[keep], weights[keep])
