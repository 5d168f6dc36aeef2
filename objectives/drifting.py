"""Drifting."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from objectives._distances import squared_distances
from rdm.errors import InputError
from rdm.objective import Objective, Traits
from rdm.reference import Reference
from rdm.registry import objectives
from rdm.statistic import Samples

SELF = 100.0  # added to a generated row's distance from itself, in units of the mean distance
FLOOR = 1e-6  # of the product of both softmaxes
LEAST = 1e-8  # of a field's root mean square


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
        n (n + m) (d + T), memory 3 n (n + m).

    Raises:
        InputError: no temperature, or one that is not positive.

    >>> import torch, rdm
    >>> x = torch.tensor([[0.0], [1.0]], requires_grad=True)
    >>> value = rdm.distance("drifting", x, x.detach() + 3, temperatures=(0.5,))
    >>> round(value.item(), 4), (torch.autograd.grad(value, x)[0] < 0).tolist()
    (1.0, [[True], [True]])
    """

    temperatures: tuple[float, ...] | list[float] = (0.02, 0.05, 0.2)

    def __post_init__(self) -> None:  # noqa: D105
        if len(self.temperatures) == 0 or not all(0 < t < float("inf") for t in self.temperatures):
            raise InputError(f"drifting: temperatures must be positive, at least one; got {self.temperatures}")

    @property
    def traits(self) -> Traits:  # noqa: D102
        return Traits(zero_at_identity=False, symmetric=False, normalize=False, plug_in=False, conservative=False)

    def bind(self, reference: Reference) -> tuple[Samples, DriftTarget]:
        """Rows about the reference's mean."""
        statistic = Samples(reference.mean)
        rows = statistic.measure(reference.features, reference.weights)
        return statistic, DriftTarget(*_present(rows.value, rows.weight))

    def distance(self, summary: Any, target: DriftTarget, *, generator: Any = None) -> Tensor:
        """Mean squared difference of the rows from their frozen goals."""
        x, a = _present(summary.value, summary.weight)
        with torch.no_grad():
            field, unit = _field(x.double(), a, target.rows.double(), target.weights, self.temperatures)
        moved = (x - x.detach()).double() / unit  # zero, with the gradient of x
        return (a / a.sum()) @ (moved - field).square().mean(1)


def _field(x: Tensor, a: Tensor, y: Tensor, b: Tensor, temperatures: Any) -> tuple[Tensor, Tensor]:
    """The sum of the normalised fields at the rows x, and the length of which they are multiples."""
    n, d = x.shape
    targets = torch.cat([x, y])
    a, b = a * (n / a.sum()), b * (len(y) / b.sum())  # mean 1 a side: equal weights are the paper's
    weights = torch.cat([a, b])
    distances = squared_distances(x, targets, exact_small=True)
    distances[:, :n].fill_diagonal_(0.0)
    distances = distances.sqrt_()
    scale = a @ distances @ weights / (a.sum() * weights.sum())
    unit = (scale / d**0.5).clamp_min(1e-3)
    distances /= unit * d**0.5
    distances[:, :n].diagonal().add_(SELF)
    field = torch.zeros_like(x)
    for temperature in temperatures:
        force = _force(x, a, targets, weights, distances / -temperature) / unit
        size = (a @ force.square().mean(1) / n).sqrt()
        field += force / size.clamp_min(LEAST)
    return field, unit


def _force(x: Tensor, a: Tensor, targets: Tensor, weights: Tensor, logits: Tensor) -> Tensor:
    """Attraction and repulsion at one temperature, each scaled by the other's total."""
    n = len(x)
    rows = (logits + weights.log()).logsumexp(1, keepdim=True)
    columns = (logits + a.log()[:, None]).logsumexp(0)
    coupling = (2 * logits - rows - columns).exp_().clamp_min_(FLOOR).sqrt_().mul_(weights)
    apart, together = coupling[:, :n], coupling[:, n:]
    away, towards = apart.sum(1, keepdim=True), together.sum(1, keepdim=True)
    pull = together @ targets[n:] - towards * x
    return away * pull - towards * (apart @ x - away * x)


def _present(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Only the rows of positive weight: the others take no part in a softmax or a count."""
    keep = weights > 0
    return (rows, weights) if bool(keep.all()) else (rows[keep], weights[keep])
