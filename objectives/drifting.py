"""Drifting."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from objectives._distances import squared_distances
from rdm.api import Objective, Positive, Real, Samples, Traits, objectives, usual

SELF = 100.0  # added to a generated row's distance from itself, in units of the mean distance
FLOOR = 1e-6  # of the product of both softmaxes
LEAST = 1e-8  # of a field's root mean square
TILE = 2**20  # distances handled at a time, 8 MiB
KEEP = 2**23  # distances that are kept between the three passes over them, 64 MiB; more are formed again


class DriftTarget(NamedTuple):
    """The reference's rows."""

    rows: Tensor  # m d, about the reference's mean
    weights: Tensor  # m


@objectives.register("drifting", examples=({"temperatures": (0.1, 0.5)},))
@dataclass(frozen=True)
class Drifting(Objective):
    r"""Squared length of the coupled drift field, which attracts generated rows to the reference and apart.

    .. math:: \sum_i a_i \frac1d |F(x_i)|^2, \quad F = \sum_R F_R / \operatorname{rms}(F_R), \quad
              F_R(x_i) = A^-_i \sum_j A^+_{ij} (y_j - x_i) - A^+_i \sum_k A^-_{ik} (x_k - x_i)

    Here A = (row softmax x column softmax)^{1/2} of -|x_i - t_j| / (s R) over the targets t, which are all generated
    rows (A^-, with 100 added to a row's distance from itself) and all reference rows (A^+); A_i are sums over j; s is
    the mean distance from a generated row to a target; F is in units of s / d^{1/2}.

    Source: Deng et al. (2026), arXiv 2602.04770. Reconstructed from notes on the paper and its code, not checked
    against their numbers: the product of both softmaxes is at least 1e-6, s / d^{1/2} at least 1e-3. Weights are ours:
    they enter the softmaxes' sums, the sums over targets and the means; with equal weights nothing changes.

    Not a distance: each field is divided by its own root mean square, so that the value measures how far the
    temperatures agree (T^2 for T agreeing fields, 1 for one temperature), not how far the sides are apart, and does
    not vanish at equal samples, since a generated row is no target of its own. What trains is the gradient: that of
    the mean squared difference from the frozen goal x + F, which is not the gradient of the value.

    Shapes:
        features: n d; weights: n; result ().
    Units:
        None (squared units of s, per dimension); between 0 and T^2.
    Cost:
        n (n + m) (d + T), three times that where n (n + m) is above 8 million; memory 64 MiB and tiles of 8 MiB.
        m is 65,536 at most: of a larger reference, rows drawn uniformly.

    Raises:
        InputError: no temperature, or one that is not positive.

    >>> import torch, rdm
    >>> x = torch.tensor([[0.0], [1.0]], requires_grad=True)
    >>> value = rdm.distance("drifting", x, x.detach() + 3, temperatures=(0.5,))
    >>> round(value.item(), 4), (torch.autograd.grad(value, x)[0] < 0).tolist()
    (1.0, [[True], [True]])
    """

    temperatures: tuple[Positive, ...] | list[Positive] = (0.02, 0.05, 0.2)

    @property
    def traits(self) -> Traits:  # noqa: D102
        return Traits(
            zero_at_identity=False,
            symmetric=False,
            normalize=False,
            plug_in=False,
            conservative=False,
            learned_weights=False,
        )

    def bind(self, reference: Real) -> tuple[Samples, DriftTarget]:
        """Rows about the reference's mean."""
        statistic = Samples(reference.mean)
        held = reference.held("drifting")
        rows = statistic.measure(held.features, held.masses)
        return statistic, DriftTarget(*_present(rows.value, rows.weight))

    def distance(self, summary: Any, target: DriftTarget, *, generator: Any = None) -> Tensor:
        """Mean squared difference of the rows from their frozen goals."""
        x, a = _present(summary.value, summary.weight)
        with torch.no_grad():
            field, unit = _field(x.double(), a, target.rows, target.weights, self.temperatures)
        moved = (x - x.detach()).double() / unit  # zero, with the gradient of x
        return (a / a.sum()) @ (moved - field).square().mean(1)


class _Tile(NamedTuple):
    """Some targets, and the rows' distances from them."""

    own: bool  # the targets are generated rows
    start: int  # of the targets among their side
    points: Tensor  # k d
    weights: Tensor  # k
    distances: Tensor  # n k

    def logits(self, temperature: float, scale: Tensor) -> Tensor:
        """-|x_i - t_j| / (s R), with `SELF` added to a row's distance from itself."""
        scaled = self.distances / scale
        if self.own:
            scaled[self.start : self.start + len(self.points)].diagonal().add_(SELF)
        return scaled.div_(-temperature)


def _tiles(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Iterator[_Tile]:
    size = max(16, TILE // len(x))
    for own, points, weights in ((True, x, a), (False, y, b)):
        for start in range(0, len(points), size):
            some = points[start : start + size].double()
            squared = squared_distances(x, some, exact_small=True, same=-start if own else None)
            yield _Tile(own, start, some, weights[start : start + size], squared.sqrt_())


def _field(x: Tensor, a: Tensor, y: Tensor, b: Tensor, temperatures: Any) -> tuple[Tensor, Tensor]:
    """The sum of the normalised fields at the rows x, and the length of which they are multiples."""
    n, d = x.shape
    a, b = a * (n / a.sum()), b * (len(y) / b.sum())  # mean 1 a side: equal weights are the paper's
    kept = list(_tiles(x, a, y, b)) if n * (n + len(y)) <= KEEP else None

    def tiles() -> Iterable[_Tile]:
        return _tiles(x, a, y, b) if kept is None else kept

    scale = sum(a @ tile.distances @ tile.weights for tile in tiles()) / (a.sum() * (a.sum() + b.sum()))
    unit = (scale / d**0.5).clamp_min(1e-3)
    rows = [torch.full_like(a, -torch.inf) for _ in temperatures]
    for tile in tiles():
        for k, temperature in enumerate(temperatures):
            logits = tile.logits(temperature, unit * d**0.5)
            rows[k] = torch.logaddexp(rows[k], (logits + tile.weights.log()).logsumexp(1))
    # per temperature: the total coupling to either side, and the coupled sum of its points
    mass = [[torch.zeros_like(a), torch.zeros_like(a)] for _ in temperatures]
    moment = [[torch.zeros_like(x), torch.zeros_like(x)] for _ in temperatures]
    for tile in tiles():
        for k, temperature in enumerate(temperatures):
            coupling = _coupling(tile.logits(temperature, unit * d**0.5), rows[k], a).mul_(tile.weights)
            mass[k][tile.own] += coupling.sum(1)
            moment[k][tile.own] += coupling @ tile.points
    field = torch.zeros_like(x)
    for (towards, away), (together, apart) in zip(mass, moment, strict=True):
        towards, away = towards[:, None], away[:, None]
        force = (away * (together - towards * x) - towards * (apart - away * x)) / unit
        size = (a @ force.square().mean(1) / n).sqrt()
        field += force / size.clamp_min(LEAST)
    return field, unit


def _coupling(logits: Tensor, rows: Tensor, a: Tensor) -> Tensor:
    """The geometric mean of both softmaxes; that over the rows, for each column, is whole in a tile."""
    columns = (logits + a.log()[:, None]).logsumexp(0)
    return logits.mul_(2).sub_(rows[:, None]).sub_(columns).exp_().clamp_min_(FLOOR).sqrt_()


def _present(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Only the rows of positive weight: the others take no part in a softmax or a count."""
    keep = weights > 0
    return (rows, weights) if usual(keep.all()) else (rows[keep], weights[keep])
