"""Sliced energy distance."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from objectives._sorted import blocks, directions, sort_rows
from rdm.api import UNDIVIDED, Count, Objective, Portion, Real, Samples, Traits, objectives


class ProjectedTarget(NamedTuple):
    """The reference's rows, and their projections on the fixed directions."""

    rows: Tensor  # m d, about the reference's mean
    weights: Tensor  # m, summing to 1
    directions: Tensor  # P d
    projections: Tensor  # P m, on `directions`


@objectives.register("sliced_energy", examples=({"projections": 16},))
@dataclass(frozen=True)
class SlicedEnergy(Objective):
    r"""Mean over directions of the one-dimensional energy distance between both sides' projections.

    .. math:: \frac{1}{P} \sum_\theta 2 \int (F_\theta(t) - G_\theta(t))^2 \, dt
              = \frac{1}{P} \sum_\theta \left( 2 E|\theta x - \theta y| - E|\theta x - \theta x'|
              - E|\theta y - \theta y'| \right)

    Source: Székely and Rizzo (2013), eq. 1 in one dimension; the integral is Cramér's (1928). F and G are the
    distribution functions of the weighted projections, so the double sums over pairs cost one sort. In expectation
    over directions this is the energy distance times E|theta_1|, Gamma(d/2) / (sqrt(pi) Gamma((d + 1)/2)). Directions
    are uniform on the sphere, drawn from `generator`; without one they are the same at every call.

    Shapes:
        features: n d; weights: n; result ().
    Units:
        Feature distance. Biased upwards in n and m (a V-statistic), unbiased in the directions; in one dimension the
        square of scipy.stats.energy_distance.
    Cost:
        P (n + m) (d + log(n + m)), memory 64 (n + m), and P m kept. m is 65,536 at most: of a
        larger reference, rows drawn uniformly.

    Raises:
        InputError: projections below 1.

    >>> import torch, rdm
    >>> round(rdm.distance("sliced_energy", torch.tensor([[3.0]]), torch.tensor([[1.0]])).item(), 6)  # 2 |3 - 1|
    4.0
    """

    projections: Count = 128

    @property
    def traits(self) -> Traits:  # noqa: D102
        return Traits(randomized=True)

    def bind(self, reference: Real) -> tuple[Samples, ProjectedTarget]:
        """Rows about the reference's mean, and their projections on the fixed directions."""
        statistic = Samples(reference.mean)
        held = reference.held("sliced_energy")
        rows = statistic.measure(held.features, held.masses)
        vectors = directions(rows.value, self.projections, None)
        return statistic, ProjectedTarget(rows.value, rows.weight / rows.mass, vectors, vectors @ rows.value.T)

    @property
    def divisible(self) -> bool:  # noqa: D102
        return True

    def distance(self, summary: Any, target: ProjectedTarget, *, generator: torch.Generator | None = None) -> Tensor:
        """The mean over directions, a block at a time; directions redrawn where there is a generator."""
        return self.part(summary, target, UNDIVIDED, generator=generator)

    def part(
        self, summary: Any, target: ProjectedTarget, portion: Portion, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """What its share of the directions adds to the mean."""
        x, weights = summary.value, summary.weight / summary.mass
        vectors, known = target.directions.to(x.dtype), target.projections.to(x.dtype)
        if generator is not None:
            vectors = directions(x, self.projections, generator)
            known = vectors @ target.rows.to(x.dtype).T
        return _MeanEnergy.apply(x, weights, vectors, known, target.weights, portion)


class _MeanEnergy(torch.autograd.Function):
    """With D = F - G the value is 2 sum_k D_k^2 (t_{k+1} - t_k), its slope in t_k 2 (D_{k-1}^2 - D_k^2)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, vectors: Tensor, known: Tensor, b: Tensor, portion: Portion) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        gradient = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        of_weights = torch.zeros_like(a) if ctx.needs_input_grad[1] else None
        signed = torch.cat([a, -b])  # the jumps of F - G
        for k in blocks(len(vectors), len(signed), portion):
            vector = vectors[k]
            rows, order = sort_rows(torch.cat([vector @ x.T, known[k]], 1))
            gaps, between = signed[order].cumsum(1)[:, :-1], rows.diff(dim=1)
            squared = gaps.square().to(x.dtype)
            total += 2 * (squared * between).sum(dtype=torch.float64)
            if of_weights is not None:  # each jump moves F - G on all that follows
                following = torch.nn.functional.pad((4 * gaps * between).flip(1).cumsum(1).flip(1), (0, 1))
                of_weights += torch.empty_like(following).scatter_(1, order, following)[:, : len(x)].sum(0)
            if gradient is not None:
                ends = torch.nn.functional.pad(squared, (1, 1))
                slope = torch.empty_like(rows).scatter_(1, order, -2 * ends.diff(dim=1))
                gradient.addmm_(slope[:, : len(x)].T, vector)
        ctx.save_for_backward(*(None if each is None else each.div_(len(vectors)) for each in (gradient, of_weights)))
        return total / len(vectors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradient, of_weights = (None if t is None else cotangents[0].to(t.dtype) * t for t in ctx.saved_tensors)
        return gradient, of_weights, None, None, None, None
